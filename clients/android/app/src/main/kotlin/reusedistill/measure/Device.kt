package reusedistill.measure

import java.io.File

/** What stays as it is during a run. */
class Facts(
    val machine: String,
    val processor: String,
    val architecture: String,
    val system: String,
    val engine: String, // version of ONNX Runtime
    val powerMode: String,
)

/** One look at the sensors; null is what the device does not tell. */
class Reading(
    val clockHz: Double? = null,
    val temperatureC: Double? = null,
    val throttledNow: Boolean? = null,
    val powerW: Double? = null,
    var timeS: Double = 0.0,
    var costMs: Double = 0.0,
)

/** The machine that is measured. */
interface Device {
    fun facts(): Facts

    fun read(): Reading

    fun cpuSeconds(): Double
}

/** The folder of one measurement: what `rd-latency` puts there, and what it finds there afterwards. */
class Folder(val path: File) {
    val request = File(path, "request.json")
    val audio = File(path, "audio.f32") // what streams hear, float32 at 16 kHz, little endian
    val selftest = File(path, "selftest.f32") // the bundle's own recording, where it has one
    val manifest = File(path, "bundle/manifest.json")
    val result = File(path, "result.json")
    val features = File(path, "features.b64") // of that recording, float32 [frame, layer, width], little endian

    fun artifact(name: String): File = child(File(path, "bundle"), name)
}

/** The file or folder called `name` directly below `parent`; names come from outside. */
fun child(parent: File, name: String): File {
    require(name.isNotEmpty() && '/' !in name && name != "." && name != "..") { "a name that leads elsewhere: $name" }
    return File(parent, name)
}
