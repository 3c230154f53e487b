"""A quarter of Whisper's encoder: pruned by gates and recovered, or a fresh student taught for as long.

    python -m benchmarks.prune_or_distil WHISPER --data AUDIO --held AUDIO --probe label=MANIFEST --work DIR

Both learn from the same teacher on the same crops: Whisper's encoder on windows of a few seconds, its positions cut
there (its own 30 s would take ten times as long for the same speech). *Pruned*: ``rd-distill compress gates`` and its
recovery, taught the last layer. *Fresh*: the shape of the recipe ``pocket``, a little wider, with that recipe's loss of
all layers (the last alone leaves it at the mean of all frames) and optimiser, for as many steps as fit the processor
time that the pruned one took. Projections that only train are not counted.
Distance: squared error of the last layer over its variance, held-out recordings. Probe: as ``rd-distill evaluate``, on
the last layer alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.distill.compress.compress_run import Compression, Places, compress, open_student
from reuse_distill.distill.compress.reshaping import plain_state, rebuilt
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.evaluation.bootstrap import difference_interval, ratio_interval
from reuse_distill.distill.evaluation.evaluate import labelled_data, outcome_of, probe_of, thinned
from reuse_distill.distill.evaluation.features import Features
from reuse_distill.distill.files import read_json, write_json
from reuse_distill.distill.recipe import TrainingRecipe, changed, load_recipe
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.student import Student, load_checkpoint, save_checkpoint
from torch import Tensor

from benchmarks.compressed_features import features, judged
from benchmarks.timing import machine

RATIO = 0.75  # of the parameters that go
FRESH_UNITS = 1088  # of a feed-forward block: 5.00 M parameters; a quarter of Whisper base's encoder is 4.98 M
TIMED_STEPS = (1, 8, 24)  # short runs of the fresh student: the first imports, the others tell what a step takes
LAST_LAYER = {"hint_weight": 0.0, "target_norm": "none"}
POSITIONS = "encoder.pos_conv.0.weight"


def windowed(whisper: Student, seconds: float) -> Student:
    """Whisper's encoder that sees windows of ``seconds``: its first positions."""
    frames, state = round(seconds * SAMPLE_RATE_HZ / HOP_SAMPLES), plain_state(whisper)
    state[POSITIONS] = state[POSITIONS][:frames].clone()
    return rebuilt(whisper, state, window_frames=frames)


def prune(teacher: Path, args: argparse.Namespace) -> tuple[Path, float]:
    """(student, processor time in seconds) of gates and recovery."""
    output = args.work / "pruned"
    recipe = changed(load_recipe("recover"), loss=LAST_LAYER, data=data_of(args))
    plan = Compression(("gates",), ((RATIO,),), recover=args.recover, gate_steps=args.gate_steps)
    places = Places(teacher, args.data, output, device="cpu")
    return timed(output / "time.json", lambda: compress(plan, places, recipe))


def distil(teacher: Path, args: argparse.Namespace, budget_s: float) -> tuple[Path, float]:
    """(student, processor time in seconds) of a fresh student in about ``budget_s``."""
    recipe = fresh_recipe(args)
    output = args.work / "fresh"
    steps_file = args.work / "fresh_steps.json"
    if not steps_file.exists():
        _, short, long = (_seconds_of(recipe, teacher, args, steps) for steps in TIMED_STEPS)
        each = (long - short) / (TIMED_STEPS[2] - TIMED_STEPS[1])
        write_json(steps_file, {"steps": max(1, round(TIMED_STEPS[1] + (budget_s - short) / each))})
    steps = read_json(steps_file)["steps"]
    return timed(output / "time.json", lambda: _run(recipe, teacher, args, output, steps))


def _seconds_of(recipe: TrainingRecipe, teacher: Path, args: argparse.Namespace, steps: int) -> float:
    output = args.work / f"fresh-{steps}-steps"
    return timed(output / "time.json", lambda: _run(recipe, teacher, args, output, steps))[1]


def fresh_recipe(args: argparse.Namespace) -> TrainingRecipe:
    """As ``pocket``, with its loss of all layers; the levels are the teacher's."""
    recipe = load_recipe("pocket")
    data = {**data_of(args), "student_gain_db": (0.0, 0.0), "narrow_band_probability": 0.0}
    changes = {**recipe.student.changes, "ffn_width": FRESH_UNITS}
    loss = LAST_LAYER if args.last_layer else {}
    return changed(recipe, loss=loss, data=data, student={"changes": changes})


def size_of(student: Student) -> int:
    """Parameters that the last layer's features need."""
    heads = [] if student.proj_head is None else list(student.proj_head)[:-1]
    unused = sum(p.numel() for head in heads for p in head.parameters())
    return sum(p.numel() for p in student.parameters()) - unused


