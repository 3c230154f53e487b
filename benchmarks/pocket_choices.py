"""Short trainings that differ in one choice, at equal steps or time: what is masked, how maps are reused, what hears.

    python -m benchmarks.pocket_choices masked --teacher T --targets DIR --data CSV --output WORK
    python -m benchmarks.pocket_choices train masking-shared --seed 0 --targets DIR --masked WORK --data CSV \\
        --held-out DIR=CSV --digits CSV --output RESULTS/masking-shared-0.json
    python -m benchmarks.pocket_choices table RESULTS
    python -m benchmarks.pocket_choices speed --output JSON

TARGETS are what rd-distill targets wrote of DATA. ``masked`` hears windows of them again with the mel input of drawn
spans set to 0 (one mask for each recording, probability and spans of the paper for 100 h), so that masking distillation
(ARMHuBERT, arXiv 2305.11685: masked frames learn what the teacher made of the unmasked input, unmasked frames what it
made of the masked one) can be trained from stored layers too. The student is a small ``pocket-stream``. Held out: error
of every layer to the teacher's on the unmasked input, in chunks. ``speed`` times steps of whole students in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.distill.data.batches import Batch, Position
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import Utterance, find_utterances
from reuse_distill.distill.evaluation.evaluate import Probe, evaluate
from reuse_distill.distill.evaluation.features import of_student
from reuse_distill.distill.files import write_json
from reuse_distill.distill.masks import span_mask
from reuse_distill.distill.recipe import TrainingRecipe, load_recipe
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.making import Piece, plan_windows
from reuse_distill.distill.teachers.stored import (
    INDEX,
    Shard,
    TargetIndex,
    TargetStore,
    read_index,
    shard_name,
    utterance_key,
)
from reuse_distill.distill.teachers.whisper_teacher import PlacedMel, WhisperTeacher
from reuse_distill.distill.training.objective import TERMS, Draws, TeacherTargets, student_passes
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.runtime.untrusted_input import to_dict
from reuse_distill.student import Student, StudentConfig, preset
from reuse_distill.student.config import conv_stack, mel_stack

from benchmarks.timing import alternate, machine, ratios, spread
from benchmarks.timing import shown as shown_ratio

VARIANTS = ("hint-shared", "hint-renormalised", "masking-shared", "masking-renormalised", "hint-conv")
WIDTH, FFN_WIDTH = 128, 512
ROWS, CROP_FRAMES = 5, 200  # of a batch; 4 s
MASK_SEED = 7
SHARD_WINDOWS = 16  # as rd-distill targets has them


def main() -> None:
    """One of the four commands."""
    args = arguments()
    {"masked": masked, "train": train, "table": table, "speed": speed}[args.command](args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    hear, learn = commands.add_parser("masked"), commands.add_parser("train")
    for command in (hear, learn):
        command.add_argument("--targets", type=Path, required=True, help="of the unmasked recordings")
        command.add_argument("--data", type=Path, required=True, help="what they were made of")
        command.add_argument("--output", type=Path, required=True)
    hear.add_argument("--teacher", required=True)
    hear.add_argument("--shards", type=int, default=4, help=f"of {SHARD_WINDOWS} windows of 30 s")
    learn.add_argument("variant", choices=VARIANTS)
    learn.add_argument("--masked", type=Path, required=True, help="what the command masked wrote")
    learn.add_argument("--held-out", required=True, metavar="TARGETS=CSV", help="of speakers that are not in DATA")
    learn.add_argument("--digits", type=Path, help="manifest of a probe")
    learn.add_argument("--seed", type=int, default=0)
    budget = learn.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, default=120.0, help="of processor time (120)")
    budget.add_argument("--steps", type=int, help="instead of a time: what costs the same, on a busy machine")
    commands.add_parser("table").add_argument("results", type=Path)
    timed = commands.add_parser("speed")
    timed.add_argument("--repeats", type=int, default=6)
    timed.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


# -- masked layers of the teacher ------------------------------------------------------------------------------------


def masked(args: argparse.Namespace) -> None:
    """The first shards of TARGETS once more, of masked input; what was written before stays."""
    teacher, index = open_teacher(args.teacher), read_index(args.targets)
    if not isinstance(teacher, WhisperTeacher) or teacher.info.sha256 != index.teacher.sha256:
        raise SystemExit(f"error: {args.targets} is of another teacher than {args.teacher}")
    utterances = find_utterances(args.data).utterances
    keys = [utterance_key(utterance) for utterance in utterances]
    windows = plan_windows([frames_for(round(u.seconds * SAMPLE_RATE_HZ)) for u in utterances], packed=True)
    args.output.mkdir(parents=True, exist_ok=True)
    shards = []
    for number in range(args.shards):
        path = args.output / shard_name(number)
        if not path.exists():
            rows = [heard(teacher, utterances, window) for window in windows[number * SHARD_WINDOWS :][:SHARD_WINDOWS]]
            stored = np.concatenate(rows).astype(np.float16)
            np.save(path, stored[:, [layer - 1 for layer in index.layers]])
        shards.append(Shard(file_sha256(path), index.shards[number].frames))
        print(path, file=sys.stderr, flush=True)
    for name in index.files:
        (args.output / name).write_bytes((args.targets / name).read_bytes())
    write_json(args.output / INDEX, to_dict(first_shards(index, shards, keys)))


def first_shards(index: TargetIndex, shards: Sequence[Shard], keys: Sequence[str]) -> TargetIndex:
    """The index of only these shards, and of the utterances that lie in them as a whole."""
    inside = {key: index.utterances[key] for key in keys}
    kept = {key: pieces for key, pieces in inside.items() if all(piece.shard < len(shards) for piece in pieces)}
    return dataclasses.replace(index, shards=tuple(shards), utterances=kept)


@torch.no_grad()
def heard(teacher: WhisperTeacher, utterances: Sequence[Utterance], window: Sequence[Piece]) -> NDArray[np.float32]:
    """(frames of all pieces of the window, N, C) with masked frames of the mel input set to 0."""
    placed = []
    for piece in window:
        samples = read_utterance(utterances[piece.utterance])[piece.start * HOP_SAMPLES :]
        if frames_for(len(samples)) > piece.frames:
            samples = samples[: samples_of(piece.frames)]
        mel, floor = teacher.mel(torch.from_numpy(samples))
        hidden = mask_of(utterances[piece.utterance], piece.utterance)[piece.start : piece.start + piece.frames]
        mel[: 2 * piece.frames][torch.from_numpy(hidden).repeat_interleave(2)] = 0.0
        placed.append(PlacedMel(mel, floor, piece.position))
    stream = teacher.window(placed)[1].float()
    parts = [stream[:, piece.position : piece.position + piece.frames] for piece in window]
    return torch.cat(parts, dim=1).transpose(0, 1).numpy()


def mask_of(utterance: Utterance, number: int) -> NDArray[np.bool_]:
    """(F,) the one mask of a recording: its number in the data draws it."""
    frames = frames_for(round(utterance.seconds * SAMPLE_RATE_HZ))
    settings = load_recipe("armhubert-s-100h").mask
    return span_mask(settings, [frames], frames, np.random.default_rng([MASK_SEED, number]))[0]


def samples_of(frames: int) -> int:
    """Samples that give so many frames."""
    return (frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES


# -- short trainings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """Recordings that both stores have, and their masks."""

    waves: list[NDArray[np.float32]]
    keys: list[str]
    masks: list[NDArray[np.bool_]]
    plain: TargetStore
    masked: TargetStore

    def batches(self, seed: int) -> Iterator[tuple[Batch, TeacherTargets, torch.Tensor]]:
        """Crops of 4 s without end: (what the student hears, what the teacher made of both inputs, the mask)."""
        random = np.random.default_rng([MASK_SEED, seed])
        while True:
            rows = []
            for number in random.integers(len(self.keys), size=ROWS).tolist():
                start = int(random.integers(self.plain.count(self.keys[number]) - CROP_FRAMES + 1))
                rows.append((number, start))
            waves = [self.waves[n][s * HOP_SAMPLES :][: samples_of(CROP_FRAMES)] for n, s in rows]
            wave = torch.from_numpy(np.stack(waves))
            plain, seen = (
                torch.from_numpy(np.stack([store.frames(self.keys[n], s, CROP_FRAMES) for n, s in rows], axis=1))
                for store in (self.plain, self.masked)
            )
            mask = torch.from_numpy(np.stack([self.masks[n][s : s + CROP_FRAMES] for n, s in rows]))
            lengths = torch.full((ROWS,), wave.shape[1])
            yield Batch(wave, lengths, [""] * ROWS, Position()), TeacherTargets(plain, seen, None), mask


def material(args: argparse.Namespace) -> Material:
    """What both stores have whole and a crop fits into, decoded."""
    plain, seen = (TargetStore(folder, target_norm="layer") for folder in (args.targets, args.masked))
    waves, keys, masks = [], [], []
    for number, utterance in enumerate(find_utterances(args.data).utterances):
        key = utterance_key(utterance)
        if key in seen.index.utterances and seen.count(key) >= CROP_FRAMES:
            waves.append(read_utterance(utterance))
            keys.append(key)
            masks.append(mask_of(utterance, number))
    return Material(waves, keys, masks, plain, seen)


def shape(variant: str, *, head_width: int) -> StudentConfig:
    """A small pocket-stream, with log-mel or the published convolutions."""
    changes: dict[str, Any] = {"width": WIDTH, "ffn_width": FFN_WIDTH, "conv_layers": mel_stack(96, WIDTH)}
    changes["head_width"] = head_width
    if variant == "hint-conv":
        changes |= {"front_end": "conv", "conv_layers": conv_stack(32, 64, WIDTH)}
    if variant.endswith("renormalised"):
        changes["reuse_mode"] = "renormalised"
    return preset("pocket-stream", **changes)


def recipe_of(variant: str) -> TrainingRecipe:
    return load_recipe("pocket-stream", [f"loss.kind={variant.partition('-')[0]}"])


def train(args: argparse.Namespace) -> None:
    """One variant, then what it is worth on other speakers."""
    torch.set_num_threads(1)
    recipe, data = recipe_of(args.variant), material(args)
    torch.manual_seed(args.seed)
    student = Student(shape(args.variant, head_width=data.plain.info.width)).train()
    began = time.process_time()
    steps, curve = fit(student, recipe, data, seed=args.seed, budget_s=args.seconds, budget_steps=args.steps)
    took_s = time.process_time() - began
    folder, _, manifest = args.held_out.partition("=")
    result: dict[str, Any] = {
        "variant": args.variant,
        "seed": args.seed,
        "processor_seconds": round(took_s, 1),
        "steps": steps,
        "audio_seconds": steps * ROWS * CROP_FRAMES * HOP_SAMPLES / SAMPLE_RATE_HZ,
        "material_seconds": sum(map(len, data.waves)) / SAMPLE_RATE_HZ,
        "parameters": sum(p.numel() for p in student.parameters()),
        "loss": curve,
        "held_out": held_out(student.eval(), TargetStore(Path(folder), target_norm="layer"), Path(manifest)),
        "machine": machine(threads=1),
    }
    if args.digits:
        probed = evaluate([of_student("student", student)], [Probe("label", args.digits)], report=lambda _: None)
        row = probed["probes"][0]["results"][0]
        result["digits"] = {name: row[name] for name in ("value", "low", "high")}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, result)
    print(json.dumps({name: result[name] for name in ("variant", "seed", "steps", "held_out")}))


def fit(
    student: Student,
    recipe: TrainingRecipe,
    data: Material,
    *,
    seed: int,
    budget_s: float,
    budget_steps: int | None = None,
) -> tuple[int, list[float]]:
    """(steps, the loss of every tenth) within ``budget_s`` of this process's processor time, or ``budget_steps``."""
    settings, curve = recipe.optimiser, []
    optimiser = torch.optim.AdamW(student.parameters(), lr=settings.lr, betas=(0.9, 0.98), eps=settings.eps, fused=True)
    random, began, steps = np.random.default_rng([MASK_SEED, seed, 1]), time.process_time(), 0
    for batch, targets, mask in data.batches(seed):
        share = steps / budget_steps if budget_steps else (time.process_time() - began) / budget_s
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * min(share / settings.warmup, (1 - share) / (1 - settings.warmup))
        context = recipe.contexts[int(random.integers(len(recipe.contexts)))]
        draws = Draws(mask if recipe.loss.kind == "masking" else None, context, None, 0)
        frames = torch.tensor(float(ROWS * CROP_FRAMES))
        passes = student_passes(recipe, student, batch, draws)
        loss = TERMS[recipe.loss.kind](recipe, targets, passes, draws, frames).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.clip_norm)
        optimiser.step()
        if steps % 10 == 0:
            curve.append(round(float(loss.detach()), 4))
        steps += 1
    return steps, curve


