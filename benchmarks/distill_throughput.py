"""How fast a distillation step is, against a straightforward loop, in one process on one device.

Ours: duration bucketing, the frozen front end once, both teacher passes in one batch, AdamW in one kernel, and on CUDA
the teacher in half precision, the student under autocast and audio in page-locked memory. The straightforward loop: two
separate teacher passes in fp32 (the front end twice), random batches padded to the longest utterance of the data set,
PyTorch's plain AdamW.

    python -m benchmarks.distill_throughput --teacher TEACHER --data AUDIO [--recipe tiny] [--json FILE]
    python -m benchmarks.distill_throughput --device cuda --recipe pocket-stream --teacher whisper-base/ --data AUDIO
    python -m benchmarks.distill_throughput --device cuda --recipe armhubert-960h --teacher hubert-base/ \\
        --data LibriSpeech/train-clean-100 --peak-tflops 989

Repeats alternate between the two, so that a machine that slows down slows both. Reported are hours of audio per second,
the share of the peak that the counted multiplications are (torch's flop counter over all batches; the peak is what the
maker states for the precision, and is requested), and the most memory while each loop ran, both teachers' weights
included. --random-teacher base stands in for a teacher that is not at hand: HuBERT Base's shape with random weights.
Only the CPU path has been run so far.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill.data.batches import Batch, BatchReader, Position
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.recipe import TrainingRecipe, changed, load_recipe
from reuse_distill.distill.teachers import Teacher, open_teacher
from reuse_distill.distill.teachers.protocol import PairedTeacher
from reuse_distill.distill.training.objective import draw, frame_count, measure, on_device
from reuse_distill.distill.training.pairing import fitted
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.student import Student

from benchmarks.command import write_json


class TwoPasses:
    """A teacher that computes ``both`` as two whole passes."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.info = teacher, teacher.info

    def both(self, wave: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.teacher.hidden_states(wave, lengths), self.teacher.hidden_states(wave, lengths, mask)

    def hidden_states(self, wave: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """One pass, for losses without masks."""
        return self.teacher.hidden_states(wave, lengths)


def padded(batch: Batch, samples: int) -> Batch:
    """The batch with every row ``samples`` long."""
    wave = torch.nn.functional.pad(batch.wave, (0, samples - batch.wave.shape[1]))
    return Batch(wave, batch.lengths, batch.names, batch.position)


@dataclass(frozen=True)
class Way:
    """One way to train: what is shown by which teacher in which batches. ``half``: autocast; ``fused``: AdamW."""

    recipe: TrainingRecipe
    teacher: Any
    batches: list[Batch]
    half: bool
    fused: bool


def epoch(way: Way, student: Student, device: str) -> float:
    """Seconds of audio per second over the batches: forward, backward and optimiser step."""
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=way.fused)
    began = time.perf_counter()
    for batch in way.batches:
        draws = draw(way.recipe, batch, layers=student.config.layers)
        moved, draws = on_device(batch, draws, torch.device(device))
        frames = torch.tensor(frame_count(way.recipe, batch), device=device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=way.half):
            loss = measure(way.recipe, student, way.teacher, moved, draws, frames=frames).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return sum(b.seconds for b in way.batches) / (time.perf_counter() - began)


def measured_epoch(way: Way, student: Student, device: str) -> tuple[float, int | str]:
    """(seconds of audio per second, most bytes on the device while it ran)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    speed = epoch(way, student, device)
    return speed, torch.cuda.max_memory_allocated() if device == "cuda" else "unmeasured"


def flops_per_second_of_audio(way: Way, student: Student, device: str) -> float:
    """Floating-point operations (two per multiply-accumulate) of all steps, divided by their seconds of audio."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        epoch(way, student, device)
    return counter.get_total_flops() / sum(batch.seconds for batch in way.batches)


def first_batches(recipe: TrainingRecipe, data: str, count: int, *, pin: bool = False) -> list[Batch]:
    """The first batches of the recipe's first epoch, in memory (page-locked with ``pin``)."""
    reader = BatchReader(find_utterances(data).utterances, recipe.data, seed=0)
    stream = reader.batches(Position(), pin=pin)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def open_paired(args: argparse.Namespace, recipe: TrainingRecipe, dtype: torch.dtype, device: str) -> Teacher:
    """The teacher's layers that teach, on the device."""
    teacher = _opened(args, dtype, device)
    return PairedTeacher(teacher, fitted(recipe, teacher.info)[1], target_norm=recipe.loss.target_norm)


def _opened(args: argparse.Namespace, dtype: torch.dtype, device: str) -> Teacher:
    """The teacher, or one of HuBERT Base's shape with random weights."""
    if args.random_teacher is None:
        return open_teacher(args.teacher, dtype=dtype).to(device)
    from transformers import HubertConfig, HubertModel

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        HubertModel(HubertConfig()).save_pretrained(folder)
        return open_teacher(folder, dtype=dtype).to(device)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    teacher = parser.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--teacher")
    teacher.add_argument("--random-teacher", choices=("base",), help="HuBERT Base's shape, random weights")
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the recipe")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--peak-tflops", type=float, help="what the maker states for bf16 (cuda) or fp32 (cpu)")
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda, but torch sees no CUDA device")
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    amp = device == "cuda"
    recipe = changed(load_recipe(args.recipe, args.set), data={"crop_seconds": 0.0, "batch_seconds": 1e9})
    naive = changed(recipe, data={"buckets": 1})
    teacher = open_paired(args, recipe, torch.float16 if amp else torch.float32, device)  # as a run has it
    plain = TwoPasses(open_paired(args, recipe, torch.float32, device))
    student = Student(fitted(recipe, teacher.info)[0]).to(device).train()
    longest = max(round(u.seconds * SAMPLE_RATE_HZ) for u in find_utterances(args.data).utterances)
    theirs = [padded(batch, longest) for batch in first_batches(naive, args.data, args.batches)]
    ways = {
        "ours": Way(recipe, teacher, first_batches(recipe, args.data, args.batches, pin=amp), amp, fused=True),
        "straightforward": Way(naive, plain, theirs, False, fused=False),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, int | str] = {}
    for repeat in range(args.repeats + 1):  # the first warms up
        for name, way in ways.items():
            speed, memory[name] = measured_epoch(way, student, device)
            if repeat:
                speeds[name].append(speed)
    flops = {name: flops_per_second_of_audio(way, student, device) for name, way in ways.items()}
    result = report(args, device, teacher, speeds, memory, flops)
    print(json.dumps(result, indent=2))
    write_json({**result, "samples": speeds}, args.json)


def report(
    args: argparse.Namespace,
    device: str,
    teacher: Teacher,
    speeds: dict[str, list[float]],
    memory: dict[str, int | str],
    flops: dict[str, float],
) -> dict[str, Any]:
    """The table; what was not measured says so."""
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    peak = args.peak_tflops and args.peak_tflops * 1e12
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "recipe": args.recipe,
        "settings": args.set,
        "teacher": teacher.info.name if args.random_teacher is None else f"random weights, {args.random_teacher}",
        "teacher_parameters": teacher.info.parameters,
        "audio_seconds_per_second": {name: round(value, 2) for name, value in medians.items()},
        "audio_hours_per_second": {name: round(value / 3600, 5) for name, value in medians.items()},
        "share_of_peak": {
            name: round(medians[name] * flops[name] / peak, 4) if peak else "unmeasured (give --peak-tflops)"
            for name in medians
        },
        "gigaflops_per_audio_second": {name: round(value / 1e9, 2) for name, value in flops.items()},
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
        "peak_memory_bytes": memory,
        "repeats": args.repeats,
    }


if __name__ == "__main__":
    main()
