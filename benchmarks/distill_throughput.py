"""How fast a distillation step is, against a straightforward loop, in one process on one device.

Ours: duration bucketing, the frozen front end once, both teacher passes in one batch, the teacher in half precision
and the student under autocast on CUDA. The straightforward loop: two separate teacher passes in fp32 (the front end
twice), random batches padded to the longest utterance of the data set.

    python benchmarks/distill_throughput.py --teacher TEACHER --data AUDIO [--recipe tiny] [--json FILE]

Repeats alternate between the two, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from distill.data.batches import Batch, BatchReader, Position
from distill.data.utterances import find_utterances
from distill.recipe import Recipe, changed, load_recipe
from distill.teachers import Teacher, open_teacher
from distill.training.objective import draw, frame_count, measure
from runtime.geometry import SAMPLE_RATE_HZ
from student import Student


class TwoPasses:
    """A teacher that computes ``both`` as two whole passes."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher, self.info = teacher, teacher.info

    def both(self, wave: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.teacher.hidden_states(wave, lengths), self.teacher.hidden_states(wave, lengths, mask)


def padded(batch: Batch, samples: int) -> Batch:
    """The batch with every row ``samples`` long."""
    wave = torch.nn.functional.pad(batch.wave, (0, samples - batch.wave.shape[1]))
    return Batch(wave, batch.lengths, batch.names, batch.position)


def epoch(recipe: Recipe, teacher: Any, student: Student, batches: list[Batch], device: str, *, amp: bool) -> float:
    """Seconds of audio per second over the batches, forward, backward and optimiser step."""
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4)
    began = time.perf_counter()
    for batch in batches:
        draws = draw(recipe, batch, layers=student.config.layers)
        moved = Batch(batch.wave.to(device), batch.lengths.to(device), batch.names, batch.position)
        draws = type(draws)(draws.mask.to(device), draws.context, draws.hint_layers, draws.dropout_seed)
        frames = torch.tensor(frame_count(recipe, batch), device=device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
            loss = measure(recipe, student, teacher, moved, draws, frames=frames).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return sum(b.seconds for b in batches) / (time.perf_counter() - began)


def first_batches(recipe: Recipe, data: Path, count: int) -> list[Batch]:
    """The first batches of the recipe's first epoch, in memory."""
    reader = BatchReader(find_utterances(data).utterances, recipe.data, seed=0)
    stream = reader.batches(Position())
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = changed(load_recipe(args.recipe), data={"crop_seconds": 0.0, "batch_seconds": 1e9})
    naive = changed(recipe, data={"buckets": 1})
    teacher = open_teacher(args.teacher, dtype=torch.bfloat16 if device == "cuda" else torch.float32).to(device)
    plain = TwoPasses(open_teacher(args.teacher).to(device))
    student = Student(recipe.student.config()).to(device).train()
    ours = first_batches(recipe, args.data, args.batches)
    theirs = first_batches(naive, args.data, args.batches)
    longest = max(round(u.seconds * SAMPLE_RATE_HZ) for u in find_utterances(args.data).utterances)
    theirs = [padded(batch, longest) for batch in theirs]
    speeds: dict[str, list[float]] = {"ours": [], "straightforward": []}
    for repeat in range(args.repeats + 1):  # the first warms up
        one = epoch(recipe, teacher, student, ours, device, amp=device == "cuda")
        other = epoch(naive, plain, student, theirs, device, amp=False)
        if repeat:
            speeds["ours"].append(one)
            speeds["straightforward"].append(other)
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "recipe": args.recipe,
        "teacher_parameters": teacher.info.parameters,
        "audio_seconds_per_second": {k: round(statistics.median(v), 2) for k, v in speeds.items()},
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else "unmeasured",
        "repeats": args.repeats,
    }
    print(json.dumps(result, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps({**result, "samples": speeds}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
