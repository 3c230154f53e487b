package android.os;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class Process {
    public static final long getElapsedCpuTime() {
        return 0;
    }
}
