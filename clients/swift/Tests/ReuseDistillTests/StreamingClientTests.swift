import Foundation
import XCTest

@testable import ReuseDistill

/// Gives each frame the sum of the samples seen so far and its own number, through two states.
final class CountingEngine: StepEngine {
    var freshSeen: [[Float]] = []

    func step(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
        let fresh = inputs["fresh"]!.floats
        freshSeen.append(fresh)
        let count = inputs["count"]!.floats[0]
        let slots = inputs["slots"]!.floats
        let rows = [count + 1, count + 2]
        return [
            "features": Tensor([count, slots[0], count + 1, slots[3]], shape: [1, 1, 2, 2]),
            "count_new": Tensor([count + 2], shape: [1, 1]),
            "slots_new": Tensor(rows, shape: [1, 2]),
        ]
    }
}

final class StreamingClientTests: XCTestCase {
    static let json = """
        {"schema_version": 1, "kind": "streaming", "target": "coreml", "artifact": "model.mlpackage",
         "layers": [2], "feature_width": 2, "sample_rate_hz": 16000, "hop_samples": 320,
         "receptive_field_samples": 400, "inputs": [], "outputs": [],
         "geometry": {"chunk_frames": 2, "lookahead_frames": 1, "left_frames": 4, "right_frames": 0},
         "states": [
          {"name": "count", "input": "count", "output": "count_new", "dtype": "float32", "shape": [1, 1],
           "update": "replace", "axis": 1, "ordered": true, "role": "position"},
          {"name": "slots", "input": "slots", "output": "slots_new", "dtype": "float32", "shape": [1, 4],
           "update": "append", "axis": 1, "ordered": false, "role": "keys"}]}
        """

    func makeClient() throws -> (StreamingClient, CountingEngine) {
        let engine = CountingEngine()
        return (try StreamingClient(manifest: try Manifest.read(Data(Self.json.utf8)), engine: engine), engine)
    }

    func testPushesOfAnySizeGiveTheSameFrames() throws {
        let samples = (0..<320 * 7 + 80).map { Float($0) }
        var results: [[Frame]] = []
        for size in [1, 97, 320, 5000] {
            let (client, _) = try makeClient()
            var frames: [Frame] = []
            for start in stride(from: 0, to: samples.count, by: size) {
                frames += try client.push(Array(samples[start..<min(start + size, samples.count)]))
            }
            results.append(frames + (try client.finish()))
        }
        XCTAssertEqual(results[0].map(\.index), Array(0..<7))
        for other in results.dropFirst() { XCTAssertEqual(other, results[0]) }
    }

    func testStatesAreReplacedAndAppended() throws {
        let (client, _) = try makeClient()
        let frames = try client.push([Float](repeating: 0, count: 320 * 6 + 80))
        // Third step: count is 4, and the four slots hold what the two steps before appended.
        XCTAssertEqual(frames[3].features, [[4, 1]])
        XCTAssertEqual(frames[4].features, [[5, 4]])
    }

    func testTheEndIsMaskedAndNothingMayFollow() throws {
        let (client, engine) = try makeClient()
        XCTAssertEqual(try client.push([Float](repeating: 0, count: 400 + 320 * 2)).count, 1)
        XCTAssertEqual(try client.finish().map(\.index), [1, 2])
        XCTAssertEqual(engine.freshSeen, [[1, 1], [1, 0]])
        XCTAssertEqual(try client.finish(), [])
        XCTAssertThrowsError(try client.push([0]))
    }

    func testSilenceThatIsTooShortGivesNothing() throws {
        let (client, engine) = try makeClient()
        XCTAssertEqual(try client.push([Float](repeating: 0, count: 399)), [])
        XCTAssertEqual(try client.finish(), [])
        XCTAssertTrue(engine.freshSeen.allSatisfy { $0 == [0, 0] })
    }

    func testOtherBundlesAreRefused() {
        let window = Self.json.replacingOccurrences(of: "\"streaming\"", with: "\"window\"")
        XCTAssertThrowsError(try Manifest.read(Data(window.utf8)))
        let newer = Self.json.replacingOccurrences(of: "\"schema_version\": 1", with: "\"schema_version\": 2")
        XCTAssertThrowsError(try Manifest.read(Data(newer.utf8)))
    }

    func testAppendingAlongAnInnerAxis() {
        let old = Tensor((0..<12).map(Float.init), shape: [2, 3, 2])
        let new = Tensor([90, 91, 92, 93], shape: [2, 1, 2])
        XCTAssertEqual(old.appending(new, axis: 1).floats, [2, 3, 4, 5, 90, 91, 8, 9, 10, 11, 92, 93])
        let more = Tensor((0..<16).map { Float(100 + $0) }, shape: [2, 4, 2])
        XCTAssertEqual(old.appending(more, axis: 1).floats[..<6], [102, 103, 104, 105, 106, 107])
    }

    func testPaddedRowsAreSkipped() {
        var seen: [[Int]] = []
        copy(shape: [2, 2], strides: [8, 1], elementBytes: 2) { seen.append([$0, $1, $2]) }
        XCTAssertEqual(seen, [[0, 0, 2], [2, 2, 2], [4, 16, 2], [6, 18, 2]])
    }
}
