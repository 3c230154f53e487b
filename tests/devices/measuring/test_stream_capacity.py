"""devices/measuring/stream_capacity.py: the search, its confidence, and what the ways to step streams measure."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from reuse_distill.devices.cli import capacity_command
from reuse_distill.devices.measuring.stream_capacity import LEAST_CHUNKS, find_capacity, late_tail, verdict
from reuse_distill.devices.rd_latency import main
from reuse_distill.runtime.errors import RdError


def search(measure, **settings):
    given = {"deadline_ms": 80.0, "seconds": 2.0, "period_s": 0.08, "most": 64, **settings}
    return find_capacity("threads", measure, **given)


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 13, 31, 32, 63, 64, 100])
def test_the_largest_number_is_found(limit: int) -> None:
    asked = []

    def measure(streams: int, seconds: float) -> np.ndarray:
        asked.append(streams)
        chunks = round(streams * seconds / 0.08)
        return np.full(chunks, 10.0 if streams <= limit else 200.0)

    found = search(measure)
    assert found.carried == min(limit, 64)
    assert found.refused == (limit + 1 if limit < 64 else 0)
    assert len(asked) <= 13 and len(set(asked)) == len(asked)
    said = str(found)
    assert ("not one stream" in said) == (limit == 0) and ("more were not tried" in said) == (limit >= 64)


def test_verdicts_need_enough_chunks() -> None:
    assert verdict(0, LEAST_CHUNKS) == "carried" and verdict(0, LEAST_CHUNKS - 1) == "unsure"
    assert verdict(10, 1000) == "unsure" and verdict(2, 1000) == "carried" and verdict(25, 1000) == "too many"
    assert verdict(3, 3) == "too many"
    few, many = late_tail(0, 100)
    assert few == pytest.approx(0.99**100) and many == pytest.approx(1.0)


def test_wrong_verdicts_are_as_rare_as_promised() -> None:
    """Streams whose p99 stands exactly on the deadline: carried, or refused for certain, in 1 % of trials each."""
    rng = np.random.default_rng(0)
    verdicts = [verdict(int(rng.binomial(2000, 0.01)), 2000) for _ in range(2000)]
    assert verdicts.count("carried") <= 35 and verdicts.count("too many") <= 35


def test_a_trial_that_is_unsure_is_made_longer_and_then_refused() -> None:
    lengths = []

    def measure(streams: int, seconds: float) -> np.ndarray:
        lengths.append(seconds)
        latencies = np.full(1000, 10.0)
        latencies[:10] = 200.0
        return latencies

    found = search(measure, seconds=50.0)
    assert lengths == [50.0, 150.0] and found.carried == 0 and found.trials[0].verdict == "unsure"


def test_short_trials_are_as_long_as_a_verdict_needs() -> None:
    lengths = {}

    def measure(streams: int, seconds: float) -> np.ndarray:
        lengths[streams] = seconds
        return np.full(round(streams * seconds / 0.08), 1.0)

    assert search(measure, seconds=0.0, most=4).carried == 4
    assert lengths[1] >= LEAST_CHUNKS * 0.08 and lengths[4] >= 2.0


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_deadlines_that_are_none(deadline: float) -> None:
    with pytest.raises(RdError, match="--deadline"):
        search(lambda streams, seconds: np.ones(500), deadline_ms=deadline)
    with pytest.raises(RdError, match="nothing was measured"):
        search(lambda streams, seconds: np.zeros(0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ways", "magic"], "--ways 'magic' is unknown"),
        (["--device", "host"], "measures this machine"),
        (["--deadline", "0"], "--deadline 0 ms"),
    ],
)
def test_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--streams", "auto", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_shipped_bundle_by_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real streams, up to two of them, with a generous deadline."""
    monkeypatch.setattr(capacity_command, "find_capacity", functools.partial(find_capacity, most=2))
    status = main(["--streams", "auto", "--deadline", "60000", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert status == 0 and [one["way"] for one in found] == ["threads", "batches", "processes"]
    assert all(one["carried"] == 2 for one in found)
