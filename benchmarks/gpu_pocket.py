"""One command for a machine with a GPU: train ``pocket-stream`` there, and measure what a GPU changes.

    python -m benchmarks.gpu_pocket --data train.csv --targets targets/ --output runs/gpu
    python -m benchmarks.gpu_pocket --data train.csv --teacher whisper-base/ --output runs/gpu

With --teacher alone its targets are made first (what OUTPUT/targets has already is continued). Then ``rd-distill run``
from targets, a few steps each in float32, in bfloat16 and in bfloat16 with --compile; with --teacher the step of
``benchmarks.distill_throughput``, which has the teacher in it; then the training itself, the fastest way, for what is
left of --minutes. OUTPUT/student is the student, OUTPUT/gpu_pocket.json has every figure. A part that fails is named
there and the rest goes on. Nothing is downloaded. ``--device cpu --batch 2 --probe-steps 2`` tries it without a GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import write_json
from benchmarks.timing import machine

WAYS = {
    "float32": ("--precision", "32"),
    "bfloat16": ("--precision", "bf16"),
    "bfloat16, compiled": ("--precision", "bf16", "--compile"),
}
RESERVE_S = 30.0  # of the minutes, for the end of the run and the files
SAFETY = 0.85  # share of the time that is left which steps are planned for
UNMEASURED = "unmeasured"


@dataclass
class Parts:
    """Commands that ran: what failed, how long each took. ``until``: when everything has to be done."""

    until: float
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    def run(self, name: str, words: list[str | Path], *, limit_s: float | None = None) -> bool:
        """Whether the command succeeded within its time; its output is passed through."""
        began = time.monotonic()
        limit = max(1.0, min(self.left_s, self.left_s if limit_s is None else limit_s))
        print(f"{name}: {' '.join(map(str, words))}", file=sys.stderr, flush=True)
        try:
            subprocess.run([sys.executable, "-m", *map(str, words)], check=True, timeout=limit, stdout=sys.stderr)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            late = isinstance(error, subprocess.TimeoutExpired)
            self.failed[name] = f"not done within {limit:.0f} s" if late else f"status {error.returncode}"  # type: ignore[union-attr]
        self.seconds[name] = round(time.monotonic() - began, 1)
        return name not in self.failed


def main() -> int:
    """Status 0 where there is a student, 1 otherwise."""
    args = arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no CUDA device (--device cpu tries the command without one)")
    args.output.mkdir(parents=True, exist_ok=True)
    parts = Parts(time.monotonic() + 60 * args.minutes)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "machine": machine(torch.get_num_threads()),
        "minutes": args.minutes,
        "batch": args.batch,
    }
    targets = args.targets or made_targets(args, parts)
    speeds = {name: probed(args, targets, parts, name) for name in WAYS} if targets else {}
    result["steps_from_targets"] = speeds
    result["step_with_teacher"] = throughput(args, parts) if args.teacher else f"{UNMEASURED} (give --teacher)"
    result["training"] = trained(args, targets, parts, speeds) if targets else UNMEASURED
    result |= {"failed": parts.failed, "seconds": parts.seconds}
    write_json(result, args.output / "gpu_pocket.json")
    print(json.dumps(result, indent=1))
    return 0 if (args.output / "student" / "config.json").is_file() else 1


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    source = parser.add_argument_group("what teaches, one or both")
    source.add_argument("--teacher", type=Path)
    source.add_argument("--targets", type=Path, help="of rd-distill targets")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--batch", type=int, default=64, help="crops of 4 s in a step")
    parser.add_argument("--probe-steps", type=int, default=40, help="of each way that is timed")
    parser.add_argument("--lr", type=float, default=2.0e-3)
    args = parser.parse_args(argv)
    if args.teacher is None and args.targets is None:
        parser.error("there is nothing to learn from: --teacher, --targets or both")
    return args


def made_targets(args: argparse.Namespace, parts: Parts) -> Path | None:
    """OUTPUT/targets, whole, or None."""
    folder: Path = args.output / "targets"
    words: list[str | Path] = ["reuse_distill.distill.cli", "targets", "--teacher", args.teacher, "--data", args.data]
    return folder if parts.run("targets", [*words, "--device", args.device, "--output", folder]) else None


def run_words(args: argparse.Namespace, targets: Path, output: Path, steps: int) -> list[str | Path]:
    """``rd-distill run pocket-stream`` from targets in batches that fill a GPU."""
    shutil.rmtree(output, ignore_errors=True)
    words: list[str | Path] = ["reuse_distill.distill.cli", "run", "pocket-stream", "--targets", targets]
    words += ["--data", args.data, "--output", output, "--device", args.device, "--steps", str(steps)]
    words += [f"data.batch_size={args.batch}", f"data.batch_seconds={4 * args.batch}", f"optimiser.lr={args.lr}"]
    return [*words, "data.workers=8", "training.checkpoint_every=200"]


def probed(args: argparse.Namespace, targets: Path, parts: Parts, name: str) -> dict[str, float] | str:
    """Seconds of a step of one way (median of the later half: the first ones read files and compile)."""
    output = args.output / "probes" / name.replace(", ", "-")
    words = run_words(args, targets, output, args.probe_steps)
    if not parts.run(name, [*words, *WAYS[name]], limit_s=0.2 * 60 * args.minutes):
        return UNMEASURED
    rows = read_steps(output / "metrics.csv")
    later = rows[len(rows) // 2 :]
    step = statistics.median(row["wall_s"] for row in later)
    audio = statistics.median(row["audio_s"] / max(row["wall_s"], 1e-9) for row in later)
    return {"step_s": round(step, 5), "times_real_time": round(audio, 1), "first_step_s": round(rows[0]["wall_s"], 2)}


def read_steps(path: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


def throughput(args: argparse.Namespace, parts: Parts) -> dict[str, Any] | str:
    """``benchmarks.distill_throughput``: a step with the teacher in it, ours against a straightforward loop."""
    path = args.output / "throughput.json"
    words: list[str | Path] = ["benchmarks.distill_throughput", "--device", args.device, "--recipe", "pocket-stream"]
    words += ["--teacher", args.teacher, "--data", args.data, "--batches", "2", "--repeats", "3", "--json", path]
    words += ["--set", f"data.batch_size={min(args.batch, 8)}"]
    done = parts.run("throughput", words, limit_s=0.2 * 60 * args.minutes)
    return json.loads(path.read_text(encoding="utf-8")) if done else UNMEASURED


def trained(args: argparse.Namespace, targets: Path, parts: Parts, speeds: dict[str, Any]) -> dict[str, Any] | str:
    """The training, the fastest way that worked; OUTPUT/student."""
    worked = {name: speed for name, speed in speeds.items() if isinstance(speed, dict)}
    if not worked:
        return UNMEASURED
    name = min(worked, key=lambda one: worked[one]["step_s"])
    budget = parts.left_s - RESERVE_S - worked[name]["first_step_s"]
    steps = max(2, int(SAFETY * budget / worked[name]["step_s"]))
    output = args.output / "run"
    words = run_words(args, targets, output, steps)
    if not parts.run("training", [*words, *WAYS[name], "--validation", "0.015"]):
        return UNMEASURED
    shutil.copytree(output / "student", args.output / "student", dirs_exist_ok=True)
    rows, held = read_steps(output / "metrics.csv"), read_steps(output / "validation.csv")
    return {"way": name, "steps": steps, "audio_s": sum(row["audio_s"] for row in rows), "held_out": held}


if __name__ == "__main__":
    sys.exit(main())
