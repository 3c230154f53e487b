"""How Whisper's features of a recording depend on where in a window it stands, on its neighbours, and on alignment.

    python -m benchmarks.whisper_windows --teacher WHISPER --targets DIR --data MANIFEST.csv

Frame cosines between the features that the targets hold (several recordings share a window) and those of each
recording alone at the beginning of a window, as they are and with the mean of every position taken out; and how much of
the first layer a linear map of the log-mel around a student's frame explains, for targets shifted by whole frames.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.stored import TargetStore, utterance_key
from reuse_distill.distill.teachers.whisper_teacher import PlacedMel, WhisperTeacher
from torch import Tensor

LATER = 700  # a second place in the window, 14 s on
SHIFTS = (-2, -1, 0, 1, 2)  # frames
AROUND = 2  # mel frames on each side of a student's frame that the linear map sees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("teacher", "targets", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--recordings", type=int, default=8)
    args = parser.parse_args()
    teacher = open_teacher(args.teacher)
    assert isinstance(teacher, WhisperTeacher)
    store = TargetStore(args.targets)
    mean = torch.from_numpy(np.load(args.targets / "position_mean.npy"))
    every = find_utterances(args.data).utterances
    chosen = [every[round(n)] for n in np.linspace(0, len(every) - 1, args.recordings)]
    rows: dict[str, list[Tensor]] = {}
    inputs, outputs = [], []
    for utterance in chosen:
        samples = torch.from_numpy(read_utterance(utterance))
        mel, floor = teacher.mel(samples)
        key = utterance_key(utterance)
        count, place = store.count(key), store.index.utterances[key][0].position
        raw = torch.from_numpy(store.as_stored(key))
        alone = teacher.window([PlacedMel(mel, floor, 0)])[1][:, :count]
        later = teacher.window([PlacedMel(mel, floor, LATER)])[1][:, LATER : LATER + count]
        sides = {"alone, 14 s later": (later, LATER), "sharing a window": (raw, place)}
        for name, (other, position) in sides.items():
            rows.setdefault(f"{name}: as it is", []).append(_cosine(teacher, alone, other))
            a, b = (_without(x, mean, p) for x, p in ((alone, 0), (other, position)))
            rows.setdefault(f"{name}: position taken out", []).append(_cosine(teacher, a, b))
        inputs.append(_around(mel, count))
        outputs.append(_without(raw, mean, place)[0])
    result = {name: [round(float(x), 4) for x in torch.cat(values, dim=1).mean(1)] for name, values in rows.items()}
    result["explained by the log-mel at a shift of frames"] = {
        str(shift): round(_explained(inputs, outputs, shift), 4) for shift in SHIFTS
    }
    print(json.dumps({"recordings": len(chosen), "layers": len(mean), **result}, indent=2))


def _without(layers: Tensor, mean: Tensor, position: int) -> Tensor:
    return layers - mean[:, position : position + layers.shape[1]] + mean.mean(1, keepdim=True)


def _cosine(teacher: WhisperTeacher, a: Tensor, b: Tensor) -> Tensor:
    """(N, F) of the targets: after a layer norm, the last after Whisper's own."""
    sides = []
    for layers in (a, b):
        normed = torch.nn.functional.layer_norm(layers, layers.shape[-1:])
        sides.append(torch.cat([normed[:-1], teacher.model.layer_norm(layers[-1:])]))
    return torch.nn.functional.cosine_similarity(*sides, dim=-1)


def _around(mel: Tensor, frames: int) -> Tensor:
    """(F, mels): mel frames 2 t - AROUND to 2 t + AROUND of every student's frame t, side by side."""
    padded = torch.cat([mel[:1].expand(AROUND, -1), mel, mel[-1:].expand(AROUND, -1)])
    return torch.stack([padded[2 * t : 2 * t + 2 * AROUND + 1].flatten() for t in range(frames)])


def _explained(inputs: list[Tensor], outputs: list[Tensor], shift: int) -> float:
    """Share of the variance of target frames t + shift that ridge regression on frame t explains, held out."""
    x, y = [], []
    for own, theirs in zip(inputs, outputs, strict=True):
        first, last = max(0, -shift), min(len(own), len(own) - shift)
        x.append(own[first:last])
        y.append(theirs[first + shift : last + shift])
    half = len(x) // 2
    (xa, ya), (xb, yb) = (torch.cat(x[:half]), torch.cat(y[:half])), (torch.cat(x[half:]), torch.cat(y[half:]))
    centre_x, centre_y = xa.mean(0), ya.mean(0)
    gram = (xa - centre_x).T @ (xa - centre_x)
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
    weights = torch.linalg.solve(gram, (xa - centre_x).T @ (ya - centre_y))
    error = (yb - centre_y - (xb - centre_x) @ weights).square().sum()
    return float(1 - error / (yb - yb.mean(0)).square().sum())


if __name__ == "__main__":
    main()
