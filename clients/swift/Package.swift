// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "ReuseDistill",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "ReuseDistill", targets: ["ReuseDistill"])],
    targets: [
        .target(name: "ReuseDistill"),
        .testTarget(name: "ReuseDistillTests", dependencies: ["ReuseDistill"]),
    ]
)
