package reusedistill.measure

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import java.time.Instant
import java.time.temporal.ChronoUnit
import java.util.Base64
import java.util.concurrent.atomic.AtomicReference
import reusedistill.ClientException
import reusedistill.Frame
import reusedistill.Manifest
import reusedistill.StepEngine
import reusedistill.StreamingClient
import kotlin.concurrent.thread

private const val SENSOR_PERIOD_MS = 1000L
private const val MAX_SILENT_S = 10.0
private const val OVERHEAD_PUSHES = 2000
private const val REFERENCE_VALUES = 20_000
private const val REFERENCE_REPEATS = 61

/**
 * One measurement, from the request in `folder` to `result.json` beside it: raw times, readings and what the device is.
 * Percentiles, throttling and energy follow from these and are computed by `rd-latency`, which also compares the
 * features of the bundle's own recording with what they have to be.
 */
class Measurement(
    private val folder: Folder,
    private val device: Device,
    private val open: (File, Manifest, Request) -> StepEngine,
    private val progress: (String) -> Unit,
) {
    private val request = Request.read(folder.request.readText())
    private val manifest = Manifest.read(folder.manifest.readText())
    private val audio = floats(folder.audio)
    private val chunkSamples = manifest.hopSamples * manifest.geometry.chunkFrames
    private val periodS = chunkSamples / manifest.sampleRateHz.toDouble()

    fun run() {
        val start = coolDown()
        val referenceBefore = referenceMs()
        progress("loading the bundle")
        val artifact = folder.artifact(manifest.artifact)
        val loading = now()
        val engine = open(artifact, manifest, request)
        val loadMs = 1000 * (now() - loading)
        val overhead = overhead()
        progress("first frame")
        val firstFrameMs = firstFrameMs(engine)
        val runs = Runs(engine)
        val peakBytes = peakBytes()
        if (folder.selftest.isFile) {
            progress("the bundle's own recording")
            folder.features.writeText(recordingFeatures(engine))
        }
        val pushed = runs.series.sumOf { it.end.size + it.empty + request.warmupChunks + 1 }
        val document = mapOf(
            "bundle" to mapOf(
                "name" to "bundle",
                "kind" to manifest.kind,
                "target" to manifest.target,
                "precision" to "",
                "artifact_sha256" to sha256(artifact),
                "chunk_frames" to manifest.geometry.chunkFrames,
                "worst_latency_ms" to 0.0,
            ),
            "request" to request.fields.filterKeys { it != "chunks" && it != "least_s" },
            "context" to context(),
            "settings" to mapOf(
                "governor" to Processors.governor(),
                "clocks" to Processors.clocks(),
                "power_mode" to device.facts().powerMode,
            ),
            "metrics" to mapOf(
                "load" to loadMs,
                "first_frame" to firstFrameMs,
                "peak_memory" to peakBytes,
                "artifact_size" to artifact.length(),
                "cpu_rtf" to runs.cpuS / (pushed * periodS),
            ),
            "samples" to runs.series.map { one ->
                mapOf(
                    "at_s" to one.end.map { it - runs.began },
                    "latency_ms" to one.end.indices.map { 1000 * (one.end[it] - one.due[it]) },
                    "service_ms" to one.end.indices.map { 1000 * (one.end[it] - one.start[it]) },
                )
            },
            "readings" to runs.readings.map(::reading),
            "overhead" to overhead,
            "throttling" to "unmeasured",
            "energy_source" to if (runs.readings.any { it.powerW != null }) "battery" else "unmeasured",
            "taken_at" to Instant.now().truncatedTo(ChronoUnit.SECONDS).toString(),
            "notes" to runs.notes(),
            "details" to mapOf(
                "reference_ms" to minOf(referenceBefore, referenceMs()),
                "start_temperature_c" to start.temperatureC,
                "pushes_without_frames" to runs.series.sumOf { it.empty },
            ),
        )
        val text = jsonText(document)
        File(folder.path, "result.part").apply { writeText(text) }.renameTo(folder.result)
        progress("done")
    }

    /** All streams at once, a thread each; this one reads the sensors once a second. */
    private inner class Runs(engine: StepEngine) {
        val series = List(request.streams) { Series() }
        val readings = ArrayList<Reading>()
        val began = now()
        val cpuS: Double

        init {
            val failure = AtomicReference<Throwable?>()
            val cpuBefore = device.cpuSeconds()
            val threads = series.mapIndexed { index, into ->
                val client = StreamingClient(manifest, engine)
                val phaseS = periodS * index / request.streams
                val pace = Pace(
                    request.mode == "paced", periodS, request.warmupChunks, request.chunks, request.leastS, phaseS,
                )
                val from = audio.size / request.streams * index / manifest.hopSamples * manifest.hopSamples
                thread(name = "stream $index") {
                    try {
                        drive({ client.push(it).size }, Cut(audio, chunkSamples, from), pace, { failure.get() != null }, into)
                    } catch (error: Throwable) {
                        failure.set(error)
                    }
                }
            }
            readings += timedReading(0.0)
            while (threads.any { it.isAlive }) {
                threads.first { it.isAlive }.join(SENSOR_PERIOD_MS)
                readings += timedReading(now() - began)
                progress("${series.sumOf { it.end.size } / request.streams} of ${request.chunks} chunks")
            }
            cpuS = device.cpuSeconds() - cpuBefore
            failure.get()?.let { throw it }
            if (series.all { it.end.isEmpty() }) throw ClientException("no measured chunk gave a frame")
        }

        fun notes(): List<String> =
            if (series.none { it.overloaded }) emptyList()
            else listOf("overloaded: the streams fell 10 s behind the microphone and the run was ended")
    }

    /** The reading of the start, once the device is no hotter than the request says. */
    private fun coolDown(): Reading {
        val began = now()
        while (true) {
            val reading = timedReading(0.0)
            val celsius = reading.temperatureC
            if (request.coolBelowC == 0.0) return reading
            if (celsius == null) throw ClientException("--cool-below: this device tells no temperature")
            if (celsius <= request.coolBelowC) return reading
            if (now() - began >= request.coolDownS) {
                throw ClientException("the device has $celsius °C after cooling down, the gate is ${request.coolBelowC} °C")
            }
            progress("cooling down: $celsius °C")
            sleepUntil(now() + 1.0)
        }
    }

    private fun firstFrameMs(engine: StepEngine): Double {
        val client = StreamingClient(manifest, engine)
        val chunks = Cut(audio, chunkSamples)
        val began = now()
        for (index in 0..(MAX_SILENT_S / periodS).toInt()) {
            sleepUntil(began + OVERLAP_S + (index + 1) * periodS)
            if (client.push(chunks.next()).isNotEmpty()) return 1000 * (now() - began)
        }
        throw ClientException("the stream gave no frame after $MAX_SILENT_S s of audio")
    }

    /** The same loop around nothing, and one reading of the sensors. */
    private fun overhead(): Map<String, Double> {
        val pace = Pace(paced = false, periodS = 1.0, warmupChunks = 100, chunks = OVERHEAD_PUSHES)
        val ends = drive({ it.size }, Cut(audio, chunkSamples), pace, { false }).end
        val gaps = ends.zipWithNext { a, b -> 1000 * (b - a) }.sorted()
        val costs = List(5) { timedReading(0.0).costMs }.sorted()
        return mapOf(
            "per_chunk_p50_ms" to gaps[gaps.size / 2],
            "per_chunk_p99_ms" to gaps[gaps.size * 99 / 100],
            "sensor_reading_ms" to costs[costs.size / 2],
        )
    }

    /** Features of the bundle's own recording as text: `rd-latency` knows what they have to be. */
    private fun recordingFeatures(engine: StepEngine): String {
        val client = StreamingClient(manifest, engine)
        val frames: List<Frame> = client.push(floats(folder.selftest)) + client.finish()
        val size = 4 * manifest.layers * manifest.featureWidth
        val bytes = ByteBuffer.allocate(frames.size * size).order(ByteOrder.LITTLE_ENDIAN)
        for (frame in frames) for (row in frame.features) for (value in row) bytes.putFloat(value)
        return Base64.getEncoder().encodeToString(bytes.array())
    }

    private fun timedReading(timeS: Double): Reading {
        val began = now()
        return device.read().also {
            it.timeS = timeS
            it.costMs = 1000 * (now() - began)
        }
    }

    private fun reading(one: Reading) = mapOf(
        "time_s" to one.timeS,
        "clock_hz" to one.clockHz,
        "temperature_c" to one.temperatureC,
        "throttle_events" to null,
        "throttled_now" to one.throttledNow,
        "power_w" to one.powerW,
        "energy_j" to null,
        "cost_ms" to one.costMs,
    )

    private fun context(): Map<String, Any?> {
        val facts = device.facts()
        return mapOf(
            "machine" to facts.machine,
            "processor" to facts.processor,
            "architecture" to facts.architecture,
            "cores" to Runtime.getRuntime().availableProcessors(),
            "memory_bytes" to (kilobytes("/proc/meminfo", "MemTotal") ?: 0L),
            "system" to facts.system,
            "kernel" to (System.getProperty("os.version") ?: "unmeasured"),
            "python" to "",
            "packages" to mapOf("onnxruntime" to facts.engine),
            "board_release" to "unmeasured",
            "virtualised" to "unmeasured",
            "load_before" to null,
        )
    }

    private fun peakBytes(): Long? = kilobytes("/proc/self/status", "VmHWM")

    private fun kilobytes(file: String, name: String): Long? = runCatching {
        File(file).readLines().first { it.startsWith("$name:") }.filter(Char::isDigit).toLong() * 1024
    }.getOrNull()

    private fun sha256(file: File): String {
        val digest = MessageDigest.getInstance("SHA-256")
        file.inputStream().use { input ->
            val block = ByteArray(1 shl 16)
            while (true) {
                val count = input.read(block)
                if (count < 0) break
                digest.update(block, 0, count)
            }
        }
        return digest.digest().joinToString("") { "%02x".format(it) }
    }

    private fun floats(file: File): FloatArray {
        val bytes = ByteBuffer.wrap(file.readBytes()).order(ByteOrder.LITTLE_ENDIAN)
        return FloatArray(bytes.remaining() / 4).also { bytes.asFloatBuffer().get(it) }
    }
}

/** Median time of a fixed piece of work that has nothing to do with the bundle, ms: how fast the machine is now. */
internal fun referenceMs(): Double {
    val random = java.util.Random(0)
    val values = FloatArray(REFERENCE_VALUES) { random.nextGaussian().toFloat() }
    val times = List(REFERENCE_REPEATS) {
        val began = now()
        values.copyOf().sort()
        1000 * (now() - began)
    }
    return times.sorted()[REFERENCE_REPEATS / 2]
}
