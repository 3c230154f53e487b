package reusedistill

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.nio.ByteOrder

/** A step by ONNX Runtime, from an `.ort` or `.onnx` file. Streams may share one engine; its calls are made in turn. */
class OrtEngine(
    artifact: String,
    options: OrtSession.SessionOptions,
    private val environment: OrtEnvironment = OrtEnvironment.getEnvironment(),
) : StepEngine, AutoCloseable {
    private val session: OrtSession = environment.createSession(artifact, options)

    override fun step(inputs: Map<String, Tensor>): Map<String, Tensor> {
        val values = LinkedHashMap<String, OnnxTensor>()
        try {
            for ((name, tensor) in inputs) values[name] = wrapped(tensor)
            session.run(values).use { result ->
                return result.associate { (name, value) -> name to copied(value as OnnxTensor) }
            }
        } finally {
            values.values.forEach { it.close() }
        }
    }

    override fun close() = session.close()

    /** No copy: the tensor's memory is direct and in native order. */
    private fun wrapped(tensor: Tensor): OnnxTensor {
        val shape = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }
        val type = if (tensor.dtype == "float16") OnnxJavaType.FLOAT16 else OnnxJavaType.FLOAT
        return OnnxTensor.createTensor(environment, tensor.bytes.duplicate().order(ByteOrder.nativeOrder()), shape, type)
    }

    private fun copied(value: OnnxTensor): Tensor {
        val dtype = when (val type = value.info.type) {
            OnnxJavaType.FLOAT -> "float32"
            OnnxJavaType.FLOAT16 -> "float16"
            else -> throw ClientException("an output of type $type")
        }
        val shape = IntArray(value.info.shape.size) { value.info.shape[it].toInt() }
        return Tensor.zeros(shape, dtype).also { it.bytes.duplicate().put(value.byteBuffer) }
    }
}
