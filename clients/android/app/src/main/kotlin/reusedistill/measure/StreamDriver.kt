package reusedistill.measure

import java.util.concurrent.locks.LockSupport

/** Times of the measured chunks of one stream, seconds of `now()`. */
class Series {
    val due = ArrayList<Double>()
    val start = ArrayList<Double>()
    val end = ArrayList<Double>()
    var empty = 0 // measured pushes that gave no frame
    @Volatile var overloaded = false
}

/** How one stream is driven; the same as `reuse_distill.devices.measuring.stream_driver`. */
class Pace(
    val paced: Boolean,
    val periodS: Double,
    val warmupChunks: Int,
    val chunks: Int,
    val untilS: Double = 0.0,
    val phaseS: Double = 0.0,
)

const val OVERLAP_SAMPLES = 80 // a first frame needs 400 samples, later ones 320
const val OVERLAP_S = OVERLAP_SAMPLES / 16000.0
const val HOPELESS_BACKLOG_S = 10.0

fun now(): Double = System.nanoTime() * 1e-9

fun sleepUntil(moment: Double) {
    while (true) {
        val left = moment - now()
        if (left <= 0) return
        LockSupport.parkNanos((left * 1e9).toLong())
    }
}

/** Chunks of `audio` in a circle from `start` on; the first has what a first frame needs beyond its chunk. */
class Cut(private val audio: FloatArray, private val chunkSamples: Int, start: Int = 0) {
    private var at = start
    private var first = true

    fun next(): FloatArray {
        val size = chunkSamples + if (first) OVERLAP_SAMPLES else 0
        first = false
        return FloatArray(size) { audio[(at + it) % audio.size] }.also { at = (at + size) % audio.size }
    }
}

/** Push until the first frames, then the warm-up, then the measured chunks; only these are in `series`. */
fun drive(push: (FloatArray) -> Int, chunks: Cut, pace: Pace, stop: () -> Boolean, series: Series = Series()): Series {
    val origin = now() + OVERLAP_S + pace.phaseS
    var warm = -1 // no frame yet
    var index = 0
    var measuredSince = 0.0
    while (!stop()) {
        val chunk = chunks.next()
        val due = origin + (index + 1) * pace.periodS
        if (pace.paced) sleepUntil(due)
        val start = now()
        val frames = push(chunk)
        val end = now()
        index++
        if (warm < pace.warmupChunks) {
            if (frames > 0 || warm >= 0) warm++
            measuredSince = end
            continue
        }
        if (frames > 0) {
            synchronized(series) {
                series.due += if (pace.paced) due else start
                series.start += start
                series.end += end
            }
        } else {
            series.empty++
        }
        if (pace.paced && end - due > HOPELESS_BACKLOG_S) {
            series.overloaded = true
            break
        }
        if (series.end.size + series.empty >= pace.chunks && end - measuredSince >= pace.untilS) break
    }
    return series
}
