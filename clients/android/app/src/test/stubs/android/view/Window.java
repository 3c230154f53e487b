package android.view;

/** The part of Android that the app uses: to compile against where there is no android.jar. */
public class Window {
    public void addFlags(int flags) {}
}
