package ai.onnxruntime;

/** The part of the onnxruntime-android API that the engine uses: to compile and test it without the package. */
public final class OrtEnvironment {
    public static OrtEnvironment getEnvironment() {
        return new OrtEnvironment();
    }

    public OrtSession createSession(String modelPath, OrtSession.SessionOptions options) throws OrtException {
        return new OrtSession(modelPath, options);
    }
}
