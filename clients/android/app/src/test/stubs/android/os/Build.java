package android.os;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class Build {
    public static final String MANUFACTURER = "";
    public static final String MODEL = "";
    public static final String HARDWARE = "";
    public static final String SOC_MODEL = "";
    public static final String[] SUPPORTED_ABIS = {""};

    public static class VERSION {
        public static final int SDK_INT = Integer.parseInt("0");
        public static final String RELEASE = "";
    }

    public static class VERSION_CODES {
        public static final int Q = 29;
        public static final int S = 31;
    }
}
