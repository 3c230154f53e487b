"""The equivalence gate on exported step graphs: what streams through the runtime is the chunk-masked forward in torch.

fp32: 1e-4 everywhere. fp16 and int8: the bound that their manifest states, on every tail, and a stream that is cut up,
interleaved, reset or restored gives the same numbers as one push, whatever the precision.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.export.parity.reference import read_clips
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.geometry import frames_for, samples_for
from reuse_distill.runtime.rd_stream import main as rd_stream
from reuse_distill.student import ChunkContext, Student

EXACT = 1e-4
SAME = 1e-6  # two ways of streaming the same samples
CHUNK, LEFT = 4, 12
PRECISIONS = ["fp32", "fp16", "int8"]


def reference(student: Student, wave: np.ndarray, chunk: int = CHUNK, left: int = LEFT) -> np.ndarray:
    """Projections (N, F, W) of ``wave`` (T,) by the chunk-masked forward in torch float32."""
    with torch.no_grad():
        output = student(torch.from_numpy(wave)[None], context=ChunkContext(chunk, left))
    return np.concatenate([projection.numpy() for projection in output.projections])


def gap(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    assert np.abs(wanted).max() > 0.5, "a reference that says nothing"
    return float(np.abs(found - wanted).max())


@pytest.fixture(scope="module")
def student(workshop) -> Student:
    return workshop.student("stream")


@pytest.fixture(scope="module")
def encoders(workshop) -> Callable[[str], Encoder]:
    loaded: dict[str, Encoder] = {}

    def load(precision: str) -> Encoder:
        if precision not in loaded:
            loaded[precision] = Encoder.load(workshop.bundle("stream", "streaming", precision))
        return loaded[precision]

    return load


@pytest.fixture(scope="module")
def speech(demo_speech: Path) -> np.ndarray:
    return read_clips(find_recordings(demo_speech / "hana-2.flac"))[0]


@pytest.mark.parametrize("tail", range(CHUNK))
@pytest.mark.parametrize("extra", [0, 1, 319])
def test_every_tail(tail: int, extra: int, student, encoders, noise) -> None:
    """Longer than C + L + R and ending at every frame of a chunk, with and without samples to spare."""
    wave = noise(samples_for(3 * CHUNK + LEFT + tail) + extra, seed=tail)
    assert gap(encoders("fp32").extract(wave), reference(student, wave)) <= EXACT


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_tail_within_the_stated_bound(precision: str, student, encoders, speech) -> None:
    encoder = encoders(precision)
    bound = encoder.manifest.parity["bound"]
    assert set(bound) == {"fp16": {"max_abs"}, "int8": {"mean_cosine"}}[precision]
    for tail in range(CHUNK):
        wave = speech[: samples_for(80 + tail) + 50 * tail]
        found = difference(encoder.extract(wave), reference(student, wave))
        assert found.within(bound), f"tail {tail}: {found}"


@pytest.mark.parametrize("frames", range(1, CHUNK + 1))
def test_shorter_than_a_chunk(frames: int, student, encoders, noise) -> None:
    for extra in (0, 200):
        wave = noise(samples_for(frames) + extra, seed=frames)
        assert gap(encoders("fp32").extract(wave), reference(student, wave)) <= EXACT


def test_shorter_than_a_frame(encoders) -> None:
    assert encoders("fp32").extract(np.zeros(399, np.float32)).shape == (4, 0, 24)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_silence(precision: str, student, encoders) -> None:
    """Silence is frames like any other, and nothing becomes NaN: exact in fp32, finite and close in the others."""
    wave = np.zeros(samples_for(41), np.float32)
    found, wanted = encoders(precision).extract(wave), reference(student, wave)
    assert gap(found, wanted) <= {"fp32": EXACT, "fp16": 0.05, "int8": 5.0}[precision]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 4000), max_size=12),
    samples=st.integers(400, 12_000),
    seed=st.integers(0, 9),
)
def test_push_sizes_do_not_matter(sizes: list[int], samples: int, seed: int, student, encoders, noise) -> None:
    encoder, wave = encoders("fp32"), noise(samples, seed=seed)
    stream, parts, at = encoder.stream(), [], 0
    for size in [*sizes, samples]:
        parts += stream.push(wave[at : at + size])
        at = min(at + size, samples)
    parts += stream.finish()
    assert [part.index for part in parts] == list(np.cumsum([0, *(len(part) for part in parts)])[:-1])
    assert gap(encoder.join(parts), reference(student, wave)) <= EXACT


@pytest.mark.parametrize("precision", PRECISIONS)
def test_interleaved_streams(precision: str, encoders, noise) -> None:
    """Three streams that start at other times, pushed in turns: each as if it were alone."""
    encoder = encoders(precision)
    waves = [noise(samples_for(n) + n, seed=n) for n in (37, 22, 45)]
    streams, parts = [encoder.stream() for _ in waves], [[], [], []]
    for turn in range(40):
        for i, (stream, wave) in enumerate(zip(streams, waves, strict=True)):
            parts[i] += stream.push(wave[700 * (turn - 3 * i) :][:700] if turn >= 3 * i else wave[:0])
    for i, stream in enumerate(streams):
        found = encoder.join([*parts[i], *stream.finish()])
        assert gap(found, encoder.extract(waves[i])) <= SAME


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("together", [True, False], ids=["neighbours", "gathered"])
def test_batch_equals_single_streams(precision: str, together: bool, student, encoders, noise) -> None:
    """Unsynchronised streams stepped as one batch: the single streams' features, and so the reference's."""
    encoder = encoders(precision)
    waves = [noise(samples_for(n) + 7 * n, seed=n) for n in (30, 9, 26)]
    streams = encoder.streams(3) if together else [encoder.stream() for _ in waves]
    parts: list[list] = [[], [], []]
    for turn in range(12):
        for stream, wave, delay in zip(streams, waves, (0, 2, 1), strict=True):
            if turn >= delay and 1280 * (turn - delay) < len(wave):
                stream.feed(wave[1280 * (turn - delay) :][:1280])
            elif turn >= delay:
                stream.end()
        for got, frames in zip(parts, encoder.step(streams), strict=True):
            got += [] if frames is None else [frames]
    for stream, wave, got in zip(streams, waves, parts, strict=True):
        found = encoder.join([*got, *stream.finish()])
        # int8 and fp16 kernels sum batches in another order: what is rounded may round the other way
        assert gap(found, encoder.extract(wave)) <= {"fp32": 1e-5, "fp16": 0.05, "int8": 0.5}[precision]
        if precision == "fp32":
            assert gap(found, reference(student, wave)) <= EXACT


@pytest.mark.parametrize("precision", PRECISIONS)
def test_reset_in_mid_stream(precision: str, encoders, noise) -> None:
    encoder, wave = encoders(precision), noise(samples_for(33), seed=3)
    for before in (100, 1360, 9000):
        stream = encoder.stream()
        stream.push(noise(before, seed=4) * 5)
        stream.reset()
        assert np.array_equal(encoder.join([*stream.push(wave), *stream.finish()]), encoder.extract(wave))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_snapshot_and_restore(precision: str, encoders, noise) -> None:
    """A stream saved in mid-flight goes on in another one, and the other one's past leaves no trace."""
    encoder, wave = encoders(precision), noise(samples_for(38) + 111, seed=5)
    for at in (0, 500, 5000, len(wave)):
        first, second = encoder.stream(), encoder.stream()
        parts = first.push(wave[:at])
        second.push(noise(7000, seed=6))
        second.restore(first.snapshot())
        parts += [*second.push(wave[at:]), *second.finish()]
        assert np.array_equal(encoder.join(parts), encoder.extract(wave))


