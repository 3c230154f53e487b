"""The s3prl upstream through its class, as s3prl calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reuse_distill.distill.upstream import UpstreamExpert
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.student import Student, preset, save_checkpoint


@pytest.mark.parametrize(("name", "features", "width"), [("tiny", "auto", 128), ("tiny-stream", "hidden", 128)])
def test_waves_become_padded_layers(tmp_path: Path, make_sound, name: str, features: str, width: int) -> None:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "student", Student(preset(name)))
    expert = UpstreamExpert(str(tmp_path / "student"), model_config=None, refresh=False, features=features).eval()
    waves = [torch.from_numpy(make_sound(seconds, 1)) for seconds in (1.0, 0.6)]
    with torch.no_grad():
        states = expert(waves)["hidden_states"]
        alone = expert(waves[1:])["hidden_states"]
    short = frames_for(len(waves[1]))
    assert len(states) == 6 and states[0].shape == (2, frames_for(16_000), width)
    for batch, single in zip(states, alone, strict=True):
        assert torch.allclose(batch[1, :short], single[0], atol=2e-5)
        assert not batch[1, short:].any()
    assert expert.get_downsample_rates("hidden_states") == 320
