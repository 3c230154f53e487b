"""``--states engine``: the model keeps a stream's states, and a stream is exactly what it is with states as inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.export.proof import ProofGraph, prove
from reuse_distill.export.proof.openvino_graph import operations, proof_nodes
from reuse_distill.runtime import Encoder, Stream
from reuse_distill.runtime.bundle_format.bundle import Bundle, read_bundle
from reuse_distill.runtime.engines.engine_choice import open_backend
from reuse_distill.runtime.engines.openvino.held_states import RequestStatePool
from reuse_distill.runtime.engines.openvino.openvino_backend import read_model
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.errors import RdError

EXACT = 1e-5  # two graphs of one student, whose sums are in another order


@pytest.fixture
def encoder(export_one: Callable[..., Any]) -> Encoder:
    return Encoder.load(export_one("streaming-engine").folder)


def pushed(encoder: Encoder, stream: Stream, samples: np.ndarray, *, end: bool = False) -> np.ndarray:
    """The features that ``samples`` bring out of ``stream``."""
    return encoder.join([*stream.push(samples), *(stream.finish() if end else [])])


def test_no_state_is_an_input_and_the_numbers_are_torchs(export_one: Callable[..., Any], openvino: Any) -> None:
    made = export_one("streaming-engine")
    assert made.manifest.device == {"inference_precision": "f32", "states": "engine"}
    model = read_model(openvino.Core(), made.artifact)
    assert {port.get_any_name() for port in model.inputs} == {"samples", "fresh"}
    assert len(model.get_variables()) == len(made.manifest.states) > 3
    assert (made.manifest.graph_proof.softmaxes, len(made.manifest.graph_proof.reused)) == (1, 1)
    parity = made.manifest.parity
    assert parity["measured"]["max_abs"] <= 1e-4
    assert len(parity["layers"]) == 2 and all(row["max_abs"] <= 1e-4 for row in parity["layers"])


def test_streams_are_those_of_states_as_inputs(
    encoder: Encoder, export_one: Callable[..., Any], clips: list[np.ndarray]
) -> None:
    assert isinstance(encoder.stream().engine.pool, RequestStatePool)
    plain = Encoder.load(export_one("streaming").folder)
    for clip in clips:
        np.testing.assert_allclose(encoder.extract(clip), plain.extract(clip), atol=EXACT)


def test_a_reset_in_mid_stream_begins_a_new_stream(encoder: Encoder, clips: list[np.ndarray]) -> None:
    expected, stream = encoder.extract(clips[0]), encoder.stream()
    for cut in (9_001, 3_000):
        pushed(encoder, stream, clips[0][::-1][:cut])
        stream.reset()
        np.testing.assert_array_equal(pushed(encoder, stream, clips[0], end=True), expected)
        stream.reset()


def test_streams_of_one_encoder_do_not_mix(encoder: Encoder, clips: list[np.ndarray]) -> None:
    waves = [clips[0], clips[0][::-1].copy(), 3 * clips[0]]
    streams, parts = [encoder.stream() for _ in waves], [list[np.ndarray]() for _ in waves]
    for start in range(0, len(waves[0]), 2_500):
        for stream, wave, part in zip(streams, waves, parts, strict=True):
            part.append(pushed(encoder, stream, wave[start : start + 2_500]))
    for stream, wave, part in zip(streams, waves, parts, strict=True):
        part.append(encoder.join(list(stream.finish())))
        np.testing.assert_array_equal(np.concatenate(part, axis=-2), encoder.extract(wave))


@pytest.mark.slow
def test_a_batch_shares_a_request_and_its_rows_keep_apart(
    export_one: Callable[..., Any], clips: list[np.ndarray]
) -> None:
    """Rows that step together, one that steps alone, one that begins again, and a fifth in a batch of its own."""
    pair = Encoder.load(export_one("streaming-engine-2").folder)
    waves = [clips[0], clips[0][::-1].copy(), 2 * clips[0], clips[0][5_000:], clips[0][:7_000]]
    streams, parts = pair.streams(len(waves)), [list[Any]() for _ in waves]
    streams[1].feed(clips[0])
    for _ in range(2):
        pair.step(streams)
    streams[1].reset()
    for stream, wave in zip(streams, waves, strict=True):
        stream.feed(wave)
        stream.end()
    while any(stream.ready for stream in streams):
        for part, frames in zip(parts, pair.step(streams), strict=True):
            part.extend([] if frames is None else [frames])
    for part, wave in zip(parts, waves, strict=True):
        np.testing.assert_allclose(pair.join(part), pair.extract(wave), atol=EXACT)


def test_a_snapshot_continues_here_and_on_other_bundles(
    encoder: Encoder, export_one: Callable[..., Any], clips: list[np.ndarray]
) -> None:
    plain = Encoder.load(export_one("streaming").folder)
    assert encoder.manifest.snapshot["layout"] == plain.manifest.snapshot["layout"]
    stream = encoder.stream()
    before = pushed(encoder, stream, clips[0][:10_000])
    saved = stream.snapshot()
    rest = pushed(encoder, stream, clips[0][10_000:], end=True)
    np.testing.assert_array_equal(np.concatenate([before, rest], axis=-2), encoder.extract(clips[0]))
    again = encoder.stream()
    pushed(encoder, again, clips[0][::-1][:4_000])
    again.restore(saved)
    np.testing.assert_array_equal(pushed(encoder, again, clips[0][10_000:], end=True), rest)
    other = plain.stream()
    other.restore(saved)
    first = pushed(plain, other, clips[0][10_000:14_000])
    again.restore(other.snapshot())
    second = pushed(encoder, again, clips[0][14_000:], end=True)
    np.testing.assert_allclose(np.concatenate([first, second], axis=-2), rest, atol=EXACT)


def test_frames_before_their_time_leave_the_stream_as_it_was(encoder: Encoder, clips: list[np.ndarray]) -> None:
    stream = encoder.stream()
    parts = [pushed(encoder, stream, clips[0][:10_000])]
    assert stream.provisional()
    parts.append(pushed(encoder, stream, clips[0][10_000:], end=True))
    np.testing.assert_array_equal(np.concatenate(parts, axis=-2), encoder.extract(clips[0]))


def test_the_certificate_passes(encoder: Encoder) -> None:
    certificate = certify(encoder)
    assert certificate.passed, [check for check in certificate.checks if not check.passed]


def test_plain_calls_take_the_states_and_give_them_back(encoder: Encoder, export_one: Callable[..., Any]) -> None:
    """``run`` and ``bind`` keep nothing from call to call, as of any backend."""
    random = np.random.default_rng(0)
    inputs = {
        name: random.normal(0, 0.1, [int(size) for size in port.shape]).astype(np.float32)
        for name, port in encoder.backend.inputs.items()
    }
    first = encoder.backend.run(inputs)
    assert set(first) == {"features", *(state.output for state in encoder.manifest.states)}
    outputs = {name: np.zeros_like(array) for name, array in first.items()}
    call = encoder.backend.bind(inputs, outputs)
    for _ in range(2):
        call()
        for name, array in encoder.backend.run(inputs).items():
            np.testing.assert_array_equal(array, first[name])
            np.testing.assert_array_equal(outputs[name], first[name])


@pytest.mark.parametrize(
    ("mode", "device", "message"),
    [
        ("streaming-engine", {}, r"the model keeps \d+ states of its own, the manifest says that states are inputs"),
        ("streaming", {"states": "engine"}, "the manifest says that the model keeps its states, and it keeps none"),
    ],
)
def test_a_manifest_of_the_other_kind_is_refused(
    export_one: Callable[..., Any], mode: str, device: dict[str, str], message: str
) -> None:
    bundle = read_bundle(export_one(mode).folder)
    manifest = dataclasses.replace(bundle.manifest, device={"inference_precision": "f32", **device})
    with pytest.raises(RdError, match=message) as caught:
        open_backend(Bundle(bundle.path, manifest), provider="cpu", threads=1)
    assert "export the bundle again" in str(caught.value.hint)


def test_states_that_the_manifest_names_otherwise_are_refused(export_one: Callable[..., Any]) -> None:
    bundle = read_bundle(export_one("streaming-engine").folder)
    first, *others = bundle.manifest.states
    renamed = dataclasses.replace(bundle.manifest, states=(dataclasses.replace(first, input="other"), *others))
    with pytest.raises(RdError, match="they differ in other"):
        open_backend(Bundle(bundle.path, renamed), provider="cpu", threads=1)
    wider = dataclasses.replace(first, shape=(*first.shape[:-1], 7))
    with pytest.raises(RdError, match=first.input):
        open_backend(
            Bundle(bundle.path, dataclasses.replace(bundle.manifest, states=(wider, *others))),
            provider="cpu",
            threads=1,
        )


def test_a_map_that_comes_from_a_state_is_refused(export_one: Callable[..., Any], openvino: Any) -> None:
    """A reusing layer that takes yesterday's map: its value product leads to a ReadValue and to no softmax."""
    made = export_one("streaming-engine")
    graph = operations(read_model(openvino.Core(), made.artifact))
    product = made.manifest.graph_proof.reused[0].value_product
    state = next(one.name for one in graph if one.kind == "ReadValue")
    altered = [
        dataclasses.replace(one, inputs=((state, 0), *one.inputs[1:])) if one.name == product else one for one in graph
    ]
    for found, refused in ((graph, False), (altered, True)):
        proven = ProofGraph("model.xml", tuple(proof_nodes(found)))
        if not refused:
            prove(proven, made.student.config, exported=(1, 2), features="heads")
            continue
        with pytest.raises(RdError, match="graph proof failed"):
            prove(proven, made.student.config, exported=(1, 2), features="heads")


