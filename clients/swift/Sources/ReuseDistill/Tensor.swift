/// A contiguous tensor of any element type; states are moved as bytes and never converted.
public struct Tensor: Equatable {
    public let shape: [Int]
    public let elementBytes: Int
    public var bytes: [UInt8]

    public init(zeros shape: [Int], elementBytes: Int) {
        self.shape = shape
        self.elementBytes = elementBytes
        bytes = [UInt8](repeating: 0, count: shape.reduce(elementBytes, *))
    }

    public init(_ values: [Float], shape: [Int]) {
        precondition(values.count == shape.reduce(1, *), "values do not fill the shape")
        self.shape = shape
        elementBytes = MemoryLayout<Float>.size
        bytes = values.withUnsafeBytes { Array($0) }
    }

    /// The elements of a float32 tensor.
    public var floats: [Float] {
        precondition(elementBytes == MemoryLayout<Float>.size, "not a float32 tensor")
        return bytes.withUnsafeBytes { raw in
            (0..<raw.count / elementBytes).map {
                raw.loadUnaligned(fromByteOffset: $0 * elementBytes, as: Float.self)
            }
        }
    }

    /// This tensor without its oldest rows along `axis`, and the rows of `new` behind.
    public func appending(_ new: Tensor, axis: Int) -> Tensor {
        precondition(new.shape.count == shape.count && new.elementBytes == elementBytes, "rows of another kind")
        let inner = shape[(axis + 1)...].reduce(elementBytes, *)
        let outer = shape[..<axis].reduce(1, *)
        let size = shape[axis] * inner
        let added = new.shape[axis] * inner
        var joined = self
        for block in 0..<outer {
            let old = bytes[block * size..<(block + 1) * size]
            let rows = new.bytes[block * added..<(block + 1) * added]
            joined.bytes.replaceSubrange(block * size..<(block + 1) * size, with: (old + rows).suffix(size))
        }
        return joined
    }
}

/// Bytes of one element of a manifest's `dtype`.
func elementBytes(of dtype: String) throws -> Int {
    switch dtype {
    case "float32": return 4
    case "float16": return 2
    default: throw ClientError.notSupported("dtype \(dtype)")
    }
}
