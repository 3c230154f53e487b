#if canImport(CoreML)
import CoreML
import Foundation

/// A step by Core ML, with the states that it keeps itself (iOS 18, macOS 15) or as inputs and outputs (iOS 16).
public final class CoreMLEngine: StepEngine {
    private let model: MLModel
    private let manifest: Manifest
    private var predict: (MLFeatureProvider) throws -> MLFeatureProvider

    /// `compiled` is what `MLModel.compileModel(at:)` makes of the bundle's `.mlpackage`.
    public init(compiled: URL, manifest: Manifest, units: MLComputeUnits = .all) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        let model = try MLModel(contentsOf: compiled, configuration: configuration)
        self.model = model
        self.manifest = manifest
        if manifest.states.contains(where: { $0.isKeptByEngine }) {
            guard #available(iOS 18, macOS 15, *) else {
                throw ClientError.notSupported("states kept by Core ML before iOS 18 and macOS 15")
            }
            let state = model.makeState()
            predict = { try model.prediction(from: $0, using: state) }
        } else {
            predict = { try model.prediction(from: $0) }
        }
    }

    public func step(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
        var values: [String: MLFeatureValue] = [:]
        for (name, tensor) in inputs {
            values[name] = MLFeatureValue(multiArray: try multiArray(tensor))
        }
        let found = try predict(MLDictionaryFeatureProvider(dictionary: values))
        var outputs: [String: Tensor] = [:]
        for name in found.featureNames {
            if let array = found.featureValue(for: name)?.multiArrayValue {
                outputs[name] = try tensor(array)
            }
        }
        return outputs
    }
}

private func multiArray(_ tensor: Tensor) throws -> MLMultiArray {
    let type: MLMultiArrayDataType = tensor.elementBytes == 2 ? .float16 : .float32
    let array = try MLMultiArray(shape: tensor.shape.map { NSNumber(value: $0) }, dataType: type)
    array.withUnsafeMutableBytes { raw, strides in
        copy(shape: tensor.shape, strides: strides, elementBytes: tensor.elementBytes) { packed, strided, count in
            for byte in 0..<count { raw[strided + byte] = tensor.bytes[packed + byte] }
        }
    }
    return array
}

private func tensor(_ array: MLMultiArray) throws -> Tensor {
    guard array.dataType == .float16 || array.dataType == .float32 else {
        throw ClientError.notSupported("an output of type \(array.dataType.rawValue)")
    }
    var found = Tensor(zeros: array.shape.map(\.intValue), elementBytes: array.dataType == .float16 ? 2 : 4)
    let strides = array.strides.map(\.intValue)
    array.withUnsafeBytes { raw in
        copy(shape: found.shape, strides: strides, elementBytes: found.elementBytes) { packed, strided, count in
            for byte in 0..<count { found.bytes[packed + byte] = raw[strided + byte] }
        }
    }
    return found
}
#endif

/// Calls `move(packed offset, strided offset, bytes)` for every element: Core ML pads the rows of some arrays.
func copy(shape: [Int], strides: [Int], elementBytes: Int, move: (Int, Int, Int) -> Void) {
    var index = [Int](repeating: 0, count: shape.count)
    for packed in 0..<shape.reduce(1, *) {
        let strided = zip(index, strides).reduce(0) { $0 + $1.0 * $1.1 }
        move(packed * elementBytes, strided * elementBytes, elementBytes)
        for axis in shape.indices.reversed() {
            index[axis] += 1
            if index[axis] < shape[axis] { break }
            index[axis] = 0
        }
    }
}
