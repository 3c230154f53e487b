/// What computes a step. States that it keeps itself are zeros when it is made.
public protocol StepEngine: AnyObject {
    func step(_ inputs: [String: Tensor]) throws -> [String: Tensor]
}

/// One finished frame: 20 ms of audio.
public struct Frame: Equatable {
    public let index: Int
    public let features: [[Float]]  // [layers][width]
}

/// One stream. Everything it does is in the manifest: sizes, states, and what feeds what.
public final class StreamingClient {
    private let manifest: Manifest
    private let engine: StepEngine
    private var buffer: SampleBuffer
    private var carried: [String: Tensor] = [:]
    private var produced = 0  // frames that the steps so far have given, the first R of which mean nothing
    private var isFinished = false

    public init(manifest: Manifest, engine: StepEngine) throws {
        self.manifest = manifest
        self.engine = engine
        buffer = SampleBuffer(
            chunk: manifest.geometry.chunkFrames,
            hop: manifest.hopSamples,
            field: manifest.receptiveFieldSamples
        )
        for state in manifest.states where !state.isKeptByEngine {
            carried[state.input] = Tensor(zeros: try sizes(state.shape), elementBytes: try elementBytes(of: state.dtype))
        }
    }

    /// Samples at the manifest's rate, as many as there are; the frames that they finish.
    public func push(_ samples: [Float]) throws -> [Frame] {
        guard !isFinished else { throw ClientError.finished }
        buffer.push(samples)
        var frames: [Frame] = []
        while let input = buffer.next() {
            frames += try step(input)
        }
        return frames
    }

    /// The frames that were waiting for their look-ahead. Afterwards the stream takes no more samples.
    public func finish() throws -> [Frame] {
        var frames: [Frame] = []
        while !isFinished && produced - manifest.geometry.lookaheadFrames < buffer.frames {
            frames += try step(buffer.nextPadded())
        }
        isFinished = true
        return frames.filter { $0.index < buffer.frames }
    }

    private func step(_ input: StepInput) throws -> [Frame] {
        var inputs = carried
        inputs["samples"] = Tensor(input.samples, shape: [1, input.samples.count])
        inputs["fresh"] = Tensor(input.fresh, shape: [1, input.fresh.count])
        let outputs = try engine.step(inputs)
        for state in manifest.states where !state.isKeptByEngine {
            guard let new = outputs[state.output] else { throw ClientError.missing(state.output) }
            if state.update == .replace {
                carried[state.input] = new
            } else {
                carried[state.input] = carried[state.input]?.appending(new, axis: state.axis)
            }
        }
        guard let features = outputs["features"] else { throw ClientError.missing("features") }
        return framesOf(features.floats)
    }

    /// `values` [1, layers, C, width] as frames, without those before the start.
    private func framesOf(_ values: [Float]) -> [Frame] {
        let (chunk, width, layers) = (manifest.geometry.chunkFrames, manifest.featureWidth, manifest.layers.count)
        let first = produced - manifest.geometry.lookaheadFrames
        produced += chunk
        return (0..<chunk).filter { first + $0 >= 0 }.map { row in
            Frame(
                index: first + row,
                features: (0..<layers).map { layer in
                    let start = (layer * chunk + row) * width
                    return Array(values[start..<start + width])
                }
            )
        }
    }
}

func sizes(_ shape: [Axis]) throws -> [Int] {
    try shape.map { axis in
        guard case let .size(size) = axis else {
            throw ClientError.notSupported("an open axis; export with a fixed number of streams")
        }
        return size
    }
}
