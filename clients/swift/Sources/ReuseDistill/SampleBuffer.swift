/// Samples of one step, and which of its frames exist.
public struct StepInput: Equatable {
    public let samples: [Float]  // 320 C + 80
    public let fresh: [Float]  // C
}

/// Cuts pushes of any size into steps; consecutive steps share `overlap` samples.
public struct SampleBuffer {
    public let chunk: Int
    public let hop: Int
    public let field: Int
    private var waiting: [Float] = []
    private var taken = 0  // frames handed out
    private var total = 0  // samples pushed

    public init(chunk: Int, hop: Int, field: Int) {
        (self.chunk, self.hop, self.field) = (chunk, hop, field)
    }

    public var stepSamples: Int { hop * chunk + field - hop }

    /// Frames that the samples pushed so far hold.
    public var frames: Int { total < field ? 0 : (total - field) / hop + 1 }

    public mutating func push(_ samples: [Float]) {
        waiting.append(contentsOf: samples)
        total += samples.count
    }

    /// The next step whose samples are all there.
    public mutating func next() -> StepInput? {
        guard waiting.count >= stepSamples else { return nil }
        let samples = Array(waiting.prefix(stepSamples))
        waiting.removeFirst(hop * chunk)
        taken += chunk
        return StepInput(samples: samples, fresh: [Float](repeating: 1, count: chunk))
    }

    /// A step of what is left, zeros behind it; frames that do not exist are not fresh.
    public mutating func nextPadded() -> StepInput {
        let zeros = [Float](repeating: 0, count: max(0, stepSamples - waiting.count))
        let samples = Array(waiting.prefix(stepSamples)) + zeros
        let fresh = (taken..<taken + chunk).map { Float($0 < frames ? 1 : 0) }
        waiting.removeFirst(min(waiting.count, hop * chunk))
        taken += chunk
        return StepInput(samples: samples, fresh: fresh)
    }
}
