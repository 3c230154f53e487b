package android.content;

import java.io.File;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class Context {
    public static final String POWER_SERVICE = "power";
    public static final String BATTERY_SERVICE = "batterymanager";

    public Object getSystemService(String name) {
        return null;
    }

    public Intent registerReceiver(BroadcastReceiver receiver, IntentFilter filter) {
        return null;
    }

    public File[] getExternalMediaDirs() {
        return new File[0];
    }
}
