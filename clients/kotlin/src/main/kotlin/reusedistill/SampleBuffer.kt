package reusedistill

/** Samples of one step (320 C + 80), and which of its C frames exist. */
class StepInput(val samples: FloatArray, val fresh: FloatArray)

/** Cuts pushes of any size into steps; consecutive steps share all but `hop * chunk` samples. */
class SampleBuffer(private val chunk: Int, private val hop: Int, private val window: Int) {
    private var waiting = FloatArray(0)
    private var held = 0 // samples in `waiting`
    private var taken = 0 // frames handed out
    private var total = 0L // samples pushed

    private val stepSamples = hop * chunk + window - hop

    /** Frames that the samples pushed so far hold. */
    val frames: Int get() = if (total < window) 0 else ((total - window) / hop + 1).toInt()

    fun push(samples: FloatArray) {
        if (held + samples.size > waiting.size) waiting = waiting.copyOf(2 * (held + samples.size))
        samples.copyInto(waiting, held)
        held += samples.size
        total += samples.size
    }

    /** The next step whose samples are all there. */
    fun next(): StepInput? = if (held < stepSamples) null else take(FloatArray(chunk) { 1f })

    /** A step of what is left, zeros behind it; frames that do not exist are not fresh. */
    fun nextPadded(): StepInput = take(FloatArray(chunk) { if (taken + it < frames) 1f else 0f })

    private fun take(fresh: FloatArray): StepInput {
        val samples = FloatArray(stepSamples)
        waiting.copyInto(samples, 0, 0, minOf(held, stepSamples))
        val gone = minOf(held, hop * chunk)
        waiting.copyInto(waiting, 0, gone, held)
        held -= gone
        taken += chunk
        return StepInput(samples, fresh)
    }
}