@pytest.mark.slow
def test_int8_keeps_its_states_too(export_one: Callable[..., Any], clips: list[np.ndarray]) -> None:
    pytest.importorskip("nncf", reason="nncf is not installed (the extra openvino)")
    made = export_one("streaming-engine", "int8")
    assert made.manifest.parity["measured"]["mean_cosine"] >= 0.99 and made.manifest.quantisation["quantisers"] > 0
    encoder, stream = Encoder.load(made.folder), None
    stream = encoder.stream()
    pushed(encoder, stream, clips[0][:9_000])
    stream.reset()
    np.testing.assert_array_equal(pushed(encoder, stream, clips[0], end=True), encoder.extract(clips[0]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "streaming", "--chunks", "4,8"), "--chunks is not possible with --states engine"),
        ((), "--states engine is for --target coreml or openvino --mode streaming"),
    ],
)
def test_where_it_makes_no_sense(
    words: tuple[str, ...], message: str, workshop: Any, run_export: Callable[..., Any], tmp_path: Path
) -> None:
    options = ("--target", "openvino", "--states", "engine", "--output", tmp_path / "bundle")
    run = run_export(workshop.checkpoint("stream"), *options, *words)
    assert run.status == 2 and message in run.err
    assert not (tmp_path / "bundle").exists()
