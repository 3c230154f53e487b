package android.os;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class PowerManager {
    public static final int THERMAL_STATUS_MODERATE = 2;

    public boolean isPowerSaveMode() {
        return false;
    }

    public int getCurrentThermalStatus() {
        return 0;
    }
}
