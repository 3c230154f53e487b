"""Time of artifacts on a device, measured by ``rd-latency`` in a process of its own with a log.

Nothing here knows devices.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_distill.distill.tradeoff.side_by_side import ratios, spread
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import read_json_file

COMMAND = (sys.executable, "-m", "reuse_distill.devices.rd_latency")
LONGEST_ANSWER = 64 << 20  # bytes of rd-latency's JSON; a run of an hour has a tenth of that


@dataclass(frozen=True)
class DeviceRuns:
    """What ``rd-latency`` is requested. ``device``: NAME or NAME=ADDRESS, as its ``--device``."""

    device: str
    seconds: float = 20.0  # of audio, each run
    rounds: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 3600:
            raise RdError(f"--device-seconds is {self.seconds:g}", hint="seconds of audio for each run, up to 3600")
        if not 1 <= self.rounds <= 20:
            raise RdError(f"--device-rounds is {self.rounds}", hint="runs of each artifact, 1 to 20")


def device_times(
    bundles: Mapping[str, Path], runs: DeviceRuns, folder: Path, report: Callable[[str], None]
) -> dict[str, list[float]]:
    """Name -> real-time factor (seconds of work per second of audio) of each round, on the device.

    In every round all artifacts take their turn, back to back, so that a slow spell of the device slows all of them.
    rd-latency's own words lie in ``folder``. Raises RdError where the device is not reached or gives no time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    times: dict[str, list[float]] = {name: [] for name in bundles}
    for number in range(runs.rounds):
        for name, bundle in bundles.items():
            times[name].append(_measured(bundle, runs, folder / f"{name}-{number}"))
        best = min(times, key=lambda name: times[name][-1])
        report(f"{runs.device}, round {number + 1} of {runs.rounds}: {best} is the fastest, {times[best][-1]:.4f}")
    return times


def device_summary(times: Mapping[str, list[float]], baseline: str, device: str) -> dict[str, Any]:
    """For the results: the median of every artifact, how many times as fast as ``baseline``, and the fastest."""
    rows = {name: {"rtf": spread(values), "faster": ratios(times[baseline], values)} for name, values in times.items()}
    return {"device": device, "points": rows, "fastest": min(rows, key=lambda name: rows[name]["rtf"]["median"])}


def _measured(bundle: Path, runs: DeviceRuns, file: Path) -> float:
    answer, log = file.with_suffix(".json"), file.with_suffix(".log")
    answer.unlink(missing_ok=True)
    words = [str(bundle), "--device", runs.device, "--back-to-back", "--seconds", f"{runs.seconds:g}"]
    run_command([*COMMAND, *words, "--json", str(answer)], log, name=f"rd-latency --device {runs.device}")
    return _real_time_factor(answer)


def _real_time_factor(answer: Path) -> float:
    try:
        value = read_json_file(answer, most_bytes=LONGEST_ANSWER)["outcomes"][0]["measurement"]["metrics"]["rtf"]
    except RdError as error:
        raise RdError(f"{answer} has no time: real-time factor cannot be read: {error.message}") from None
    except (KeyError, IndexError, TypeError):
        value = None
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        raise RdError(f"{answer} has no time: real-time factor {value!r}", hint="rd-latency with --json says why")
    return value


def run_command(command: Sequence[str], log: Path, *, name: str) -> None:
    """Run ``command``, everything it prints in ``log``. Raises RdError with its own last error where it fails."""
    with log.open("w", encoding="utf-8") as stream:
        status = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise RdError(f"{name}: {(errors or lines or [f'exit status {status}'])[-1]}", hint=f"see {log}")
