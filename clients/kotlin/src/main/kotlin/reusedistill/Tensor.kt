package reusedistill

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** A contiguous tensor in memory that the engine reads where it is. States are moved as bytes and never converted. */
class Tensor(val shape: IntArray, val dtype: String, val bytes: ByteBuffer) {
    val elementBytes = elementBytes(dtype)

    init {
        require(bytes.capacity() == count(shape) * elementBytes) { "${bytes.capacity()} bytes for ${shape.toList()}" }
    }

    /** The elements of a float32 tensor. */
    fun floats(): FloatArray {
        if (dtype != "float32") throw ClientException("$dtype where float32 is needed")
        val view = bytes.duplicate().order(ByteOrder.nativeOrder()).rewind() as ByteBuffer
        return FloatArray(count(shape)).also { view.asFloatBuffer().get(it) }
    }

    /** Write the rows of `new` over those from `slot` on, around the end: a ring. */
    fun writeRing(new: Tensor, axis: Int, slot: Int) {
        val length = shape[axis]
        val rows = rows(new, axis)
        val first = maxOf(0, rows - length) // a chunk longer than the ring leaves its newest rows
        for (row in first until rows) copyRow(new, row, (slot + row) % length, axis)
    }

    /** Move the rows to the front by as many as `new` has, and put those at the end: oldest first. */
    fun shiftIn(new: Tensor, axis: Int) {
        val length = shape[axis]
        val rows = rows(new, axis)
        for (row in 0 until maxOf(0, length - rows)) copyRow(this, row + rows, row, axis)
        for (row in maxOf(0, rows - length) until rows) copyRow(new, row, length - rows + row, axis)
    }

    private fun rows(new: Tensor, axis: Int): Int {
        val same = new.shape.indices.all { it == axis || new.shape[it] == shape[it] }
        if (!same || new.shape.size != shape.size || new.dtype != dtype) {
            throw ClientException("rows ${new.dtype} ${new.shape.toList()} for a state $dtype ${shape.toList()}")
        }
        return new.shape[axis]
    }

    private fun copyRow(source: Tensor, from: Int, to: Int, axis: Int) {
        val size = shape.drop(axis + 1).fold(elementBytes, Int::times)
        val out = bytes.duplicate()
        for (block in 0 until shape.take(axis).fold(1, Int::times)) {
            val start = (block * source.shape[axis] + from) * size
            val part = source.bytes.duplicate().apply { limit(start + size).position(start) }
            out.position((block * shape[axis] + to) * size)
            out.put(part)
        }
    }

    companion object {
        fun zeros(shape: IntArray, dtype: String): Tensor =
            Tensor(shape, dtype, memory(count(shape) * elementBytes(dtype)))

        fun of(values: FloatArray, vararg shape: Int): Tensor =
            zeros(shape, "float32").also { it.bytes.duplicate().order(ByteOrder.nativeOrder()).asFloatBuffer().put(values) }

        private fun memory(size: Int): ByteBuffer = ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder())

        private fun count(shape: IntArray): Int = shape.fold(1, Int::times)

        fun elementBytes(dtype: String): Int = when (dtype) {
            "float32" -> 4
            "float16" -> 2
            else -> throw ClientException("dtype $dtype")
        }
    }
}
