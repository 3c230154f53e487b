package reusedistill.measure

import ai.onnxruntime.OrtSession
import android.app.Activity
import android.app.Instrumentation
import android.content.Intent
import android.os.Build
import android.os.Bundle
import android.os.Process
import java.io.File
import org.tensorflow.lite.Interpreter
import reusedistill.LitertEngine
import reusedistill.Manifest
import reusedistill.OrtEngine
import reusedistill.StepEngine

/**
 * What `rd-latency` starts: `am instrument -w -e folder FOLDER reusedistill.measure/.MeasureInstrumentation` runs one
 * measurement and ends with it. FOLDER is one of the app's media folder, with the request and the bundle in it.
 */
class MeasureInstrumentation : Instrumentation() {
    private lateinit var arguments: Bundle

    override fun onCreate(arguments: Bundle) {
        super.onCreate(arguments)
        this.arguments = arguments
        start()
    }

    override fun onStart() {
        super.onStart()
        val answer = Bundle()
        try {
            val name = arguments.getString("folder") ?: throw IllegalArgumentException("-e folder FOLDER is missing")
            val folder = Folder(child(targetContext.externalMediaDirs.first(), name))
            val activity = startActivitySync(
                Intent(targetContext, MeasureActivity::class.java).addFlags(Intent.FLAG_ACTIVITY_NEW_TASK),
            ) as MeasureActivity
            Measurement(folder, AndroidDevice(targetContext), ::engine, activity::show).run()
            activity.finish()
            answer.putString("rd_latency", "done")
        } catch (error: Throwable) {
            answer.putString("rd_latency", "failed: ${error.message ?: error}")
        }
        finish(Activity.RESULT_OK, answer)
    }

    private fun engine(artifact: File, manifest: Manifest, request: Request): StepEngine =
        if (manifest.target == Manifest.LITERT) litert(artifact, manifest, request) else onnxRuntime(artifact, request)

    private fun litert(artifact: File, manifest: Manifest, request: Request): LitertEngine {
        if (request.provider !in listOf("auto", "cpu", "xnnpack")) {
            throw IllegalArgumentException("provider ${request.provider}: auto, cpu or xnnpack with LiteRT")
        }
        val signature = manifest.signature ?: throw IllegalArgumentException("a LiteRT bundle without a signature")
        return LitertEngine(artifact, Interpreter.Options().setNumThreads(request.threads), signature)
    }

    private fun onnxRuntime(artifact: File, request: Request): OrtEngine {
        val options = OrtSession.SessionOptions().apply { setIntraOpNumThreads(request.threads) }
        when (request.provider) {
            "auto", "cpu" -> Unit
            "xnnpack" -> options.addXnnpack(mapOf("intra_op_num_threads" to request.threads.toString()))
            "nnapi" -> options.addNnapi()
            else -> throw IllegalArgumentException("provider ${request.provider}: auto, cpu, xnnpack or nnapi")
        }
        return OrtEngine(artifact.path, options)
    }
}

/** The processor time of this process, seconds. */
internal fun processSeconds(): Double = Process.getElapsedCpuTime() / 1000.0

/** Board and system as `rd-latency` names them. */
internal fun androidSystem(): String = "Android ${Build.VERSION.RELEASE} (API ${Build.VERSION.SDK_INT})"
