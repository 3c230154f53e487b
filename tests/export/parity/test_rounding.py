"""fp32 is held to 1e-4, or to what float32 does to torch itself; never to more than a thousandth of the features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reuse_distill.export.parity.reference import (
    Rounding,
    allowing_for_rounding,
    reference_features,
    synthetic_clips,
    torch_rounding,
)
from reuse_distill.export.parity.verify import check, within
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, save_checkpoint


def scaled(student: Student, gain: float) -> Student:
    """The same function, its features ``gain`` times as large."""
    with torch.no_grad():
        for head in student.proj_head or ():
            for value in head.parameters():
                value.mul_(gain)
    return student


@pytest.mark.parametrize(("name", "mode"), [("shared", "offline"), ("shared", "window"), ("stream", "streaming")])
def test_float64_is_another_computation_of_the_same_features(name: str, mode: str, workshop: Any, spec_of: Any) -> None:
    student, spec, clips = workshop.student(name), spec_of(mode), synthetic_clips()[:2]
    before = {key: value.dtype for key, value in student.state_dict().items()}
    rounding = torch_rounding(student, spec, clips)
    assert 0 < rounding.max_abs < 2e-5
    squares = [float(np.square(reference_features(student, spec, clip)).mean()) for clip in clips]
    assert rounding.rms == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-4)
    assert {key: value.dtype for key, value in student.state_dict().items()} == before


def test_the_bound_is_twice_the_rounding_and_has_an_end() -> None:
    assert Rounding(max_abs=2.5e-4, rms=1.0).bound == 5e-4
    assert Rounding(max_abs=0.27, rms=1.0).bound == 1e-3  # weights that amplify rounding to another result


def test_large_features_are_exported_and_say_how_far_torch_is_itself(
    run_export: Any, randomised: Any, configs: Any, tmp_path: Path
) -> None:
    """Features of some hundreds: float32 keeps no 1e-4 of them, neither here nor in torch."""
    student = scaled(randomised(configs["shared"]), 1000.0)
    save_checkpoint(tmp_path / "checkpoint", student, provenance={}, training={})
    words = ("--mode", "window", "--left", "40", "--chunk", "8", "--right", "24")
    run = run_export(tmp_path / "checkpoint", *words, "--output", tmp_path / "bundle")
    assert run.status == 0, run.err
    encoder = Encoder.load(tmp_path / "bundle")
    parity = encoder.manifest.parity
    own = parity["rounding"]
    assert parity["measured"]["max_abs"] > 1e-4
    assert parity["bound"]["max_abs"] == pytest.approx(2 * own["torch_float32_to_float64"])
    assert parity["bound"]["max_abs"] < 1e-4 * own["reference_rms"]
    assert encoder.selftest().passed


def test_a_wrong_artifact_is_refused_all_the_same(workshop: Any, spec_of: Any) -> None:
    """What differs by more than rounding does is not allowed, and the message says both."""
    student, clips = workshop.student("shared"), synthetic_clips()[:1]
    wrong = {"max_abs": 2e-4, "mean_cosine": 1.0, "min_cosine": 1.0}
    parity = allowing_for_rounding({"measured": wrong, "bound": {"max_abs": 1e-4}}, student, spec_of("offline"), clips)
    assert parity["bound"] == {"max_abs": 1e-4} and not within(parity)
    with pytest.raises(
        RdError, match=r"differ by 0\.0002 .* torch in float32 differs from float64 by \d\.\d+e-0[67]"
    ) as e:
        check(parity, precision="fp32")
    assert "report this" in str(e.value.hint)
    chaotic = {**parity, "rounding": {"torch_float32_to_float64": 0.27, "reference_rms": 1.0}}
    with pytest.raises(RdError) as e:
        check(chaotic, precision="fp32")
    assert "check the weights" in str(e.value.hint)
