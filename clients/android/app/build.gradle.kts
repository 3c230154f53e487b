plugins {
    id("com.android.application")
    kotlin("android")
}

android {
    namespace = "reusedistill.measure"
    compileSdk = 35

    defaultConfig {
        applicationId = "reusedistill.measure"
        minSdk = 26
        targetSdk = 35
        versionCode = 1
        versionName = "1"
    }

    buildTypes {
        // What is measured is compiled as a shipped app is; signed with the debug key, so that it installs as it is.
        getByName("release") {
            isMinifyEnabled = false
            signingConfig = signingConfigs.getByName("debug")
        }
    }

    // The streaming client is the one that apps use: clients/kotlin.
    sourceSets.getByName("main").kotlin.srcDir("../../kotlin/src/main/kotlin")

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    jvmToolchain(17)
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.23.2")
    implementation("com.google.ai.edge.litert:litert:1.4.0") // its classes are org.tensorflow.lite
}
