"""``rd-distill search --device``: what is within the limit is timed by rd-latency, in turns, and the device decides."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from reuse_distill.distill.tradeoff import device_times as module
from reuse_distill.distill.tradeoff.device_times import DeviceRuns, device_summary, device_times
from reuse_distill.runtime.errors import RdError

STUB = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
calls = Path(__file__).with_suffix(".calls")
calls.write_text((calls.read_text() if calls.exists() else "") + json.dumps(words) + "\\n")
name = Path(words[0]).parent.name
if name == "lost":
    print("error: pi@far is not reachable")
    print("hint: is it on?")
    sys.exit(3)
value = {"whole": 0.04, "rows": 0.02, "heads": 0.05}.get(name, ANSWER)
answer = {"outcomes": [{"measurement": {"metrics": {"rtf": value}}}]}
Path(words[words.index("--json") + 1]).write_text(json.dumps(answer))
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``stub(answer)``: rd-latency is a script from then on; returns the file of its calls."""

    def install(answer: object = None) -> Path:
        script = tmp_path / "stub.py"
        script.write_text(STUB.replace("ANSWER", f"json.loads({json.dumps(answer)!r})"))
        monkeypatch.setattr(module, "COMMAND", (sys.executable, str(script)))
        return script.with_suffix(".calls")

    return install


def bundles(*names: str) -> dict[str, Path]:
    return {name: Path(name) / "bundle" for name in names}


def test_all_take_turns_and_the_device_decides(stub, tmp_path: Path) -> None:
    calls, said = stub(), []
    runs = DeviceRuns("pi=pi@far", seconds=5, rounds=2)
    times = device_times(bundles("whole", "rows", "heads"), runs, tmp_path / "device", said.append)
    assert times == {"whole": [0.04, 0.04], "rows": [0.02, 0.02], "heads": [0.05, 0.05]}
    lines = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [line[0] for line in lines] == ["whole/bundle", "rows/bundle", "heads/bundle"] * 2
    assert lines[0][1:6] == ["--device", "pi=pi@far", "--back-to-back", "--seconds", "5"]
    summary = device_summary(times, "whole", "pi")
    assert summary["fastest"] == "rows" and summary["points"]["rows"]["faster"]["median"] == 2.0
    assert "round 2 of 2: rows is the fastest" in said[-1]


def test_a_device_that_is_away_says_so(stub, tmp_path: Path) -> None:
    stub()
    with pytest.raises(RdError, match="rd-latency --device pi: pi@far is not reachable"):
        device_times(bundles("lost"), DeviceRuns("pi"), tmp_path / "device", print)


@pytest.mark.parametrize("answer", [None, "fast", -1.0, 0.0, float("nan"), [], {}])
def test_an_answer_without_a_time_is_refused(stub, tmp_path: Path, answer: object) -> None:
    stub(answer)
    with pytest.raises(RdError, match="has no time: real-time factor"):
        device_times(bundles("odd"), DeviceRuns("pi"), tmp_path / "device", print)


@pytest.mark.parametrize(("field", "value"), [("seconds", 0.0), ("seconds", 1e9), ("rounds", 0), ("rounds", 21)])
def test_runs_that_are_not_possible(field: str, value: float) -> None:
    with pytest.raises(RdError, match=f"--device-{field} is"):
        DeviceRuns("pi", **{field: value})
