package ai.onnxruntime;

import java.nio.ByteBuffer;

public class OnnxTensor extends OnnxTensorLike {
    public static int open = 0;  // of the stub: tensors that nobody has closed yet
    private final ByteBuffer data;
    private final TensorInfo info;

    private OnnxTensor(ByteBuffer data, TensorInfo info) {
        this.data = data;
        this.info = info;
        open++;
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape, OnnxJavaType type)
            throws OrtException {
        if (!data.isDirect()) {
            throw new OrtException("the stub wants direct memory: anything else would be copied");
        }
        return new OnnxTensor(data, new TensorInfo(type, shape));
    }

    /** A heap buffer, as the real one gives. */
    public ByteBuffer getByteBuffer() {
        ByteBuffer copy = ByteBuffer.allocate(data.capacity());
        copy.put(data.duplicate());
        copy.rewind();
        return copy;
    }

    public TensorInfo getInfo() {
        return info;
    }

    @Override
    public void close() {
        open--;
    }
}
