plugins {
    kotlin("jvm") version "2.0.21"
}

kotlin {
    jvmToolchain(17)
}

repositories {
    google()
    mavenCentral()
}

dependencies {
    compileOnly("com.microsoft.onnxruntime:onnxruntime:1.20.0") // the app brings onnxruntime-android
}
