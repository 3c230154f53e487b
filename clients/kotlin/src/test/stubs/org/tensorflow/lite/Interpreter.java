package org.tensorflow.lite;

import java.io.File;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Map;

/** The part of LiteRT's Java API that the engine uses: to compile and test it without the package. */
public final class Interpreter implements AutoCloseable {
    /** Of the stub: the ports of the one signature and what a run gives, as bytes in native order. */
    public interface Model {
        Map<String, Tensor> inputs();

        Map<String, Tensor> outputs();

        Map<String, ByteBuffer> run(Map<String, ByteBuffer> inputs);
    }

    public static Model model;
    public static int open = 0;  // of the stub: interpreters that nobody has closed yet

    public Interpreter(File modelFile, Options options) {
        open++;
    }

    public String[] getSignatureKeys() {
        return new String[] {"serving_default"};
    }

    public String[] getSignatureInputs(String signatureKey) {
        return model.inputs().keySet().toArray(new String[0]);
    }

    public String[] getSignatureOutputs(String signatureKey) {
        return model.outputs().keySet().toArray(new String[0]);
    }

    public Tensor getInputTensorFromSignature(String inputName, String signatureKey) {
        return model.inputs().get(inputName);
    }

    public Tensor getOutputTensorFromSignature(String outputName, String signatureKey) {
        return model.outputs().get(outputName);
    }

    /** As the real one: buffers of the tensor's size, results put into theirs from where these stand. */
    public void runSignature(Map<String, Object> inputs, Map<String, Object> outputs, String signatureKey) {
        Map<String, ByteBuffer> given = new java.util.LinkedHashMap<>();
        for (Map.Entry<String, Object> one : inputs.entrySet()) {
            ByteBuffer buffer = (ByteBuffer) one.getValue();
            if (!buffer.isDirect() || buffer.order() != ByteOrder.nativeOrder()) {
                throw new IllegalArgumentException("the stub wants direct memory in native order: anything else is copied");
            }
            checkSize(one.getKey(), buffer, model.inputs().get(one.getKey()));
            given.put(one.getKey(), buffer.duplicate().order(ByteOrder.nativeOrder()));
        }
        for (Map.Entry<String, ByteBuffer> one : model.run(given).entrySet()) {
            ByteBuffer into = (ByteBuffer) outputs.get(one.getKey());
            checkSize(one.getKey(), into, model.outputs().get(one.getKey()));
            into.put(one.getValue().duplicate());
        }
    }

    private static void checkSize(String name, ByteBuffer buffer, Tensor tensor) {
        int count = 4;
        for (int size : tensor.shape()) {
            count *= size;
        }
        if (buffer.capacity() != count) {
            throw new IllegalArgumentException(name + ": " + buffer.capacity() + " bytes, " + count + " are needed");
        }
    }

    @Override
    public void close() {
        open--;
    }

    public static class Options {
        public Options setNumThreads(int numThreads) {
            return this;
        }

        public Options setUseXNNPACK(boolean useXNNPACK) {
            return this;
        }
    }
}
