package reusedistill

import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File

/**
 * Streams a recording through a bundle whose steps another program computes, over standard input and output.
 *
 * A request is the number of tensors, then for each its name, size in bytes and bytes; an answer has the type, the
 * number of axes and their sizes in place of the size. Integers are big-endian, tensors as they lie in memory. `file`
 * holds the samples (float32) before, and the features, frame by frame, afterwards.
 */
fun replay(bundle: String, file: String) {
    val manifest = Manifest.read(File(bundle, "manifest.json").readText())
    val recorded = File(file).readBytes()
    val samples = Tensor.zeros(intArrayOf(recorded.size / 4), "float32").also { it.bytes.duplicate().put(recorded) }
    val client = StreamingClient(manifest, PipeEngine(DataInputStream(System.`in`.buffered()), DataOutputStream(System.out)))
    val frames = samples.floats().toList().chunked(777).flatMap { client.push(it.toFloatArray()) } + client.finish()
    check(frames.map { it.index } == frames.indices.toList()) { "frames out of order" }
    val values = frames.flatMap { frame -> frame.features.flatMap { it.toList() } }.toFloatArray()
    File(file).writeBytes(bytes(Tensor.of(values, values.size)))
}

private fun bytes(tensor: Tensor) = ByteArray(tensor.bytes.capacity()).also { tensor.bytes.duplicate().get(it) }

internal class PipeEngine(private val from: DataInputStream, private val to: DataOutputStream) : StepEngine {
    override fun step(inputs: Map<String, Tensor>): Map<String, Tensor> {
        to.writeInt(inputs.size)
        for ((name, tensor) in inputs) {
            to.writeUTF(name)
            to.writeInt(tensor.bytes.capacity())
            to.write(bytes(tensor))
        }
        to.flush()
        return (0 until from.readInt()).associate { from.readUTF() to tensor() }
    }

    private fun tensor(): Tensor {
        val dtype = from.readUTF()
        val found = Tensor.zeros(IntArray(from.readInt()) { from.readInt() }, dtype)
        found.bytes.duplicate().put(ByteArray(found.bytes.capacity()).also(from::readFully))
        return found
    }
}
