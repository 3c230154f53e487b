package reusedistill.measure

import ai.onnxruntime.OrtEnvironment
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import java.io.File

/** A phone: its battery, its thermal status, and the files of its processors that an app may read. */
class AndroidDevice(private val context: Context) : Device {
    private val power = context.getSystemService(Context.POWER_SERVICE) as PowerManager
    private val battery = context.getSystemService(Context.BATTERY_SERVICE) as BatteryManager

    override fun facts() = Facts(
        machine = "${Build.MANUFACTURER} ${Build.MODEL}",
        processor = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.S) Build.SOC_MODEL else Build.HARDWARE,
        architecture = Build.SUPPORTED_ABIS.first(),
        system = androidSystem(),
        engine = OrtEnvironment.getEnvironment().version,
        powerMode = if (power.isPowerSaveMode) "power save" else "normal",
    )

    override fun cpuSeconds() = processSeconds()

    override fun read(): Reading {
        val state = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        return Reading(
            clockHz = Processors.meanClockHz(),
            temperatureC = state?.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, Int.MIN_VALUE)
                ?.takeIf { it != Int.MIN_VALUE }?.let { it / 10.0 },
            throttledNow = if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) {
                power.currentThermalStatus >= PowerManager.THERMAL_STATUS_MODERATE
            } else {
                null
            },
            powerW = state?.let(::watts),
        )
    }

    /** What the battery gives; nothing on a charger, as which a cable to the computer counts. */
    private fun watts(state: Intent): Double? {
        val millivolts = state.getIntExtra(BatteryManager.EXTRA_VOLTAGE, 0)
        val microamperes = battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CURRENT_NOW)
        val discharging = state.getIntExtra(BatteryManager.EXTRA_PLUGGED, -1) == 0
        if (!discharging || millivolts <= 0 || microamperes == Int.MIN_VALUE || microamperes == 0) return null
        return Math.abs(microamperes.toDouble()) * millivolts * 1e-9
    }
}

/** Files of the kernel about processors; not every phone lets an app read them. */
internal object Processors {
    private val root = File("/sys/devices/system/cpu")

    private fun values(name: String): List<Double> = (0 until Runtime.getRuntime().availableProcessors()).mapNotNull {
        runCatching { File(root, "cpu$it/cpufreq/$name").readText().trim().toDouble() }.getOrNull()
    }

    fun meanClockHz(): Double? = values("scaling_cur_freq").takeIf { it.isNotEmpty() }?.let { 1000 * it.average() }

    /** `locked at …` where every core's lowest clock is its highest, or the range. */
    fun clocks(): String {
        val low = values("scaling_min_freq")
        val high = values("scaling_max_freq")
        if (low.isEmpty() || low.size != high.size) return "unmeasured"
        val highest = "%.2f GHz".format(java.util.Locale.ROOT, high.max() / 1e6)
        if (low == high) return "locked at $highest"
        return "not locked (%.2f to $highest)".format(java.util.Locale.ROOT, low.min() / 1e6)
    }

    fun governor(): String =
        runCatching { File(root, "cpu0/cpufreq/scaling_governor").readText().trim() }.getOrDefault("unmeasured")
}
