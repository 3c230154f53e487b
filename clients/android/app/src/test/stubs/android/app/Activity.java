package android.app;

import android.content.Context;
import android.os.Bundle;
import android.view.View;
import android.view.Window;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class Activity extends Context {
    public static final int RESULT_OK = -1;

    protected void onCreate(Bundle savedInstanceState) {}

    public Window getWindow() {
        return new Window();
    }

    public void setContentView(View view) {}

    public final void runOnUiThread(Runnable action) {}

    public void finish() {}
}
