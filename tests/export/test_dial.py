"""One bundle with steps of several chunk sizes: exact for whatever sequence of sizes a stream takes.

Slow for its two conversions; quick: ``runtime/streaming/test_dial.py``, ``export/targets/onnx/test_free_chunk.py``.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime import Encoder, RdError
from reuse_distill.runtime.bundle_format.bundle import read_bundle, write_manifest
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.streaming.dial import in_sequence
from reuse_distill.student import ChunkSchedule, Student, preset, save_checkpoint

from .conftest import SMALLEST, randomised, rd_export

EXACT = 1e-4
SIZES, LEFT = (1, 2, 4, 16), 12  # the largest is longer than the ring of the caches


@pytest.fixture(scope="module")
def folder(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint ``student``: the smallest that reuses a map."""
    folder = tmp_path_factory.mktemp("dial")
    save_checkpoint(folder / "student", student, provenance={"made": "by a test"}, training={})
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    """Through ``rd-export --chunks``."""
    words = ("--mode", "streaming", "--left", str(LEFT), "--chunk", "4", "--chunks", "16,1,2,4", "--layers", "all")
    run = rd_export(folder / "student", *words, "--output", folder / "bundle")
    assert run.status == 0, run.err
    assert "steps of 1 (105 ms), 2 (125 ms), 4 (165 ms), 16 (405 ms) frames, exact across switches" in run.out
    return folder / "bundle"


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> Encoder:
    return Encoder.load(bundle)


@pytest.fixture(scope="module")
def student() -> Student:
    return randomised(preset("tiny-stream", **SMALLEST))


def reference(student: Student, wave: np.ndarray, chunks: list[int]) -> np.ndarray:
    """Projections (N, F, W) by one forward in torch float32 with the same sequence of chunks."""
    with torch.no_grad():
        output = student(torch.from_numpy(wave)[None], context=ChunkSchedule(tuple(chunks), LEFT))
    return np.concatenate([projection.numpy() for projection in output.projections])


def gap(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max(initial=0))


@pytest.mark.slow
def test_the_manifest_says_which_sizes_and_what_they_were_measured_with(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    assert manifest.chunk_choices == SIZES and manifest.geometry.chunk_frames == 4
    assert [row["chunk_frames"] for row in manifest.parity["chunks"]] == list(SIZES)
    assert all(row["max_abs"] <= EXACT for row in (*manifest.parity["chunks"], manifest.parity["switches"]))
    assert manifest.parity["switches"]["switches"] > 20
    assert "1, 2, 4, 16 and change from step to step" in manifest.input.rules[-1]
    assert manifest.graph_proof is not None and len(manifest.graph_proof.reused) == 1


@pytest.mark.slow
def test_weights_are_there_once(bundle: Path, student: Student) -> None:
    """One graph with one set of weights, whose axes say what is free."""
    graph = onnx.load(str(bundle / "model.onnx")).graph
    weights = sum(int(np.prod(i.dims)) for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
    assert weights <= sum(parameter.numel() for parameter in student.parameters())
    assert [d.dim_param for d in graph.input[0].type.tensor_type.shape.dim] == ["B", "320*C + 80"]
    rows = next(port for port in graph.output if port.name == "values_02_new").type.tensor_type.shape.dim
    assert rows[2].dim_param == "C"


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_certificate_covers_switches(bundle: Path, encoder, tmp_path: Path) -> None:
    certificate = certify(encoder)
    check = certificate.checks[-1]
    assert certificate.passed and check.name == "switches of chunk size"
    assert check.max_abs is not None and check.max_abs <= EXACT and check.repeat_max_abs <= 1e-6 and check.cases >= 7


@pytest.mark.slow
def test_a_reference_of_other_switches_fails_the_certificate(bundle: Path, tmp_path: Path, rehash) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    arrays = dict(np.load(folder / "selftest.npz"))
    arrays["switch_chunks"] = arrays["switch_chunks"][::-1]
    np.savez(folder / "selftest.npz", **arrays)
    rehash(folder)
    certificate = certify(Encoder.load(folder))
    assert [check.name for check in certificate.checks if not check.passed] == ["switches of chunk size"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_choices": (4, 1)}, "chunk_choices"),
        ({"chunk_choices": (1, 2)}, "its usual one"),
        ({"chunk_choices": (0, 4)}, "chunk_choices is 0"),
    ],
)
def test_manifests_with_sizes_that_make_no_sense_are_refused(change, message, bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    write_manifest(folder, dataclasses.replace(read_bundle(bundle).manifest, **change))
    with pytest.raises(RdError, match=message):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "offline", "--chunks", "1,4"), "--chunks 1,4 is for --mode streaming"),
        (("--mode", "streaming", "--chunks", "1,x"), "--chunks '1,x' is not a list of frames"),
        (("--mode", "streaming", "--chunks", "4,4"), "different sizes from 1 to 64"),
        (("--mode", "streaming", "--chunks", "1,4", "--chunk", "2"), "a chunk of 2 frames is not among 1, 4"),
        (("--mode", "streaming", "--chunks", "1,4", "--target", "executorch"), "--chunks is not possible for"),
    ],
)
def test_exports_that_cannot_be(words, message, folder: Path, tmp_path: Path) -> None:
    run = rd_export(folder / "student", *words, "--output", tmp_path / "bundle")
    assert run.status == 2 and message in run.err
