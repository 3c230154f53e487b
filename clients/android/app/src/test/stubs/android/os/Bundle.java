package android.os;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class Bundle {
    public String getString(String key) {
        return null;
    }

    public void putString(String key, String value) {}
}
