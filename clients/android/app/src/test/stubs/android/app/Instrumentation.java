package android.app;

import android.content.Context;
import android.content.Intent;
import android.os.Bundle;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class Instrumentation {
    public void onCreate(Bundle arguments) {}

    public void onStart() {}

    public void start() {}

    public void finish(int resultCode, Bundle results) {}

    public Context getTargetContext() {
        return null;
    }

    public Activity startActivitySync(Intent intent) {
        return null;
    }
}
