"""Outputs of heads travel with the frames: offline, in windows, in streams of every cut, in batches, alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.bundle_format.bundle import read_bundle, write_manifest
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.equivalence.certify import certify
from reuse_distill.runtime.equivalence.checks import CHECKS
from reuse_distill.runtime.errors import RdError


@pytest.fixture(scope="module")
def encoders(toys):
    made = {}
    for kind in ("offline", "window", "streaming"):
        for features in (True, False):
            path = toys.build(kind, toys.Toy(heads=True, features=features))
            made[kind, features] = Encoder.load(path)
    return made


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("kind", ["offline", "streaming"])
def test_heads_are_those_of_the_source(encoders, toys, kind, features) -> None:
    wave, toy = toys.speech(320 * 40 + 200, seed=4), toys.Toy()
    reference = (toys.streaming_reference if kind == "streaming" else toys.offline_reference)(toy, wave)
    frames = encoders[kind, features].frames(wave)
    assert len(frames) == 40 and frames.features.shape == ((2, 40, toys.WIDTH) if features else (40, 0))
    assert frames.heads["units"].dtype == np.int32
    assert np.array_equal(frames.heads["units"], toys.head_reference(toys.UNITS, reference))
    assert np.abs(frames.heads["letters"] - toys.head_reference(toys.LETTERS, reference)).max() < 2e-5


@pytest.mark.parametrize("kind", ["offline", "window", "streaming"])
@settings(max_examples=12)
@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=12), features=st.booleans())
def test_streamed_events_do_not_depend_on_pushes(encoders, toys, kind, sizes, features) -> None:
    encoder, wave = encoders[kind, features], toys.speech(320 * 30 + 99, seed=5)
    stream, at, parts = encoder.stream(), 0, []
    tasks = {name: encoder.task_stream(name) for name in ("units", "letters")}
    events = {name: [] for name in tasks}
    while at < len(wave):
        size = sizes[len(parts) % len(sizes)]
        parts.append(stream.push(wave[at : at + size]))
        at += size
    parts.append(stream.finish())
    for frames in (frames for part in parts for frames in part):
        for name, task in tasks.items():
            events[name] += task.push(frames.heads[name])
    once = encoder.stream()
    whole = encoder.joined([*once.push(wave), *once.finish()])
    for name, task in tasks.items():
        alone = encoder.task_stream(name)
        assert events[name] + task.finish() == alone.push(whole.heads[name]) + alone.finish()
    if kind == "streaming":
        assert encoder.events(wave, "units") == events["units"] + encoder.events(wave, "units")[-1:]


def test_a_batch_of_streams_gives_each_its_own_heads(encoders, toys) -> None:
    encoder = encoders["streaming", True]
    waves = [toys.speech(320 * 21, seed=s) for s in (1, 2, 3)]
    streams = encoder.streams(3)
    parts = [[] for _ in waves]
    for stream, wave in zip(streams, waves, strict=True):
        stream.feed(wave)
        stream.end()
    while any(stream.ready for stream in streams):
        for part, frames in zip(parts, encoder.step(streams), strict=True):
            part += [frames] if frames is not None else []
    for part, wave in zip(parts, waves, strict=True):
        alone = encoder.frames(wave).heads
        for name, rows in encoder.joined(part).heads.items():
            assert np.abs(rows.astype(float) - alone[name]).max() < 2e-6


@pytest.mark.parametrize("features", [True, False])
def test_the_certificate_and_the_selftest_cover_heads(encoders, features) -> None:
    encoder = encoders["streaming", features]
    result = encoder.selftest()
    assert result.passed and set(result.heads) == {"units", "letters"} and result.heads["units"].mean_cosine == 1
    certificate = certify(encoder)
    outputs = [*([""] if features else []), "units: ", "letters: "]
    assert certificate.passed, [check for check in certificate.checks if not check.passed]
    assert [check.name for check in certificate.checks] == [of + name for of in outputs for name in CHECKS]
    assert certificate.head_bounds["units"] == {"mean_cosine": 0.95}


def test_wrong_units_fail_selftest_and_certificate(toys) -> None:
    path = toys.build("streaming", toys.Toy(heads=True))
    with np.load(path / "selftest.npz") as stored:
        arrays = dict(stored)
    arrays["head units"] = (arrays["head units"] + 1) % toys.WIDTH
    np.savez(path / "selftest.npz", **arrays)
    from reuse_distill.runtime.bundle_format.bundle import list_files
    from reuse_distill.runtime.bundle_format.manifest import Manifest

    manifest: Manifest = Manifest(**{**_fields(path), "files": list_files(path)})
    write_manifest(path, manifest)
    encoder = Encoder.load(path)
    assert not encoder.selftest().passed
    failed = {check.name for check in certify(encoder).checks if not check.passed}
    assert "units: whole recording" in failed and "whole recording" not in failed


def _fields(path) -> dict:
    import json

    from reuse_distill.runtime.bundle_format.manifest import Manifest
    from reuse_distill.runtime.untrusted_input import from_dict

    manifest = from_dict(Manifest, json.loads((path / "manifest.json").read_text()), where="test")
    return {field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest)}


def test_what_does_not_fit_is_refused_by_name(toys, encoders) -> None:
    encoder = encoders["offline", True]
    with pytest.raises(RdError, match="has no head 'unit'") as caught:
        encoder.task_stream("unit")
    assert "did you mean 'units'" in str(caught.value)
    plain = Encoder.load(toys.offline)
    with pytest.raises(RdError, match="has no head 'units'") as caught:
        plain.events(toys.speech(3200), "units")
    assert "--head" in str(caught.value)
    path = toys.build("offline", toys.Toy(heads=True))
    manifest = read_bundle(path).manifest
    for changes, message in (
        ({"heads": (dataclasses.replace(toys.UNITS, name="phones"), toys.LETTERS)}, "head 'phones' has no output"),
        ({"heads": (toys.LETTERS, toys.LETTERS)}, "two heads have the same name"),
        ({"layers": ()}, "features are 'hidden' with 0 exported layers"),
        ({"features": "none", "layers": (), "heads": ()}, "neither features nor a head"),
    ):
        with pytest.raises(RdError, match=message):
            dataclasses.replace(manifest, **changes)
