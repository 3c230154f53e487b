import Foundation

/// An axis of a tensor: a size, or the name of one that is open.
public enum Axis: Decodable, Equatable {
    case size(Int)
    case open(String)

    public init(from decoder: Decoder) throws {
        let value = try decoder.singleValueContainer()
        if let size = try? value.decode(Int.self) {
            self = .size(size)
        } else {
            self = .open(try value.decode(String.self))
        }
    }
}

/// One input or output of the artifact.
public struct TensorDescription: Decodable {
    public let name: String
    public let dtype: String
    public let shape: [Axis]
}

/// One state: zeros at the start of a stream, updated after every step.
public struct StateDescription: Decodable {
    public enum Update: String, Decodable { case replace, append }

    public let name: String
    public let input: String
    public let output: String
    public let dtype: String
    public let shape: [Axis]
    public let update: Update
    public let axis: Int

    /// Core ML keeps such a state itself: it is neither an input nor an output.
    public var isKeptByEngine: Bool { input == output }
}

/// Frames of context: chunk C, look-ahead R, left context L.
public struct Geometry: Decodable {
    public let chunkFrames: Int
    public let lookaheadFrames: Int
    public let leftFrames: Int

    enum CodingKeys: String, CodingKey {
        case chunkFrames = "chunk_frames"
        case lookaheadFrames = "lookahead_frames"
        case leftFrames = "left_frames"
    }
}

/// What a bundle's `manifest.json` tells a streaming client.
public struct Manifest: Decodable {
    public let schemaVersion: Int
    public let kind: String
    public let target: String
    public let artifact: String
    public let layers: [Int]
    public let featureWidth: Int
    public let inputs: [TensorDescription]
    public let outputs: [TensorDescription]
    public let states: [StateDescription]
    public let geometry: Geometry
    public let sampleRateHz: Int
    public let hopSamples: Int
    public let receptiveFieldSamples: Int

    enum CodingKeys: String, CodingKey {
        case kind, target, artifact, layers, inputs, outputs, states, geometry
        case schemaVersion = "schema_version"
        case featureWidth = "feature_width"
        case sampleRateHz = "sample_rate_hz"
        case hopSamples = "hop_samples"
        case receptiveFieldSamples = "receptive_field_samples"
    }

    public static func read(_ data: Data) throws -> Manifest {
        let manifest = try JSONDecoder().decode(Manifest.self, from: data)
        guard manifest.schemaVersion == 1 else {
            throw ClientError.notSupported("schema version \(manifest.schemaVersion), this client reads 1")
        }
        guard manifest.kind == "streaming" else {
            throw ClientError.notSupported("a bundle of kind \(manifest.kind), this client streams")
        }
        return manifest
    }
}

public enum ClientError: Error, Equatable {
    case notSupported(String)
    case missing(String)
    case finished
}
