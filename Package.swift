// swift-tools-version: 6.3
import PackageDescription

/// Settings of every target of ours: strict memory safety, and no warning passes.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .strictMemorySafety(),
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
]

/// Settings of generated code, which is not ours to shape.
let generated: [SwiftSetting] = [.swiftLanguageMode(.v6)]

/// Settings of tests.
let tests: [SwiftSetting] = [.swiftLanguageMode(.v6), .enableUpcomingFeature("ExistentialAny")]

let protobuf: Target.Dependency = .product(name: "SwiftProtobuf", package: "swift-protobuf")
let system: Target.Dependency = .product(name: "SystemPackage", package: "swift-system")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")

let package = Package(
    name: "brumate",
    products: [
        .executable(name: "brumate", targets: ["BrumateCommand"]),
        .library(name: "Brumate", targets: ["Brumate"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-protobuf", exact: "1.39.0"),
        .package(url: "https://github.com/apple/swift-system", exact: "1.8.1"),
        .package(url: "https://github.com/apple/swift-log", exact: "1.16.2"),
    ],
    targets: [
        // Floor 0: headers only.
        .target(name: "CLinux"),
        .target(
            name: "CTransportSecurity", linkerSettings: [.linkedLibrary("ssl"), .linkedLibrary("crypto")]),
        .target(
            name: "CPacking",
            linkerSettings: [.linkedLibrary("lz4"), .linkedLibrary("zstd"), .linkedLibrary("xxhash")]),
        // Floor 1: typed system calls and owners of kernel resources.
        .target(name: "Linux", dependencies: ["CLinux", system], swiftSettings: strict),
        // Floor 2: failures, log, statistics, fault points.
        .target(name: "Diagnostics", dependencies: ["CLinux", "Linux", logging], swiftSettings: strict),
        // Floor 3: pure readers of /proc text; the image format.
        .target(name: "Procfs", dependencies: ["Linux", "Diagnostics"], swiftSettings: strict),
        .target(name: "ImageMessages", dependencies: [protobuf], exclude: ["Protos"], swiftSettings: generated),
        .target(
            name: "ImageFormat",
            dependencies: ["CLinux", "CPacking", "Linux", "Diagnostics", "ImageMessages", protobuf, system],
            swiftSettings: strict),
        .target(name: "Netlink", dependencies: ["Linux"], swiftSettings: strict),
        .target(
            name: "Transport", dependencies: ["CTransportSecurity", "Linux", "Diagnostics", system],
            swiftSettings: strict),
        // Floor 4: system calls in other tasks.
        .target(name: "CRemote"),
        .target(
            name: "Remote", dependencies: ["CLinux", "CRemote", "Linux", "Diagnostics", "Procfs", system],
            swiftSettings: strict),
        // Floor 5: the protocols of kinds, contexts, the restore plan; page transport.
        .target(
            name: "Kinds",
            dependencies: [
                "Linux", "Diagnostics", "Procfs", "ImageMessages", "ImageFormat", "Remote", logging, system,
            ],
            swiftSettings: strict),
        .target(
            name: "Pages",
            dependencies: [
                "CLinux", "Linux", "Diagnostics", "Procfs", "ImageMessages", "ImageFormat", "Remote", "Transport",
                logging,
            ],
            swiftSettings: strict),
        // Floor 6: families of kernel objects.
        .target(
            name: "Tasks",
            dependencies: [
                "CLinux", "Linux", "Diagnostics", "Procfs", "ImageMessages", "ImageFormat", "Remote", "Kinds", logging,
                system,
            ],
            swiftSettings: strict),
        .target(
            name: "Memory",
            dependencies: [
                "CLinux", "Linux", "Diagnostics", "Procfs", "ImageMessages", "ImageFormat", "Remote", "Kinds", "Pages",
                "Transport", logging, system,
            ],
            swiftSettings: strict),
        .target(
            name: "Files",
            dependencies: [
                "CLinux", "Linux", "Diagnostics", "Procfs", "Netlink", "ImageMessages", "ImageFormat", "Remote",
                "Kinds",
                "Pages", logging, system,
            ],
            swiftSettings: strict),
        .target(
            name: "IPC",
            dependencies: [
                "Linux", "Diagnostics", "Procfs", "ImageMessages", "ImageFormat", "Remote", "Kinds", logging,
            ],
            swiftSettings: strict),
        .target(
            name: "Network",
            dependencies: [
                "Linux", "Diagnostics", "Netlink", "ImageMessages", "ImageFormat", "Kinds", logging, system,
            ],
            swiftSettings: strict),
        .target(
            name: "Namespaces",
            dependencies: [
                "Linux", "Diagnostics", "Procfs", "ImageMessages", "ImageFormat", "Remote", "Kinds", logging, system,
            ],
            swiftSettings: strict),
        // Floor 7: the orders.
        .target(
            name: "Engine",
            dependencies: [
                "Linux", "Diagnostics", "Procfs", "ImageMessages", "ImageFormat", "Remote", "Kinds", "Pages", "Tasks",
                "Memory",
                "Files", "IPC", "Namespaces", "Network", "Transport", logging, system,
            ],
            swiftSettings: strict),
        // Floor 8: the public library: options, API.
        .target(
            name: "Brumate",
            dependencies: [
                "CLinux", "Linux", "Diagnostics", "Procfs", "ImageFormat", "Remote", "Kinds", "Engine",
                "Transport", logging, system,
            ],
            swiftSettings: strict),
        // Floor 9: the executable.
        .executableTarget(
            name: "BrumateCommand", dependencies: ["Brumate", "Linux", "Diagnostics"], swiftSettings: strict),
        // Damages images and lets the engine read them; run by tests and by hand.
        .executableTarget(
            name: "ImageFuzzer", dependencies: ["Engine", "Linux", "Diagnostics", logging, system],
            swiftSettings: strict),
        .testTarget(name: "ScenarioTests", dependencies: ["Linux"], swiftSettings: tests),
        .testTarget(
            name: "KindsTests",
            dependencies: ["Kinds", "ImageFormat", "ImageMessages", "Linux", "Diagnostics", protobuf, system],
            swiftSettings: tests),
        .testTarget(
            name: "MemoryTests", dependencies: ["Memory", "Remote", "Linux", "Diagnostics"], swiftSettings: tests),
        .testTarget(
            name: "BrumateTests", dependencies: ["Brumate", "Engine", "Linux", "Diagnostics", system],
            swiftSettings: tests),
        .testTarget(
            name: "RemoteTests", dependencies: ["Remote", "Linux", "Diagnostics", system], swiftSettings: strict),
        .testTarget(name: "LinuxTests", dependencies: ["Linux"], swiftSettings: strict),
    ]
)
