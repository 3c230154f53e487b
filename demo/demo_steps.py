"""The demo's steps: which commands run, with which options, and what they write where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demo.commands import DemoCommand, Runner
from demo.data import Data, as_typed

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
