package android.content;

/** The part of Android that the app uses: to compile against where there is no android.jar. */
public class IntentFilter {
    public IntentFilter(String action) {}
}