@torch.no_grad()
def held_out(student: Student, store: TargetStore, manifest: Path) -> list[float]:
    """Mean squared error of every layer to the teacher's of the unmasked input, in the student's own chunks."""
    sums, frames = np.zeros(student.config.layers), 0
    for utterance in find_utterances(manifest, split="test").utterances:
        wave = torch.from_numpy(read_utterance(utterance))
        output = student(wave[None], context=student.config.context)
        count = output.layers[0].shape[1]
        target = store.frames(utterance_key(utterance), 0, count)
        ours = torch.cat(output.projections).numpy()
        sums += np.square(ours - target).mean(-1).sum(-1)
        frames += count
    return [round(float(value), 4) for value in sums / frames]


# -- the table -------------------------------------------------------------------------------------------------------


def table(args: argparse.Namespace) -> None:
    """One line for each result, as Markdown."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.results.glob("*.json"))]
    print("\n".join(lines(rows)))


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table of results, in the order of ``VARIANTS``."""
    found = [
        "| variant | seed | steps | seconds | layers 1 to 5, mean | last layer | digits |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (VARIANTS.index(row["variant"]), row["seed"])):
        digits = row.get("digits", {})
        accuracy = f"{digits['value']:.3f} [{digits['low']:.3f}, {digits['high']:.3f}]" if digits else "unmeasured"
        *others, last = row["held_out"]
        mean = math.fsum(others) / len(others)
        cost = f"{row['steps']} | {row['processor_seconds']:.0f}"
        found.append(f"| {row['variant']} | {row['seed']} | {cost} | {mean:.3f} | {last:.3f} | {accuracy} |")
    return found


# -- the time of a step ----------------------------------------------------------------------------------------------


def prototypes() -> dict[str, StudentConfig]:
    """What this shape was before it was ``pocket-stream``: over samples, with dropout; and what it is."""
    ours = preset("pocket-stream")
    published = preset("arm-stream", width=256, conv_layers=conv_stack(128, 192, 256), ffn_width=768, heads=4)
    before = dataclasses.replace(published, layers=6, reuse_layers=ours.reuse_layers, head_width=ours.head_width)
    return {
        "convolutions, dropout": before,
        "convolutions, no dropout": dataclasses.replace(
            before, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, input_dropout=0.0
        ),
        "pocket-stream": ours,
    }


def speed(args: argparse.Namespace) -> None:
    """Seconds of a step of hints (forward, backward, AdamW) on eight crops of 5 s, taken in turns."""
    torch.set_num_threads(1)
    wave = torch.from_numpy(np.stack([speech_like(5 * SAMPLE_RATE_HZ, seed=seed) for seed in range(8)]))
    batch = Batch(wave, torch.full((8,), wave.shape[1]), [""] * 8, Position())
    recipe, frames = recipe_of("hint"), frames_for(wave.shape[1])
    targets = TeacherTargets(torch.randn(6, 8, frames, 512, generator=torch.Generator().manual_seed(0)), None, None)
    steps, sizes = {}, {}
    for name, config in prototypes().items():
        student = Student(config).train()
        optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
        steps[name] = partial(step, recipe, student, optimiser, batch, targets)
        sizes[name] = sum(p.numel() for p in student.parameters())
    seconds = alternate(steps, repeats=args.repeats, warmup=1)
    first = seconds["convolutions, dropout"]
    rows = {
        name: {
            "parameters": sizes[name],
            "step_s": spread(values),
            "times_real_time": spread([batch.seconds / value for value in values]),
            "times_as_fast": ratios(first, values),
        }
        for name, values in seconds.items()
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, {"rows": rows, "repeats": args.repeats, "machine": machine(threads=1)})
    for name, row in rows.items():
        print(f"{name:26} {row['step_s']['median']:.2f} s  {shown_ratio(row['times_as_fast'])}")


def step(
    recipe: TrainingRecipe, student: Student, optimiser: torch.optim.Optimizer, batch: Batch, targets: TeacherTargets
) -> None:
    """One step of ``recipe`` in chunks of 8 frames."""
    draws = Draws(None, student.config.context, None, 0)
    frames = torch.tensor(float(targets.plain.shape[1] * targets.plain.shape[2]))
    loss = TERMS[recipe.loss.kind](recipe, targets, student_passes(recipe, student, batch, draws), draws, frames).loss
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


if __name__ == "__main__":
    main()