def data_of(args: argparse.Namespace) -> dict[str, Any]:
    """Crops of one window each."""
    crops = {"batch_size": args.batch, "batch_seconds": args.batch * args.window, "crop_seconds": args.window}
    return {**crops, "workers": 1}


def _run(recipe: TrainingRecipe, teacher: Path, args: argparse.Namespace, output: Path, steps: int) -> Path:
    recipe = changed(recipe, training={"steps": steps, "checkpoint_every": steps})
    return run(recipe, RunSettings(teacher=teacher, data=args.data, output=output, device="cpu"))


def timed(file: Path, call: Callable[[], Path]) -> tuple[Path, float]:
    """(what ``call`` made, the processor time that it took); both kept in ``file``."""
    if file.exists():
        stored = read_json(file)
        return Path(stored["student"]), float(stored["processor_s"])
    began = time.process_time()
    made = call()
    spent = time.process_time() - began
    write_json(file, {"student": str(made), "processor_s": spent})
    return made, spent


def last_layer(name: str, student: Student) -> Features:
    """The last projection, or the last layer where there are none."""
    return Features(name, size_of(student), lambda samples: features(student, samples)[None])


def held_out(args: argparse.Namespace) -> tuple[list[Tensor], list[str]]:
    """(a window of each recording, its speaker)."""
    known = find_utterances(args.held, split=args.split).utterances
    chosen = [known[i] for i in np.random.default_rng(0).permutation(len(known))[: args.utterances]]
    waves = [torch.from_numpy(read_utterance(one)[: round(args.window * SAMPLE_RATE_HZ)]) for one in chosen]
    return waves, [one.speaker for one in chosen]


def judge(students: dict[str, Student], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Distance to the teacher (the first of ``students``) and the probe's error, with intervals."""
    waves, speakers = held_out(args)
    teacher = [features(next(iter(students.values())), wave) for wave in waves]
    probe = probe_of(args.probe)
    data = thinned(labelled_data(probe), train_share=args.train_share)
    outcomes, rows = {}, {}
    for name, student in students.items():
        distance, cosine = judged(teacher, [features(student, wave) for wave in waves], speakers)
        outcomes[name] = outcome = outcome_of(probe, last_layer(name, student), data)
        accuracy = ratio_interval(outcome.numerators, outcome.denominators, groups=data.groups)
        named = {"distance": distance, "cosine": cosine, "accuracy": accuracy}
        rows[name] = {key: dataclasses.asdict(value) for key, value in named.items()}
        print(f"{name}: " + ", ".join(f"{key} {_shown(value)}" for key, value in rows[name].items()), flush=True)
    first, second = (outcomes[name] for name in ("pruned", "fresh"))
    change = difference_interval(first.numerators, second.numerators, first.denominators, groups=data.groups)
    rows["pruned minus fresh"] = {"accuracy": dataclasses.asdict(change)}
    facts = {"recordings": len(waves), "frames": sum(map(len, teacher)), "train": len(data.train)}
    return {**rows, "on": {**facts, "test": len(data.test)}}


def _shown(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("whisper", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="to train on")
    parser.add_argument("--held", required=True, help="recordings for the distance")
    parser.add_argument("--split", help="value of their manifest's column 'split'")
    parser.add_argument("--probe", required=True, metavar="label=MANIFEST")
    parser.add_argument("--work", type=Path, required=True, help="what is there is not made again")
    parser.add_argument("--gate-steps", type=int, default=120)
    parser.add_argument("--recover", type=int, default=200)
    parser.add_argument("--window", type=float, default=4.0, help="seconds that the teacher sees at once")
    parser.add_argument("--batch", type=int, default=3, help="windows of a step")
    parser.add_argument("--last-layer", action="store_true", help="teach the fresh student the last layer only")
    parser.add_argument("--utterances", type=int, default=42)
    parser.add_argument("--train-share", type=float, default=0.4, help="of the probe's items to train on")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


def main() -> int:
    args = parsed()
    torch.set_num_threads(1)
    teacher = args.work / "teacher"
    if not teacher.exists():
        save_checkpoint(teacher, windowed(open_student(args.whisper), args.window))
    pruned, pruned_s = prune(teacher, args)
    print(f"pruned in {pruned_s:.0f} s", flush=True)
    fresh, fresh_s = distil(teacher, args, pruned_s)
    print(f"fresh in {fresh_s:.0f} s", flush=True)
    students = {
        name: load_checkpoint(path) for name, path in (("teacher", teacher), ("pruned", pruned), ("fresh", fresh))
    }
    result = {
        "machine": machine(threads=1),
        "parameters": {name: size_of(student) for name, student in students.items()},
        "processor_s": {"pruned": pruned_s, "fresh": fresh_s},
        "steps": {
            "gates": args.gate_steps,
            "recovery": args.recover,
            "fresh": read_json(args.work / "fresh_steps.json")["steps"],
        },
        **judge(students, args),
    }
    if args.json is not None:
        write_json(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
