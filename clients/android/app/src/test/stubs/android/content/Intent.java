package android.content;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class Intent {
    public static final String ACTION_BATTERY_CHANGED = "android.intent.action.BATTERY_CHANGED";
    public static final int FLAG_ACTIVITY_NEW_TASK = 0x10000000;

    public Intent(Context context, Class<?> type) {}

    public Intent addFlags(int flags) {
        return this;
    }

    public int getIntExtra(String name, int defaultValue) {
        return defaultValue;
    }
}
