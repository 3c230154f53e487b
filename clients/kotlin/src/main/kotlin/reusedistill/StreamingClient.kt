package reusedistill

/** What computes a step. */
interface StepEngine {
    fun step(inputs: Map<String, Tensor>): Map<String, Tensor>
}

/** One finished frame, 20 ms of audio: `features[layer][width]`. */
class Frame(val index: Int, val features: List<FloatArray>)

/** One stream. Everything it does is in the manifest: sizes, states, and what feeds what. */
class StreamingClient(private val manifest: Manifest, private val engine: StepEngine) {
    private val chunk = manifest.geometry.chunkFrames
    private val buffer = SampleBuffer(chunk, manifest.hopSamples, manifest.receptiveFieldSamples)
    private val carried =
        manifest.states.associateTo(LinkedHashMap()) { it.input to Tensor.zeros(it.shape, it.dtype) }
    private var produced = 0 // frames that the steps so far have given, the first R of which mean nothing
    private var finished = false

    /** Samples at the manifest's rate, as many as there are; the frames that they finish. */
    fun push(samples: FloatArray): List<Frame> {
        if (finished) throw ClientException("the stream is finished")
        buffer.push(samples)
        val frames = ArrayList<Frame>()
        while (true) frames += step(buffer.next() ?: return frames)
    }

    /** The frames that were waiting for their look-ahead. Afterwards the stream takes no more samples. */
    fun finish(): List<Frame> {
        val frames = ArrayList<Frame>()
        while (!finished && produced - manifest.geometry.lookaheadFrames < buffer.frames) {
            frames += step(buffer.nextPadded())
        }
        finished = true
        return frames.filter { it.index < buffer.frames }
    }

    private fun step(input: StepInput): List<Frame> {
        val inputs = LinkedHashMap<String, Tensor>(carried)
        inputs["samples"] = Tensor.of(input.samples, 1, input.samples.size)
        inputs["fresh"] = Tensor.of(input.fresh, 1, input.fresh.size)
        val outputs = engine.step(inputs)
        for (state in manifest.states) carry(state, outputs[state.output] ?: throw missing(state.output))
        return frames((outputs["features"] ?: throw missing("features")).floats())
    }

    /** Rows in any order form a ring, in which every state of the kind uses the same slots. */
    private fun carry(state: StateDescription, new: Tensor) {
        val held = carried.getValue(state.input)
        when {
            state.update == "replace" -> carried[state.input] = new
            state.ordered -> held.shiftIn(new, state.axis)
            else -> held.writeRing(new, state.axis, produced % state.shape[state.axis])
        }
    }

    /** `values` [1, layers, C, width] as frames, without those before the start. */
    private fun frames(values: FloatArray): List<Frame> {
        val width = manifest.featureWidth
        val first = produced - manifest.geometry.lookaheadFrames
        produced += chunk
        return (0 until chunk).filter { first + it >= 0 }.map { row ->
            Frame(first + row, List(manifest.layers) { layer ->
                val start = (layer * chunk + row) * width
                values.copyOfRange(start, start + width)
            })
        }
    }

    private fun missing(output: String) = ClientException("the engine gave no $output")
}
