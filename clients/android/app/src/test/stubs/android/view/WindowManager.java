package android.view;

/** The part of Android that the app uses: to compile against where there is no android.jar. */
public interface WindowManager {
    class LayoutParams {
        public static final int FLAG_KEEP_SCREEN_ON = 0x80;
    }
}
