"""The demo's steps: which commands run, with which options, and what they write where.

Commands run as a user would type them: shown before they run, their output passed through, their time taken.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from reuse_distill.runtime.errors import RdError

from demo.data import Data, as_typed


@dataclass(frozen=True)
class Step:
    """One command that ran."""

    title: str
    command: str
    seconds: float
    cpu_seconds: float  # of the command and what it started; more than ``seconds`` where several threads worked
    status: int


@dataclass(frozen=True)
class DemoCommand:
    """One to come."""

    title: str
    words: Sequence[str | Path]
    accepted: Sequence[int] = (0,)  # exit statuses that do not end the demo

    @property
    def typed(self) -> str:
        return shlex.join(str(word) for word in self.words)


@dataclass
class Runner:
    """Runs console scripts of this installation and remembers what it ran."""

    total: int  # steps to come, for the count that is shown
    steps: list[Step] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def run(self, title: str, words: Sequence[str | Path], *, accepted: Sequence[int] = (0,)) -> Step:
        """Run one command; raises RdError where its status is not among ``accepted``."""
        return self.run_together([DemoCommand(title, words, accepted)])[0]

    def run_together(self, commands: Sequence[DemoCommand]) -> list[Step]:
        """Run commands that do not wait for each other, at the same time where there is a core for each.

        The first one's output is shown as it comes, that of the others when all have ended. Raises RdError where a
        status is not accepted, when all have ended.
        """
        if _cores() < len(commands) > 1:
            return [self.run_together([one])[0] for one in commands]
        scripts = [_script(str(one.words[0])) for one in commands]
        self._show(commands[0], len(self.steps) + 1, "")
        with contextlib.ExitStack() as files, ThreadPoolExecutor(len(commands)) as threads:
            kept = [files.enter_context(tempfile.TemporaryFile()) for _ in commands[1:]]
            running = list(zip(commands, scripts, [None, *kept], strict=True))
            steps = [one.result() for one in [threads.submit(_ended, *each) for each in running]]
            for number, (command, output) in enumerate(zip(commands[1:], kept, strict=True), start=2):
                self._show(command, len(self.steps) + number, ", ran at the same time")
                output.seek(0)
                print(output.read().decode(errors="replace"), end="", flush=True)
        self.steps += steps
        for command, step in zip(commands, steps, strict=True):
            if step.status not in command.accepted:
                raise RdError(
                    f"`{step.command}` ended with status {step.status}",
                    hint="its own message is above; the demo stops here, nothing after this was made",
                )
        return steps

    def _show(self, command: DemoCommand, number: int, how: str) -> None:
        print(
            f"\n[{number}/{self.total}] {command.title}  ({self.seconds:.0f} s so far{how})\n$ {command.typed}",
            flush=True,
        )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def _ended(command: DemoCommand, script: Path, output: IO[bytes] | None) -> Step:
    """Run ``command`` to its end; its output goes to ``output``, or where the demo's goes."""
    start, words = time.monotonic(), [str(script), *(str(word) for word in command.words[1:])]
    errors = None if output is None else subprocess.STDOUT
    process = subprocess.Popen(words, env=_environment(), stdout=output, stderr=errors)
    _, raw, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(raw)
    seconds, cpu = time.monotonic() - start, usage.ru_utime + usage.ru_stime
    return Step(command.title, command.typed, seconds, cpu, process.returncode)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


HERE = Path(__file__).parent
BUDGET = HERE / "budget.toml"
TEACHER = HERE.parent / "student" / "weights" / "pocket-stream"
STEPS_TINY, STEPS_STREAM = 50, 50  # enough to see both losses fall
PACED_SECONDS = 12  # 75 chunks: p90 takes 64


@dataclass(frozen=True)
class Artifact:
    """One bundle of the demo. What streams is measured at the pace of a microphone, the rest as whole utterances."""

    name: str
    student: str
    mode: str
    precision: str


ARTIFACTS = (
    Artifact("offline-fp32", "tiny", "offline", "fp32"),
    Artifact("offline-int8", "tiny", "offline", "int8"),
    Artifact("streaming-fp32", "tiny-stream", "streaming", "fp32"),
    Artifact("streaming-int8", "tiny-stream", "streaming", "int8"),
)
STREAMED = "streaming-int8"


def count() -> int:
    """Commands that a whole demo runs."""
    certified = sum(one.mode == "streaming" for one in ARTIFACTS)
    return 2 + 2 * len(ARTIFACTS) + 1 + certified


def distil(runner: Runner, data: Data, out: Path, *, teacher: Path) -> None:
    """Two students, from initial weights. The teacher was taught without masks, so it teaches without them."""
    commands = []
    for student, steps in (("tiny", STEPS_TINY), ("tiny-stream", STEPS_STREAM)):
        words: list[str | Path] = ["rd-distill", "run", student, "--teacher", teacher, "--data", data.train]
        words += ["--steps", str(steps), "--output", out / student, "loss.kind=hint"]
        commands.append(DemoCommand(f"distil the student {student}", words))
    runner.run_together(commands)


def export(runner: Runner, data: Data, out: Path) -> None:
    """The bundles, checked on recordings that nothing was trained or calibrated on."""
    for precision in ("fp32", "int8"):
        runner.run_together([_export(data, out, one) for one in ARTIFACTS if one.precision == precision])


def _export(data: Data, out: Path, artifact: Artifact) -> DemoCommand:
    words: list[str | Path] = ["rd-export", out / artifact.student / "student"]
    if artifact.mode != "offline":
        words += ["--mode", artifact.mode]
    words += ["--precision", artifact.precision]
    if artifact.precision == "int8":
        words += ["--calibration", data.calibration, "--front-end", "float"]
    words += ["--check", data.check, "--output", out / artifact.name]
    return DemoCommand(f"export {artifact.mode} {artifact.precision}, prove its graph, compare with torch", words)


def stream(runner: Runner, data: Data, out: Path) -> None:
    """A file through the streaming int8 bundle, and certificates of what streams."""
    features = out / "features.npy"
    words: list[str | Path] = ["rd-stream", data.longest, out / STREAMED, "--output", features, "--stats"]
    runner.run("stream a recording", words)
    streaming = [one.name for one in ARTIFACTS if one.mode == "streaming"]
    commands = []
    for name in streaming:
        words = ["rd-stream", "--certify", out / name]
        commands.append(DemoCommand(f"certify {name}: what streams equals the whole utterance", words, (0, 1)))
    runner.run_together(commands)


def latency(runner: Runner, out: Path, artifact: Artifact) -> None:
    """Latency against the demo's budget; being over it is a result, not an end."""
    words: list[str | Path] = ["rd-latency", out / artifact.name, "--device", "host", "--budget", as_typed(BUDGET)]
    words += ["--paced", "--seconds", str(PACED_SECONDS)] if artifact.mode == "streaming" else []
    words += ["--json", out / f"{artifact.name}.latency.json", "--report", out / f"{artifact.name}.latency.html"]
    runner.run(f"measure {artifact.name}", words, accepted=(0, 1))
