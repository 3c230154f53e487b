package reusedistill.measure

import reusedistill.ClientException
import reusedistill.Fields
import reusedistill.Json

/** The workload, as `rd-latency` sends it (`reuse_distill.devices.measuring.measurement`). */
class Request private constructor(val fields: Map<*, *>) {
    private val data = Fields(fields)
    val mode = data.string("mode")
    val streams = data.int("streams")
    val seconds = data.double("seconds")
    val warmupChunks = data.int("warmup_chunks")
    val soakS = data.double("soak_s")
    val threads = data.int("threads")
    val provider = data.string("provider")
    val coolBelowC = data.double("cool_below_c")
    val coolDownS = data.double("cool_down_s")
    val chunks = data.int("chunks") // measured ones of every stream
    val leastS = data.double("least_s") // that the measured part lasts

    init {
        if (mode != "paced" && mode != "back-to-back") throw ClientException("mode $mode: paced or back-to-back")
        if (streams !in 1..64 || threads !in 1..64) throw ClientException("$streams streams, $threads threads: 1 to 64")
    }

    companion object {
        /** `{"request": …, "chunks": …, "least_s": …}`: the request, and the length that follows from it. */
        fun read(text: String): Request {
            val whole = Json.parse(text) as? Map<*, *> ?: throw ClientException("request.json is no object")
            val asked = whole["request"] as? Map<*, *> ?: throw ClientException("request.json has no request")
            return Request(asked + mapOf("chunks" to whole["chunks"], "least_s" to whole["least_s"]))
        }
    }
}
