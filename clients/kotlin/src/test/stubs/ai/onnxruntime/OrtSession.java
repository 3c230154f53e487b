package ai.onnxruntime;

import java.util.Iterator;
import java.util.Map;

public class OrtSession implements AutoCloseable {
    /** Of the stub: what a run gives. */
    public interface Model {
        Map<String, OnnxValue> run(Map<String, ? extends OnnxTensorLike> inputs) throws OrtException;
    }

    public static Model model;

    OrtSession(String modelPath, SessionOptions options) {}

    public Result run(Map<String, ? extends OnnxTensorLike> inputs) throws OrtException {
        return new Result(model.run(inputs));
    }

    @Override
    public void close() throws OrtException {}

    public static class SessionOptions implements AutoCloseable {
        @Override
        public void close() {}
    }

    public static class Result implements AutoCloseable, Iterable<Map.Entry<String, OnnxValue>> {
        private final Map<String, OnnxValue> values;

        Result(Map<String, OnnxValue> values) {
            this.values = values;
        }

        @Override
        public Iterator<Map.Entry<String, OnnxValue>> iterator() {
            return values.entrySet().iterator();
        }

        @Override
        public void close() {
            values.values().forEach(OnnxValue::close);
        }
    }
}
