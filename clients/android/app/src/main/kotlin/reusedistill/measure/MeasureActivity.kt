package reusedistill.measure

import android.app.Activity
import android.os.Bundle
import android.view.WindowManager
import android.widget.TextView

/** Says what is going on. It is on the screen so that the system schedules the process as an app in use. */
class MeasureActivity : Activity() {
    private lateinit var text: TextView

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        text = TextView(this)
        setContentView(text)
    }

    /** Show a line of progress; may be called from any thread. */
    fun show(line: String) = runOnUiThread { text.text = line }
}
