"""One bundle with steps of several chunk sizes: exact for whatever sequence of sizes a stream takes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.export.parity.reference import walk
from reuse_distill.runtime import Encoder, RdError
from reuse_distill.runtime.bundle import read_bundle, write_manifest
from reuse_distill.runtime.certify import certify
from reuse_distill.runtime.dial import in_sequence
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.student import ChunkSchedule, Student

from .conftest import rd_export

EXACT = 1e-4
SIZES, LEFT = (1, 2, 4, 16), 12  # the largest is longer than the ring of the caches


@pytest.fixture(scope="module")
def bundle(workshop) -> Path:
    return workshop.bundle("stream", "streaming", "fp32", "--chunks", "1,2,4,16")


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> Encoder:
    return Encoder.load(bundle)


@pytest.fixture(scope="module")
def student(workshop) -> Student:
    return workshop.student("stream")


def reference(student: Student, wave: np.ndarray, chunks: list[int]) -> np.ndarray:
    """Projections (N, F, W) by one forward in torch float32 with the same sequence of chunks."""
    with torch.no_grad():
        output = student(torch.from_numpy(wave)[None], context=ChunkSchedule(tuple(chunks), LEFT))
    return np.concatenate([projection.numpy() for projection in output.projections])


def gap(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max(initial=0))


def test_the_manifest_says_which_sizes_and_what_they_were_measured_with(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    assert manifest.chunk_choices == SIZES and manifest.geometry.chunk_frames == 4
    assert [row["chunk_frames"] for row in manifest.parity["chunks"]] == list(SIZES)
    assert all(row["max_abs"] <= EXACT for row in (*manifest.parity["chunks"], manifest.parity["switches"]))
    assert manifest.parity["switches"]["switches"] > 20
    assert "1, 2, 4, 16 and change from step to step" in manifest.input.rules[-1]
    assert manifest.graph_proof is not None and len(manifest.graph_proof.reused) == 2


def test_weights_are_there_once(bundle: Path, workshop) -> None:
    """One graph with one set of weights: as large as the bundle with one size but for a few shapes."""
    sizes = [(folder / "model.onnx").stat().st_size for folder in (bundle, workshop.bundle("stream", "streaming"))]
    assert sizes[0] <= 1.02 * sizes[1]
    graph = onnx.load(str(bundle / "model.onnx")).graph
    assert [d.dim_param for d in graph.input[0].type.tensor_type.shape.dim] == ["B", "320*C + 80"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    chunks=st.lists(st.sampled_from(SIZES), min_size=1, max_size=20),
    pushes=st.lists(st.integers(1, 6000), max_size=8),
    samples=st.integers(400, 24_000),
    moves=st.sets(st.integers(0, 8), max_size=3),
    seed=st.integers(0, 9),
)
def test_random_switches_equal_the_offline_forward(chunks, pushes, samples, moves, seed, student, encoder, noise):
    """Whatever the sizes, the pushes, and where the stream moves by snapshot into another one."""
    wave = noise(samples, seed=seed)
    stream, parts, at = encoder.stream(), [], 0
    stream.policy = in_sequence(chunks)
    for i, size in enumerate([*pushes, samples]):
        parts += stream.push(wave[at : at + size])
        at = min(at + size, samples)
        if i in moves:
            saved, stream = stream.snapshot(), encoder.stream(chunk_frames=1)
            stream.policy = in_sequence(chunks)
            stream.restore(saved)
    parts += stream.finish()
    assert [part.index for part in parts] == list(np.cumsum([0, *(len(part) for part in parts)])[:-1])
    assert gap(encoder.join(parts), reference(student, wave, chunks)) <= EXACT


def test_the_size_is_set_between_steps(student, encoder, noise) -> None:
    """By hand, as an application does: each value holds from the next step on."""
    wave, chunks, parts = noise(samples_for(61), seed=3), [], []
    stream = encoder.stream()
    stream.feed(wave)
    for size in walk(SIZES, 40, seed=1):
        stream.chunk_frames = size
        assert stream.latency.worst_ms == 25 + 20 * (size - 1 + 4)
        if stream.ready:
            chunks.append(size)
            parts += encoder.step([stream])
    stream.chunk_frames = 2
    parts = [part for part in parts if part is not None] + stream.finish()
    assert gap(encoder.join(parts), reference(student, wave, [*chunks, 2])) <= EXACT


def test_streams_of_one_batch_have_sizes_of_their_own(student, encoder, noise) -> None:
    waves = [noise(samples_for(50 + n), seed=n) for n in range(4)]
    plans = [[1, 4, 2], [16, 1], [2], [4, 16, 1, 1]]
    streams, parts = encoder.streams(4), [[] for _ in waves]
    for stream, plan, wave in zip(streams, plans, waves, strict=True):
        stream.policy = in_sequence(plan)
        stream.feed(wave)
        stream.end()
    while any(stream.ready for stream in streams):
        for part, frames in zip(parts, encoder.step(streams), strict=True):
            part += [] if frames is None else [frames]
    for part, plan, wave in zip(parts, plans, waves, strict=True):
        assert gap(encoder.join(part), reference(student, wave, plan)) <= EXACT


def test_sizes_that_the_bundle_lacks_are_refused(encoder, workshop) -> None:
    stream = encoder.stream()
    with pytest.raises(RdError, match=r"chunk_frames=3: this bundle has steps of 1, 2, 4, 16 frames"):
        stream.chunk_frames = 3
    assert stream.chunk_frames == 4
    with pytest.raises(RdError, match="this bundle has steps of 4 frames"):
        Encoder.load(workshop.bundle("stream", "streaming")).stream().chunk_frames = 8


def test_the_certificate_covers_switches(bundle: Path, encoder, tmp_path: Path) -> None:
    certificate = certify(encoder)
    check = certificate.checks[-1]
    assert certificate.passed and check.name == "switches of chunk size"
    assert check.max_abs is not None and check.max_abs <= EXACT and check.repeat_max_abs <= 1e-6 and check.cases >= 7


def test_a_reference_of_other_switches_fails_the_certificate(bundle: Path, tmp_path: Path, rehash) -> None:
    import shutil

    folder = shutil.copytree(bundle, tmp_path / "bundle")
    arrays = dict(np.load(folder / "selftest.npz"))
    arrays["switch_chunks"] = arrays["switch_chunks"][::-1]
    np.savez(folder / "selftest.npz", **arrays)
    rehash(folder)
    certificate = certify(Encoder.load(folder))
    assert [check.name for check in certificate.checks if not check.passed] == ["switches of chunk size"]


def test_provisional_frames_come_again_corrected(student, encoder, noise) -> None:
    """A preview is exact for the audio heard so far, and leaves no trace in the stream."""
    wave = noise(samples_for(43), seed=5)
    stream, plain = encoder.stream(), encoder.stream()
    heard, parts, previews = 0, [], []
    for size in (3000, 250, 5000, 700, 4810):
        parts += stream.push(wave[heard : heard + size])
        heard += size
        preview = stream.provisional()
        final = sum(map(len, parts))
        assert all(frames.provisional for frames in preview)
        if preview:
            assert preview[0].index == final
            found = encoder.join([*parts, *preview])
            cut = encoder.stream()
            early = encoder.join([*cut.push(wave[:heard]), *cut.finish()])
            assert found.shape == early.shape
            # Where the chunk of the preview is the one that a stream cut here would make, they are the same.
            assert gap(found[:, :final], early[:, :final]) <= EXACT
            previews.append((final, found[:, final:]))
    parts += [*stream.push(wave[heard:]), *stream.finish()]
    final = encoder.join(parts)
    assert gap(final, encoder.join([*plain.push(wave), *plain.finish()])) <= 1e-6
    assert not any(frames.provisional for frames in parts)
    assert len(previews) >= 4
    changed = [gap(final[:, first : first + rows.shape[1]], rows) for first, rows in previews]
    assert max(changed) > 1e-3, "look-ahead corrects what was provisional"


def test_a_preview_is_the_forward_of_what_was_heard(student, encoder, noise) -> None:
    wave = noise(samples_for(30), seed=8)
    stream = encoder.stream()
    stream.policy = in_sequence([2, 1, 4, 2])
    stream.feed(wave[: samples_for(23)])
    parts = [frames for _ in range(4) if (frames := stream.engine.step()) is not None]  # 9 front-end frames are taken
    preview = stream.provisional()  # 14 frames and 4 of look-ahead fit into 16 and the smallest that holds the rest
    found = encoder.join([*parts, *preview])
    assert gap(found, reference(student, wave[: samples_for(23)], [2, 1, 4, 2, 16])) <= EXACT


def test_a_switch_costs_less_than_a_step(encoder, noise) -> None:
    """Alternating sizes against each size alone, by their shares of one run so that a busy machine slows both."""

    def steps_s(plan: list[int]) -> float:
        stream = encoder.stream()
        stream.policy = in_sequence(plan)
        stream.feed(noise(samples_for(sum(plan) + 1), seed=1))
        times = []
        for _ in plan:
            start = time.perf_counter()
            stream.engine.step()
            times.append(time.perf_counter() - start)
        return statistics.median(times[4:])

    rounds = [(steps_s([4] * 40), steps_s([2] * 40), steps_s([4, 2] * 20)) for _ in range(5)]
    alone = [(a + b) / 2 for a, b, _ in rounds]
    cost = statistics.median(mixed - one for one, (*_, mixed) in zip(alone, rounds, strict=True))
    assert cost < statistics.median(alone), "a switch costs as much as a step"


def test_snapshots_move_between_bundles_of_different_sizes(student, encoder, workshop, noise) -> None:
    """A stream of a bundle with one size goes on with another size where a bundle has it."""
    fixed = Encoder.load(workshop.bundle("stream", "streaming"))
    wave = noise(samples_for(41), seed=2)
    first = fixed.stream()
    parts = first.push(wave[: samples_for(16)])
    second = encoder.stream()
    second.restore(first.snapshot())
    second.chunk_frames = 1
    parts += [*second.push(wave[samples_for(16) :]), *second.finish()]
    assert gap(encoder.join(parts), reference(student, wave, [4, 4, 4, 4, 1])) <= EXACT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_choices": (4, 1)}, "chunk_choices"),
        ({"chunk_choices": (1, 2)}, "its usual one"),
        ({"chunk_choices": (0, 4)}, "chunk_choices is 0"),
    ],
)
def test_manifests_with_sizes_that_make_no_sense_are_refused(change, message, bundle: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(bundle, tmp_path / "bundle")
    write_manifest(folder, dataclasses.replace(read_bundle(bundle).manifest, **change))
    with pytest.raises(RdError, match=message):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "offline", "--chunks", "1,4"), "--chunks 1,4 is for --mode streaming"),
        (("--mode", "streaming", "--chunks", "1,x"), "--chunks '1,x' is no list of frames"),
        (("--mode", "streaming", "--chunks", "4,4"), "different sizes from 1 to 64"),
        (("--mode", "streaming", "--chunks", "1,4", "--chunk", "2"), "a chunk of 2 frames is not among 1, 4"),
        (("--mode", "streaming", "--chunks", "1,4", "--target", "executorch"), "--chunks is not possible for"),
    ],
)
def test_exports_that_cannot_be(words, message, workshop, tmp_path: Path) -> None:
    run = rd_export(workshop.checkpoint("stream"), *words, "--output", tmp_path / "bundle")
    assert run.status == 2 and message in run.err
