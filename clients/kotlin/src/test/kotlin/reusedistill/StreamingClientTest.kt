package reusedistill

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter

const val JSON = """
{"schema_version": 1, "kind": "streaming", "target": "ort", "artifact": "model.ort",
 "layers": [2], "feature_width": 2, "sample_rate_hz": 16000, "hop_samples": 320,
 "receptive_field_samples": 400, "inputs": [], "outputs": [], "parity": {"measured": {"max_abs": 1.5e-06}},
 "geometry": {"chunk_frames": 2, "lookahead_frames": 1, "left_frames": 4, "right_frames": 0},
 "states": [
  {"name": "count", "input": "count", "output": "count_new", "dtype": "float32", "shape": ["B", 1],
   "update": "replace", "axis": 1, "ordered": true, "role": "position"},
  {"name": "ring", "input": "ring", "output": "ring_new", "dtype": "float32", "shape": ["B", 3],
   "update": "append", "axis": 1, "ordered": false, "role": "keys"},
  {"name": "slots", "input": "slots", "output": "slots_new", "dtype": "float32", "shape": ["B", 4],
   "update": "append", "axis": 1, "ordered": true, "role": "values"}]}"""

/** Counts frames through its states; features say what the states held: count, sum of the ring, oldest and newest. */
class CountingEngine : StepEngine {
    val freshSeen = ArrayList<List<Float>>()

    override fun step(inputs: Map<String, Tensor>): Map<String, Tensor> {
        freshSeen += inputs.getValue("fresh").floats().toList()
        val count = inputs.getValue("count").floats()[0]
        val slots = inputs.getValue("slots").floats()
        val rows = Tensor.of(floatArrayOf(count + 1, count + 2), 1, 2)
        val ring = inputs.getValue("ring").floats().sum()
        return mapOf(
            "features" to Tensor.of(floatArrayOf(count, slots[0], ring, slots[3]), 1, 1, 2, 2),
            "count_new" to Tensor.of(floatArrayOf(count + 2), 1, 1),
            "ring_new" to rows,
            "slots_new" to rows,
        )
    }
}

fun client(engine: StepEngine = CountingEngine()) = StreamingClient(Manifest.read(JSON), engine)

fun described(frames: List<Frame>) = frames.map { it.index to it.features.map(FloatArray::toList) }

fun refused(what: String, call: () -> Unit) {
    val said = try { call(); null } catch (error: ClientException) { error.message }
    check(said != null && what in said) { "wanted '$what', got '$said'" }
}

fun same(found: Any?, wanted: Any?) = check(found == wanted) { "wanted $wanted, got $found" }

fun pushesOfAnySizeGiveTheSameFrames() {
    val samples = FloatArray(320 * 7 + 80) { it.toFloat() }
    val results = listOf(1, 97, 320, 5000).map { size ->
        val stream = client()
        val pieces = samples.toList().chunked(size).flatMap { stream.push(it.toFloatArray()) }
        described(pieces + stream.finish())
    }
    same(results[0].map { it.first }, (0..6).toList())
    results.forEach { same(it, results[0]) }
}

fun statesAreReplacedAppendedAndShifted() {
    val frames = client().push(FloatArray(320 * 8 + 80))
    // Fourth step: count is 6; the ring of three holds 4, 5, 6, the four slots 3 to 6, oldest first.
    same(described(frames).drop(5), listOf(5 to listOf(listOf(6f, 3f)), 6 to listOf(listOf(15f, 6f))))
}

fun theEndIsMaskedAndNothingMayFollow() {
    val engine = CountingEngine()
    val stream = client(engine)
    same(stream.push(FloatArray(400 + 320 * 2)).size, 1)
    same(stream.finish().map { it.index }, listOf(1, 2))
    same(engine.freshSeen, listOf(listOf(1f, 1f), listOf(1f, 0f)))
    same(stream.finish().size, 0)
    refused("finished") { stream.push(FloatArray(1)) }
}

