package reusedistill.measure

import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File
import java.net.Socket
import reusedistill.PipeEngine

/**
 * The app's measurement without a phone: PORT FOLDER. Steps are computed by another program on that port of this
 * machine, as `clients/kotlin`'s Replay has them computed.
 */
fun main(words: Array<String>) {
    val socket = Socket("127.0.0.1", words[0].toInt()).apply { tcpNoDelay = true }
    val input = DataInputStream(socket.getInputStream().buffered())
    val output = DataOutputStream(socket.getOutputStream().buffered())
    socket.use { Measurement(Folder(File(words[1])), ThisMachine(), { _, _, _ -> PipeEngine(input, output) }, ::println).run() }
}

/** A machine with one sensor, which shows 41 degrees. */
private class ThisMachine : Device {
    override fun facts() = Facts("Test Phone", "Test Processor", "x86_64", "JVM ${System.getProperty("java.version")}", "0", "normal")

    override fun read() = Reading(temperatureC = 41.0, throttledNow = false)

    override fun cpuSeconds() = ProcessHandle.current().info().totalCpuDuration().get().toMillis() / 1000.0
}
