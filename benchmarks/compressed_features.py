"""What compressed students have lost: the distance of their features to those of the student before it.

    python -m benchmarks.compressed_features BEFORE AFTER [AFTER ...] --data AUDIO [--split NAME] [--utterances N]

Of held-out recordings (the first 10 s of each), in the chunks that the student is meant for. Distance: mean squared
error over the variance of the student's own features, 0 the same, 1 as far as their mean; mean over frames of the last
layer, with an interval over speakers where there are five, else over recordings. Cosine: mean over the same frames.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.evaluation.bootstrap import Interval, ratio_interval
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.student import Student, load_checkpoint
from torch import Tensor

from benchmarks.command import write_json
from benchmarks.timing import machine

SECONDS = 10


@torch.no_grad()
def features(student: Student, wave: Tensor) -> Tensor:
    """(F, C) of the last projection, or of the last layer where there are none."""
    output = student(wave[None], context=student.config.context)
    return (output.projections or output.layers)[-1][0]


def judged(before: list[Tensor], after: list[Tensor], speakers: list[str]) -> tuple[Interval, Interval]:
    """(distance, cosine) of features (F, C) per recording."""
    centre = torch.cat(before).mean(0)
    own = [float((b - centre).square().sum()) for b in before]
    error = [float((a - b).square().sum()) for a, b in zip(after, before, strict=True)]
    alike = [
        float(torch.nn.functional.cosine_similarity(a, b, dim=-1).sum()) for a, b in zip(after, before, strict=True)
    ]
    groups = speakers if all(speakers) else None
    frames = [float(len(b)) for b in before]
    return ratio_interval(error, own, groups=groups), ratio_interval(alike, frames, groups=groups)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split")
    parser.add_argument("--utterances", type=int, default=24)
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args()
    found = find_utterances(args.data, split=args.split).utterances
    chosen = [found[i] for i in np.random.default_rng(0).permutation(len(found))[: args.utterances]]
    waves = [torch.from_numpy(read_utterance(one)[: SECONDS * SAMPLE_RATE_HZ]) for one in chosen]
    original = [features(load_checkpoint(args.before), wave) for wave in waves]
    frames = sum(map(len, original))
    print(f"{len(waves)} recordings of {len({one.speaker for one in chosen})} speakers, {frames} frames")
    print("| student | M parameters | distance | cosine |\n|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for path in args.after:
        student = load_checkpoint(path)
        distance, cosine = judged(original, [features(student, w) for w in waves], [one.speaker for one in chosen])
        size = sum(p.numel() for p in student.parameters())
        rows.append({"student": str(path), "parameters": size, "distance": vars(distance), "cosine": vars(cosine)})
        shown = [f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]" for one in (distance, cosine)]
        name = path.parent.name if path.name == "student" else path.name
        print(f"| {name} | {size / 1e6:.2f} | {shown[0]} | {shown[1]} |", flush=True)
    write_json({"machine": machine(threads=1), "frames": frames, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
