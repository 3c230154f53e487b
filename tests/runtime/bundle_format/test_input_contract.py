"""The input's contract: what the runtime does to samples before an artifact sees them."""

from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.input_contract import InputContract, MelSettings, RunningLevel
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.snapshot import Saved
from reuse_distill.runtime.untrusted_input import from_dict, to_dict

EPSILON = 1e-7
NORMALISED = InputContract(level="utterance", level_epsilon=EPSILON)


def sound(samples: int, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(samples) + 0.02).astype(np.float32)


@pytest.mark.parametrize("gain", [1.0, 0.1, 0.01, 0.003])
def test_a_whole_utterance_has_zero_mean_and_unit_variance(gain: float) -> None:
    wave = sound(5000) * np.float32(gain)
    exact = wave.astype(np.float64)
    expected = (exact - exact.mean()) / np.sqrt(exact.var() + EPSILON)
    assert np.abs(NORMALISED.prepared(wave) - expected).max() < 1e-5
    assert NORMALISED.prepared(wave).dtype == np.float32


def test_samples_stay_as_they_are_where_nothing_is_asked_for() -> None:
    wave = sound(500)
    assert InputContract().prepared(wave) is wave and InputContract().running() is None


def test_digital_silence_stays_silence() -> None:
    assert not NORMALISED.prepared(np.zeros(800, np.float32)).any()


def test_audio_that_is_too_long_is_refused() -> None:
    with pytest.raises(RdError, match=r"2\.00 s of audio, this encoder sees at most 1 s at once"):
        InputContract(longest_samples=16_000).prepared(np.zeros(32_000, np.float32))


def test_running_statistics_depend_on_the_position_only() -> None:
    wave, once, pieces = sound(9000), RunningLevel(EPSILON), RunningLevel(EPSILON)
    once.take(wave)
    for start in range(0, 9000, 700):
        pieces.take(wave[start : start + 700])
    assert pieces.position == once.position == 9000
    assert np.abs(once.apply(wave) - pieces.apply(wave)).max() < 1e-6
    assert np.abs(once.apply(wave) - NORMALISED.prepared(wave)).max() < 1e-6


def test_statistics_are_saved_and_checked() -> None:
    level, again, saved = RunningLevel(EPSILON), RunningLevel(EPSILON), Saved()
    level.take(sound(3000))
    level.save(saved)
    again.check(saved, start=0, end=3000)
    again.load(saved)
    assert np.array_equal(again.apply(sound(100)), level.apply(sound(100)))
    with pytest.raises(RdError, match="level_position is 3000, outside 0 to 2000"):
        again.check(saved, start=0, end=2000)
    saved.arrays["level_sums"] = np.array([np.nan, 0.0])
    with pytest.raises(RdError, match="level_sums holds a NaN"):
        again.check(saved, start=0, end=3000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "loud"}, "level 'loud' is not one of as is, utterance"),
        ({"level": "utterance"}, r"level_epsilon 0\.0 is outside 0..1"),
        ({"channels": 2}, "2 channels, this runtime gives 1"),
        ({"longest_samples": 100}, "longest_samples 100 hold no frame"),
    ],
)
def test_contracts_that_make_no_sense(changes: dict, message: str) -> None:
    with pytest.raises(RdError, match=message):
        from_dict(InputContract, {**to_dict(InputContract()), **changes}, where="manifest")


def test_a_contract_survives_the_manifest() -> None:
    contract = InputContract(mel=MelSettings(80, 400, 160, "Slaney"), first_sample=-520, rules=("one", "two"))
    assert from_dict(InputContract, to_dict(contract), where="manifest") == contract
    assert from_dict(InputContract, {}, where="manifest") == InputContract()  # bundles written before
