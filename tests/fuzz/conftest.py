"""What every fuzz target shares: how many cases, seeds, a time limit per case, and a limit of memory.

The default suite runs a few seconds of each. ``RD_FUZZ_N`` sets the number of cases of a long run (``make fuzz``); then
the process may take 500 MB more than it has at the start.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

import numpy as np
import pytest
from reuse_distill.runtime.errors import RdError

LONGEST_S = 5.0  # of the processor: other work on the machine does not count
MOST_BYTES = 500 << 20
Case = Callable[[np.random.Generator], None]


class Hang(BaseException):
    """A case has run for longer than ``LONGEST_S``."""


@dataclass
class Outcomes:
    """What the cases of one target came to."""

    cases: int = 0
    refused: int = 0
    longest_s: float = 0.0
    grown_bytes: int = 0

    def __str__(self) -> str:
        return (
            f"{self.cases} cases: {self.refused} refused, {self.cases - self.refused} taken; longest "
            f"{self.longest_s:.2f} s, memory grew by {self.grown_bytes / 1e6:.0f} MB"
        )


Fuzz = Callable[..., Outcomes]


@pytest.fixture
def fuzz(capsys: pytest.CaptureFixture[str]) -> Iterator[Fuzz]:
    """``fuzz(case, cases=300)``: every case ends without an exception, or with ``RdError``; others fail the test."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGPROF, _hang)
    try:
        yield lambda case, cases: _run(case, int(os.environ.get("RD_FUZZ_N", cases)), capsys)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _run(case: Case, cases: int, capsys: pytest.CaptureFixture[str]) -> Outcomes:
    outcomes, before = Outcomes(), _peak_bytes()
    if "RD_FUZZ_N" in os.environ:
        resource.setrlimit(resource.RLIMIT_AS, (_taken_bytes() + MOST_BYTES, resource.RLIM_INFINITY))
    for number in range(cases):
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
        try:
            case(np.random.default_rng([20261128, number]))
        except RdError:
            outcomes.refused += 1
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            raise AssertionError(f"case {number}: {type(error).__name__}: {error}") from error
        signal.setitimer(signal.ITIMER_PROF, 0)
        outcomes.cases += 1
        outcomes.longest_s = max(outcomes.longest_s, time.process_time() - start)
    outcomes.grown_bytes = _peak_bytes() - before
    assert outcomes.grown_bytes < MOST_BYTES
    with capsys.disabled():
        if "RD_FUZZ_N" in os.environ:
            print(f"\n{outcomes}")
    return outcomes


def _hang(_number: int, _frame: FrameType | None) -> None:
    raise Hang


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _taken_bytes() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[0]) * resource.getpagesize()
