package android.os;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class BatteryManager {
    public static final String EXTRA_TEMPERATURE = "temperature";
    public static final String EXTRA_VOLTAGE = "voltage";
    public static final String EXTRA_PLUGGED = "plugged";
    public static final int BATTERY_PROPERTY_CURRENT_NOW = 2;

    public int getIntProperty(int id) {
        return 0;
    }
}
