"""runtime/equivalence/certify.py: a good bundle is certified, and every kind of mistake is not."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.bundle import MANIFEST, file_sha256, list_files, read_bundle, write_manifest
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.equivalence.certify import _judge, certify, write_certificate
from reuse_distill.runtime.equivalence.checks import CHECKS
from reuse_distill.runtime.equivalence.gate import Tally
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming import steps
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.streaming.state_pool import StatePool
from reuse_distill.runtime.streaming.steps import StepEngine


@pytest.fixture(scope="module")
def bundle(toys):
    return toys.build("streaming")


def failed(bundle):
    return {check.name for check in certify(Encoder.load(bundle)).checks if not check.passed}


def test_a_good_bundle_is_certified(bundle):
    certificate = certify(Encoder.load(bundle))
    assert certificate.passed
    assert [check.name for check in certificate.checks] == list(CHECKS)
    assert all(check.passed and check.cases and not check.problem for check in certificate.checks)
    assert all(check.repeat_max_abs in (0.0, None) for check in certificate.checks)
    assert all(0 < check.max_abs < 2e-5 for check in certificate.checks if check.max_abs is not None)
    assert certificate.manifest_sha256 == file_sha256(bundle / MANIFEST)
    assert certificate.provider == "cpu"


def test_the_certificate_is_written_and_does_not_break_the_bundle(bundle):
    certificate = certify(Encoder.load(bundle))
    path = write_certificate(certificate, bundle)
    found = json.loads(path.read_text())
    assert found["passed"] is True
    assert found["bound"] == {"max_abs": 2e-5}
    assert found["checks"][0]["name"] == "whole recording"
    assert found["versions"]["onnxruntime"]
    assert found["host"]["machine"]
    assert sorted(p.name for p in bundle.iterdir()) == [
        "certificate.json",
        "manifest.json",
        "model.onnx",
        "selftest.npz",
    ]
    Encoder.load(bundle)


def test_the_same_seed_gives_the_same_figures(bundle):
    first, second = certify(Encoder.load(bundle), seed=3), certify(Encoder.load(bundle), seed=3)
    assert first.checks == second.checks


def test_other_kinds_are_sent_to_their_selftest(toys):
    with pytest.raises(RdError, match=r"gate is for streaming bundles, this one is window\n\nhint: .*selftest"):
        certify(Encoder.load(toys.window))


def rewritten(bundle, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = read_bundle(copy).manifest
    arrays = dict(np.load(copy / "selftest.npz"))
    change(arrays)
    np.savez(copy / "selftest.npz", **arrays)
    write_manifest(copy, dataclasses.replace(manifest, files=list_files(copy)))
    return copy


def test_a_bound_that_does_not_hold_fails(bundle, tmp_path):
    def shift(arrays):
        arrays["features"] = arrays["features"] + np.float32(1e-3)

    assert failed(rewritten(bundle, tmp_path, shift)) >= {"whole recording", "push sizes", "batch of 1 and of N"}


def test_a_wrong_tail_fails_the_tails_only(bundle, tmp_path):
    def other_tail(arrays):
        arrays["tail_features"][3, :, -1] += np.float32(1e-3)

    assert failed(rewritten(bundle, tmp_path, other_tail)) == {"every tail"}


def test_without_tails_nothing_is_certified(bundle, tmp_path):
    def no_tails(arrays):
        del arrays["tail_frames"], arrays["tail_features"]

    certificate = certify(Encoder.load(rewritten(bundle, tmp_path, no_tails)))
    assert not certificate.passed
    (check,) = [check for check in certificate.checks if not check.passed]
    assert (check.name, check.max_abs, check.problem) == ("every tail", None, "nothing to compare with")


def test_a_silent_tail_is_not_fresh(bundle, monkeypatch):
    """Finishing with silence instead of the validity mask: the classic mistake."""

    def as_if_fresh(self, samples, fresh):
        self._buffer.fill(samples, self._first_sample)
        fresh[:] = 1

    monkeypatch.setattr(StepEngine, "fill", as_if_fresh)
    assert {"every tail", "whole recording"} <= failed(bundle)


def test_a_forgotten_reset_fails(bundle, monkeypatch):
    monkeypatch.setattr(StatePool, "reset", lambda self, row: None)
    assert failed(bundle) == {"reset"}


def test_a_batch_that_mixes_its_rows_fails(bundle, monkeypatch):
    copy_states = StatePool.copy_states
    monkeypatch.setattr(
        StatePool, "copy_states", lambda self, row, source, source_row: copy_states(self, 0, source, source_row)
    )
    assert "batch of 1 and of N" in failed(bundle)


def test_a_cursor_that_is_not_saved_fails(bundle, monkeypatch):
    load = StatePool.load

    def forget(self, row, saved):
        load(self, row, saved)
        self.cursor[row] = 0

    monkeypatch.setattr(StatePool, "load", forget)
    assert failed(bundle) == {"snapshot and restore"}


def test_a_state_that_is_not_updated_fails(bundle, monkeypatch):
    monkeypatch.setattr("reuse_distill.runtime.streaming.state_pool.write_ring", lambda slots, news, cursor: None)
    assert "whole recording" in failed(bundle)


def test_a_frame_too_many_fails(bundle, monkeypatch):
    monkeypatch.setattr(steps, "frames_for", lambda samples: samples // 320 + 1)
    assert {"whole recording", "every tail", "shorter than a chunk"} <= failed(bundle)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_fail(value):
    tally, reference = Tally(), np.ones((1, 3, 2), np.float32)
    tally.against(np.full((1, 3, 2), value, np.float32), reference)
    assert tally.problem
    tally = Tally()
    tally.repeats(np.full((1, 3, 2), value, np.float32), np.full((1, 3, 2), value, np.float32))
    assert tally.problem


def test_int8_like_bounds_are_cosines(bundle, tmp_path):
    def noisy(arrays):
        rng = np.random.default_rng(0)
        for name in ("features", "tail_features"):
            arrays[name] += (0.02 * rng.standard_normal(arrays[name].shape)).astype(np.float32)

    copy = rewritten(bundle, tmp_path, noisy)
    manifest = read_bundle(copy).manifest
    for bound, passes in (({"mean_cosine": 0.99}, True), ({"mean_cosine": 0.99999}, False)):
        write_manifest(copy, dataclasses.replace(manifest, parity={"bound": bound}))
        assert certify(Encoder.load(copy)).passed is passes


def test_frames_with_a_wrong_number_fail(bundle, monkeypatch):
    right = StepEngine.advance

    def one_later(self, features, step_s):
        frames = right(self, features, step_s)
        return None if frames is None else Frames(frames.index + 1, frames.features)

    monkeypatch.setattr(StepEngine, "advance", one_later)
    assert {"whole recording", "every tail"} <= failed(bundle)


def test_a_repetition_must_be_closer_than_the_bound():
    near = Tally(references=1, repeated=1, frames=3, max_abs=1e-3, mean_cosine=1.0, repeat_max_abs=1e-7)
    far = dataclasses.replace(near, repeat_max_abs=1e-4)
    assert _judge("x", near, {"max_abs": 1e-2}).passed
    assert not _judge("x", far, {"max_abs": 1e-2}).passed
    assert not _judge("x", near, {"max_abs": 1e-4}).passed


def test_a_batch_whose_rows_change_places_fails(bundle, monkeypatch):
    right = StatePool.run

    def swapped(self, first, last, chunk):
        right(self, first, last, chunk)
        self.outputs["features"][first:last] = self.outputs["features"][first:last][::-1].copy()

    monkeypatch.setattr(StatePool, "run", swapped)
    assert failed(bundle) == {"batch of 1 and of N", "silence"}


def test_the_stated_error_is_of_what_its_limit_is_for(bundle):
    """A decision that differs is 1 away and no feature: it has a bound of its own."""
    good = certify(Encoder.load(bundle))
    unit = dataclasses.replace(good.checks[0], name="units: whole recording", max_abs=1.0)
    beside = dataclasses.replace(good, checks=(*good.checks, unit), head_bounds={"units": {"mean_cosine": 0.9}})
    assert beside.source_error == good.source_error < 2e-5
    assert dataclasses.replace(beside, checks=(unit,)).source_error == 1.0
    width = str(unit).index(f" {unit.cases:>5} ")
    assert width == str(good.checks[0]).index(f" {unit.cases:>5} "), "columns stay below their heads"
