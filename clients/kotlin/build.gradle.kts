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

// LiteRT's classes come in an AAR, which a JVM module does not take: -PlitertClasses=classes.jar, or it is left out.
val litertClasses = providers.gradleProperty("litertClasses")
if (litertClasses.isPresent) {
    dependencies { compileOnly(files(litertClasses)) }
} else {
    kotlin.sourceSets.named("main") { kotlin.exclude("**/LitertEngine.kt") }
}