def test_a_changed_reference_would_be_noticed(student, encoders, noise) -> None:
    """The gate has teeth: another left context, and a tail finished with silence, are far outside its bound."""
    wave = noise(samples_for(45), seed=7)
    found = encoders("fp32").extract(wave)
    assert gap(found, reference(student, wave, left=LEFT - 1)) > 100 * EXACT
    longer = encoders("fp32").extract(np.concatenate([wave, np.zeros(4000, np.float32)]))
    assert gap(longer[:, :45], reference(student, wave)) > 100 * EXACT


# --- other shapes of the step -----------------------------------------------------------------------------------------

SHAPES = [
    pytest.param("stream-shallow", 4, 10, ("--batch", "1"), id="L no multiple of C"),
    pytest.param("stream-no-lookahead", 3, 0, ("--batch", "1"), id="R=0 and L=0"),
    pytest.param("stream-renormalised", 4, 12, (), id="renormalised"),
    pytest.param("stream-shallow", 4, 12, ("--batch", "1"), id="one stream"),
]


@pytest.mark.parametrize(("name", "chunk", "left", "options"), SHAPES)
def test_other_shapes(name: str, chunk: int, left: int, options, workshop, noise) -> None:
    words = ("--chunk", str(chunk), "--left", str(left)) if (chunk, left) != (4, 12) else ()
    encoder, student = (
        Encoder.load(workshop.bundle(name, "streaming", "fp32", *words, *options)),
        workshop.student(name),
    )
    for tail in range(chunk):
        wave = noise(samples_for(2 * chunk + 2 * left + tail) + 90 * tail, seed=tail)
        assert gap(encoder.extract(wave), reference(student, wave, chunk, left)) <= EXACT, f"tail {tail}"
    roles = {state.role for state in encoder.manifest.states}
    assert ("keys" in roles, "position_validity" in roles) == (left > 0, student.config.lookahead_frames > 0)
    assert certify(encoder).passed


