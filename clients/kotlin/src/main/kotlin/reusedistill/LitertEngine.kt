package reusedistill

import java.io.File
import java.nio.ByteOrder
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter

/**
 * A step by LiteRT, from a `.tflite` file. Streams may share one engine: an interpreter has one working memory, so that
 * its calls are made in turn. Names and states are the manifest's; shapes are those of the file, which has one stream.
 */
class LitertEngine(
    artifact: File,
    options: Interpreter.Options,
    private val signature: String,
) : StepEngine, AutoCloseable {
    private val interpreter = Interpreter(artifact, options)
    private val inputShapes: Map<String, IntArray>
    private val outputShapes: Map<String, IntArray>

    init {
        try {
            val known = interpreter.signatureKeys.toList()
            if (signature !in known) throw ClientException("${artifact.name}: no signature $signature, it has $known")
            inputShapes = interpreter.getSignatureInputs(signature).associateWith { name ->
                interpreter.getInputTensorFromSignature(name, signature).let { shape(name, it.dataType(), it.shape()) }
            }
            outputShapes = interpreter.getSignatureOutputs(signature).associateWith { name ->
                interpreter.getOutputTensorFromSignature(name, signature).let { shape(name, it.dataType(), it.shape()) }
            }
        } catch (error: Throwable) {
            interpreter.close()
            throw error
        }
    }

    override fun step(inputs: Map<String, Tensor>): Map<String, Tensor> {
        val given = inputShapes.entries.associate { (name, shape) -> name to bytes(name, shape, inputs[name]) }
        val results = outputShapes.mapValues { Tensor.zeros(it.value, "float32") }
        val into = results.mapValues { it.value.bytes.duplicate().order(ByteOrder.nativeOrder()) as Any }
        synchronized(interpreter) { interpreter.runSignature(given, into, signature) }
        return results
    }

    override fun close() = interpreter.close()

    /** No copy on this side: the tensor's memory is direct and in native order. */
    private fun bytes(name: String, shape: IntArray, tensor: Tensor?): Any {
        if (tensor == null) throw ClientException("the file takes $name, which the client does not have")
        if (tensor.dtype != "float32" || !tensor.shape.contentEquals(shape)) {
            val found = "${tensor.dtype} ${tensor.shape.toList()}"
            throw ClientException("$name is $found, the file takes float32 ${shape.toList()}")
        }
        return tensor.bytes.duplicate().order(ByteOrder.nativeOrder())
    }

    private fun shape(name: String, type: DataType, shape: IntArray): IntArray {
        if (type != DataType.FLOAT32) throw ClientException("$name is $type, this client hands over float32")
        return shape
    }
}