fun whatIsTooShortGivesNothing() {
    val stream = client()
    same(stream.push(FloatArray(399)).size + stream.finish().size, 0)
}

fun otherBundlesAreRefused() {
    refused("kind window") { Manifest.read(JSON.replace("\"streaming\"", "\"window\"")) }
    refused("schema version 2") { Manifest.read(JSON.replace("\"schema_version\": 1", "\"schema_version\": 2")) }
    refused("target coreml") { Manifest.read(JSON.replace("\"target\": \"ort\"", "\"target\": \"coreml\"")) }
    refused("without a signature") { Manifest.read(JSON.replace("\"ort\"", "\"litert\"")) }
    refused("open axis L") { Manifest.read(JSON.replace("[\"B\", 4]", "[\"B\", \"L\"]")) }
    refused("update swap") { Manifest.read(JSON.replace("\"replace\"", "\"swap\"")) }
    refused("feature_width is null") { Manifest.read(JSON.replace("feature_width", "width")) }
    refused("dtype int4") { StreamingClient(Manifest.read(JSON.replaceFirst("float32", "int4")), CountingEngine()) }
}

fun jsonIsReadWhole() {
    same(Json.parse(""" {"a": [1, -2.5e-1, true, null, "\u00e9\n\"x\""], "b": {}, "c": []} """),
        mapOf("a" to listOf(1.0, -0.25, true, null, "é\n\"x\""), "b" to mapOf<String, Any?>(), "c" to listOf<Any?>()))
    for (broken in listOf("", "{", "[1,]", "{\"a\" 1}", "[1] x", "nope")) refused("JSON") { Json.parse(broken) }
}

fun rowsAlongAnInnerAxis() {
    val values = FloatArray(12) { it.toFloat() }
    val new = Tensor.of(floatArrayOf(90f, 91f, 92f, 93f), 2, 1, 2)
    val shifted = Tensor.of(values, 2, 3, 2).also { it.shiftIn(new, 1) }
    same(shifted.floats().toList(), listOf(2f, 3f, 4f, 5f, 90f, 91f, 8f, 9f, 10f, 11f, 92f, 93f))
    val ring = Tensor.of(values, 2, 3, 2).also { it.writeRing(new, 1, 1) }
    same(ring.floats().toList(), listOf(0f, 1f, 90f, 91f, 4f, 5f, 6f, 7f, 92f, 93f, 10f, 11f))
    val longer = Tensor.of(FloatArray(16) { 100f + it }, 2, 4, 2)
    for (change in listOf<(Tensor) -> Unit>({ it.shiftIn(longer, 1) }, { it.writeRing(longer, 1, 2) })) {
        val kept = Tensor.of(values, 2, 3, 2).also(change).floats().toList()
        same(kept.take(6).toSet(), setOf(102f, 103f, 104f, 105f, 106f, 107f))
    }
    refused("rows float32 [2, 1, 3]") { ring.writeRing(Tensor.zeros(intArrayOf(2, 1, 3), "float32"), 1, 0) }
}

/** The engine against the surface of ONNX Runtime: names, shapes, types, bytes, and nothing left open. */
fun theEngineWrapsAndCopies() {
    OrtSession.model = OrtSession.Model { inputs ->
        val half = inputs.getValue("state") as OnnxTensor
        same(half.info.type to half.info.shape.toList(), OnnxJavaType.FLOAT16 to listOf(1L, 3L))
        val bytes = ByteBuffer.allocateDirect(6).also { it.put(half.byteBuffer).rewind() }
        mapOf("state_new" to OnnxTensor.createTensor(OrtEnvironment.getEnvironment(), bytes, longArrayOf(3, 1), half.info.type))
    }
    val state = Tensor.zeros(intArrayOf(1, 3), "float16").also { it.bytes.put(4, 7) }
    OrtEngine("model.ort", OrtSession.SessionOptions()).use { engine ->
        val found = engine.step(mapOf("state" to state)).getValue("state_new")
        same(found.dtype to found.shape.toList(), "float16" to listOf(3, 1))
        same(found.bytes.get(4).toInt(), 7)
    }
    same(OnnxTensor.open, 0)
}