def test_batch_1_is_static(workshop) -> None:
    bundle = workshop.bundle("stream-shallow", "streaming", "fp32", "--batch", "1")
    graph = onnx.load(str(bundle / "model.onnx")).graph
    for value in (*graph.input, *graph.output):
        assert all(dim.dim_value > 0 and not dim.dim_param for dim in value.type.tensor_type.shape.dim), value.name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_states_in_the_manifest_are_those_of_the_graph(precision: str, workshop) -> None:
    bundle = read_bundle(workshop.bundle("stream", "streaming", precision))
    session = onnxruntime.InferenceSession(str(bundle.artifact), providers=["CPUExecutionProvider"])
    inputs = {port.name: (port.type, list(port.shape)) for port in session.get_inputs()}
    outputs = {port.name: (port.type, list(port.shape)) for port in session.get_outputs()}
    manifest = bundle.manifest
    assert list(inputs) == [p.name for p in manifest.inputs] + [s.input for s in manifest.states]
    assert list(outputs) == [p.name for p in manifest.outputs] + [s.output for s in manifest.states]
    kinds = {"float32": "tensor(float)", "float16": "tensor(float16)"}
    for port in manifest.inputs:
        assert inputs[port.name] == (kinds[port.dtype], list(port.shape))
    for state in manifest.states:
        assert inputs[state.input] == (kinds[state.dtype], list(state.shape))
        kind, shape = outputs[state.output]
        assert kind == kinds[state.dtype]
        new = list(state.shape)
        if state.update == "append":
            new[state.axis] = CHUNK
        assert shape[1:] == new[1:], state.name
    assert {state.dtype for state in manifest.states} == {"float16" if precision == "fp16" else "float32"}
    assert [s.name for s in manifest.states if s.role == "keys"] == ["keys_01", "keys_03"]
    assert len([s for s in manifest.states if s.role == "values"]) == 4


# --- the certificate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_exported_bundle_is_certified(precision: str, workshop, tmp_path: Path, capsys) -> None:
    copy = shutil.copytree(workshop.bundle("stream", "streaming", precision), tmp_path / "bundle")
    assert rd_stream(["--certify", str(copy)]) == 0, capsys.readouterr()
    certificate = json.loads((copy / "certificate.json").read_text())
    assert certificate["passed"] is True
    assert all(check["cases"] for check in certificate["checks"])


@pytest.mark.parametrize("array", ["features", "tail_features"])
def test_a_tampered_expectation_is_not_certified(array: str, workshop, rehash, tmp_path: Path, capsys) -> None:
    copy = shutil.copytree(workshop.bundle("stream", "streaming"), tmp_path / "bundle")
    arrays = dict(np.load(copy / "selftest.npz"))
    arrays[array][..., -1, 0] += np.float32(3e-4)
    np.savez(copy / "selftest.npz", **arrays)
    assert rd_stream(["--certify", str(copy)]) == 2, "a changed file is refused before anything runs"
    assert "the manifest says" in capsys.readouterr().err
    rehash(copy)
    assert rd_stream(["--certify", str(copy)]) == 1
    assert not json.loads((copy / "certificate.json").read_text())["passed"]


def test_tails_in_the_bundle_are_the_references_own(workshop, student) -> None:
    """The stored tails are what torch gives for the recording cut there: every length modulo one chunk."""
    arrays = np.load(workshop.bundle("stream", "streaming") / "selftest.npz")
    frames = frames_for(len(arrays["wave"]))
    assert arrays["tail_frames"].tolist() == [*range(1, CHUNK), *range(frames - CHUNK + 1, frames + 1)]
    for length, tail in zip(arrays["tail_frames"], arrays["tail_features"], strict=True):
        wanted = reference(student, arrays["wave"][: samples_for(int(length))])
        last = min(int(length), tail.shape[1])
        np.testing.assert_allclose(tail[:, -last:], wanted[:, -last:], atol=1e-5)
