package android.widget;

import android.content.Context;
import android.view.View;

/** The part of Android's class that the app uses: to compile against where there is no android.jar. */
public class TextView extends View {
    public TextView(Context context) {}

    public final CharSequence getText() {
        return "";
    }

    public final void setText(CharSequence text) {}
}