class Port(private val sizes: IntArray, private val type: DataType = DataType.FLOAT32) : org.tensorflow.lite.Tensor {
    override fun dataType() = type
    override fun shape() = sizes
}

/** One signature whose step is [CountingEngine]'s: buffers in, buffers out. */
class CountingModel(private val countType: DataType = DataType.FLOAT32) : Interpreter.Model {
    private val inner = CountingEngine()

    override fun inputs() = linkedMapOf<String, org.tensorflow.lite.Tensor>(
        "slots" to Port(intArrayOf(1, 4)), "samples" to Port(intArrayOf(1, 720)), "ring" to Port(intArrayOf(1, 3)),
        "count" to Port(intArrayOf(1, 1), countType), "fresh" to Port(intArrayOf(1, 2)),
    )

    override fun outputs() = linkedMapOf<String, org.tensorflow.lite.Tensor>(
        "ring_new" to Port(intArrayOf(1, 2)), "slots_new" to Port(intArrayOf(1, 2)),
        "features" to Port(intArrayOf(1, 1, 2, 2)), "count_new" to Port(intArrayOf(1, 1)),
    )

    override fun run(inputs: Map<String, ByteBuffer>): Map<String, ByteBuffer> {
        val shapes = inputs()
        val tensors = inputs.mapValues { (name, bytes) -> Tensor(shapes.getValue(name).shape(), "float32", bytes) }
        return inner.step(tensors).mapValues { it.value.bytes.duplicate().order(ByteOrder.nativeOrder()) }
    }
}

/** A LiteRT bundle gives the frames that any other engine gives, by the manifest's names and the file's signature. */
fun litertStreamsByTheManifest() {
    val text = JSON.replace("\"ort\"", "\"litert\"").replace("\"B\"", "1")
    val manifest = Manifest.read(text.replaceFirst("{", "{\"device\": {\"signature\": \"serving_default\"},"))
    same(manifest.signature, "serving_default")
    val samples = FloatArray(320 * 7 + 80) { it.toFloat() }
    val expected = client().let { it.push(samples) + it.finish() }
    Interpreter.model = CountingModel()
    LitertEngine(File(manifest.artifact), Interpreter.Options().setNumThreads(1), manifest.signature!!).use { engine ->
        repeat(2) { // streams share it
            val frames = StreamingClient(manifest, engine).let { it.push(samples) + it.finish() }
            same(described(frames), described(expected))
        }
        refused("does not have") { engine.step(mapOf()) }
        refused("the file takes float32 [1, 4]") { engine.step(mapOf("slots" to Tensor.zeros(intArrayOf(1, 5), "float32"))) }
        refused("float16") { engine.step(mapOf("slots" to Tensor.zeros(intArrayOf(1, 4), "float16"))) }
    }
    refused("no signature main") { LitertEngine(File("model.tflite"), Interpreter.Options(), "main") }
    Interpreter.model = CountingModel(DataType.INT8)
    refused("count is INT8") { LitertEngine(File("model.tflite"), Interpreter.Options(), "serving_default") }
    same(Interpreter.open, 0)
}

fun main(words: Array<String>) {
    if (words.isNotEmpty()) return replay(words[0], words[1])
    val tests = listOf(
        ::pushesOfAnySizeGiveTheSameFrames, ::statesAreReplacedAppendedAndShifted, ::theEndIsMaskedAndNothingMayFollow,
        ::whatIsTooShortGivesNothing, ::otherBundlesAreRefused, ::jsonIsReadWhole, ::rowsAlongAnInnerAxis,
        ::theEngineWrapsAndCopies, ::litertStreamsByTheManifest,
    )
    for (test in tests) test().also { println("ok ${test.name}") }
}
