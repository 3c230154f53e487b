"""Commands as a user would type them: shown before they run, their output passed through, their time taken."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reuse_distill.runtime.errors import RdError


@dataclass(frozen=True)
class Step:
    """One command that ran."""

    title: str
    command: str
    seconds: float
    cpu_seconds: float  # of the command and what it started; more than ``seconds`` where several threads worked
    status: int


@dataclass
class Runner:
    """Runs console scripts of this installation and remembers what it ran."""

    total: int  # steps to come, for the count that is shown
    steps: list[Step] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def run(self, title: str, words: Sequence[str | Path], *, accepted: Sequence[int] = (0,)) -> Step:
        """Run one command; raises RdError where its status is not among ``accepted``."""
        texts = [str(word) for word in words]
        command = shlex.join(texts)
        elapsed = time.monotonic() - self.began
        print(f"\n[{len(self.steps) + 1}/{self.total}] {title}  ({elapsed:.0f} s so far)\n$ {command}", flush=True)
        start, cpu_before = time.monotonic(), _children_cpu_s()
        status = subprocess.run([str(_script(texts[0])), *texts[1:]], env=_environment(), check=False).returncode
        step = Step(title, command, time.monotonic() - start, _children_cpu_s() - cpu_before, status)
        self.steps.append(step)
        if status not in accepted:
            raise RdError(
                f"`{command}` ended with status {status}",
                hint="its own message is above; the demo stops here, nothing after this was made",
            )
        return step

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _script(name: str) -> Path:
    """The console script of the environment that runs this."""
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise RdError(f"{name} is not installed beside {sys.executable}", hint="run the demo with `make demo`")
    return path


def _environment() -> dict[str, str]:
    """The user's, with output unbuffered and one thread unless the user has said how many.

    On models this small threads wait for each other longer than they work: eight times longer where another process
    wants the cores too.
    """
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
