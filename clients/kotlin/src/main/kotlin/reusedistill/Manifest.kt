package reusedistill

/** What went wrong, in words. */
class ClientException(message: String) : Exception(message)

/** One state: zeros at the start of a stream, updated after every step. */
class StateDescription(
    val name: String,
    val input: String,
    val output: String,
    val dtype: String,
    val shape: IntArray, // an open number of streams is 1
    val update: String, // replace: the output is the next state; append: the output holds new rows
    val axis: Int,
    val ordered: Boolean, // whether rows stand oldest first
)

/** Frames of context: chunk C, look-ahead R. */
class Geometry(val chunkFrames: Int, val lookaheadFrames: Int)

/** What a bundle's `manifest.json` tells a streaming client. */
class Manifest private constructor(data: Fields) {
    val schemaVersion = data.int("schema_version")
    val kind = data.string("kind")
    val target = data.string("target")
    val artifact = data.string("artifact")
    val layers = data.list("layers").size
    val featureWidth = data.int("feature_width")
    val sampleRateHz = data.int("sample_rate_hz")
    val hopSamples = data.int("hop_samples")
    val receptiveFieldSamples = data.int("receptive_field_samples")
    val geometry = data.fields("geometry").let { Geometry(it.int("chunk_frames"), it.int("lookahead_frames")) }
    val states = data.list("states").map { state(Fields(it)) }
    val signature: String? = data.fieldsOrNull("device")?.stringOrNull("signature") // of a LiteRT file

    init {
        if (schemaVersion != 1) throw ClientException("schema version $schemaVersion, this client reads 1")
        if (kind != "streaming") throw ClientException("a bundle of kind $kind, this client streams")
        if (target !in TARGETS) throw ClientException("target $target, this client runs ${TARGETS.joinToString(", ")}")
        if (target == LITERT && signature == null) throw ClientException("a LiteRT bundle without a signature")
    }

    private fun state(data: Fields): StateDescription {
        val update = data.string("update")
        if (update !in listOf("replace", "append")) throw ClientException("update $update")
        return StateDescription(
            data.string("name"),
            data.string("input"),
            data.string("output"),
            data.string("dtype"),
            sizes(data.list("shape")),
            update,
            data.int("axis"),
            data.boolean("ordered"),
        )
    }

    /** Only the number of streams, the first axis, may be open: this client has one. */
    private fun sizes(shape: List<Any?>): IntArray = IntArray(shape.size) { axis ->
        val size = shape[axis]
        if (size is Double) size.toInt() else if (axis == 0) 1 else throw ClientException("open axis $size")
    }

    companion object {
        const val LITERT = "litert" // by LitertEngine; the others by OrtEngine
        val TARGETS = listOf("onnx", "ort", LITERT)

        fun read(text: String): Manifest = Manifest(Fields(Json.parse(text)))
    }
}

/** An object of the manifest, whose fields have to be there and of the type asked for. */
internal class Fields(value: Any?) {
    private val map = value as? Map<*, *> ?: throw ClientException("an object expected, found $value")

    fun string(key: String): String = get(key)
    fun boolean(key: String): Boolean = get(key)
    fun int(key: String): Int = get<Double>(key).toInt()
    fun double(key: String): Double = get(key)
    fun list(key: String): List<Any?> = get(key)
    fun fields(key: String): Fields = Fields(map[key])
    fun fieldsOrNull(key: String): Fields? = map[key]?.let { Fields(it) }
    fun stringOrNull(key: String): String? = if (map[key] == null) null else string(key)

    private inline fun <reified T> get(key: String): T =
        map[key] as? T ?: throw ClientException("manifest: $key is ${map[key]}")
}
