"""One compression: steps of a schedule, each a method and recovery by distillation. Every part can be resumed.

OUTPUT/compress.json        what the compression is; compared on --resume
OUTPUT/original/            the student as it was: what recovery is taught by, unless a teacher is named
OUTPUT/step-NN/gates/       a run of rd-distill that trains gates; its student is what they leave
OUTPUT/step-NN/compressed/  after the methods of step NN
OUTPUT/step-NN/round-R/     a run of rd-distill; its student is what the next one starts from
OUTPUT/student/             the result

A step that was killed is made again from the student before it, whose bytes are the same: so are scores and masks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from reuse_distill.distill.compress.methods import BY_DATA, SPARSE, TRAINED, by_name, gated, shape_left
from reuse_distill.distill.compress.schedule import has_settled, never_settled
from reuse_distill.distill.compress.weight_pruning import sparsity
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import find_utterances, fingerprint
from reuse_distill.distill.files import FolderLock, read_json, write_json
from reuse_distill.distill.recipe import TrainingRecipe, changed, difference
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import to_dict
from reuse_distill.student import Student, StudentConfig, load_checkpoint, save_checkpoint
from reuse_distill.student.checkpoints.checkpoint import TRAINING, WEIGHTS, is_checkpoint, read_provenance, state_sha256
from reuse_distill.student.cost import macs_per_second
from reuse_distill.student.foreign import is_foreign, read_foreign, student_of
from torch import Tensor

if TYPE_CHECKING:
    from reuse_distill.distill.training import RunSettings

PLAN = "compress.json"
SCORED_UTTERANCES = 16
SECONDS = 10.0  # of speech that costs are counted on
Report = Callable[[str], None]


@dataclass(frozen=True)
class Compression:
    """What is done to a student. ``ratios`` and ``methods`` have one entry per method; ``levels`` one per step."""

    methods: tuple[str, ...]
    levels: tuple[tuple[float, ...], ...]  # of each step: the share that each method has removed after it
    recover: int = 0  # optimiser steps of a round of recovery; 0: none
    rounds: int = 1  # most rounds of a step
    settle: float | None = None  # a step goes on to the next round until the loss falls by no more than this share
    seed: int = 0
    gate_steps: int = 0  # optimiser steps of the methods that train gates

    @property
    def trained(self) -> str | None:
        """The method that trains gates, if there is one: it is the first."""
        return self.methods[0] if self.methods[0] in TRAINED else None


@dataclass(frozen=True)
class Places:
    """Where a compression reads and writes."""

    student: Path
    data: Path | str | None
    output: Path
    teacher: Path | str | None = None  # None: the student itself
    targets: Path | None = None
    resume: bool = False
    device: str = "auto"


def compress(plan: Compression, places: Places, recipe: TrainingRecipe | None, *, report: Report = print) -> Path:
    """The checkpoint folder of the compressed student. ``recipe``: of recovery and of gates; None: neither.

    Raises RdError for data that is missing, an output folder of another compression, shares that leave nothing, and a
    step that never settles.
    """
    if places.data is None and (plan.recover or plan.trained or set(plan.methods) & set(BY_DATA)):
        raise RdError("there is no audio to recover or to score on", hint="--data PATH")
    original = open_student(places.student)
    if not places.resume:
        _check_possible(plan, original, recipe)
    identity = _identity(plan, places, recipe, original)
    with FolderLock(places.output) as lock:
        _prepare(places, identity, lock)
        before = places.output / "original"
        if not is_checkpoint(before):
            save_checkpoint(before, original, provenance={"from": places.student.name})
        for number, shares in enumerate(plan.levels, start=1):
            folder = places.output / f"step-{number:02d}"
            before = _step(plan, places, recipe, before, folder, number, shares, report)
        return _finish(before, plan, places, report)


def open_student(path: Path) -> Student:
    """A student of ours, or an encoder of another library (HuBERT, WavLM, Whisper, MelHuBERT)."""
    if path.is_dir() and not is_foreign(path):
        return load_checkpoint(path)
    if not path.exists():
        raise RdError(f"there is no student at {path}", hint="a checkpoint folder, a transformers folder or a file")
    return student_of(read_foreign(path))


def _check_possible(plan: Compression, original: Student, recipe: TrainingRecipe | None) -> None:
    """RdError for shares that the methods cannot remove one after the other, before there is a folder."""
    for shares in (plan.levels[0], plan.levels[-1]):
        left = original
        for name, share in zip(plan.methods, shares, strict=True):
            if name in TRAINED and recipe is not None:
                gated(original, name, recipe.gates, share)
            elif name not in TRAINED:
                left = shape_left(left, name, share)


def _identity(plan: Compression, places: Places, recipe: TrainingRecipe | None, original: Student) -> dict[str, Any]:
    scan = None if places.data is None else find_utterances(places.data, bad_limit=0.05)
    identity = {
        "plan": to_dict(plan),
        "student": to_dict(original.config),
        "weights": state_sha256(original.state_dict()),
        "data": None if scan is None else fingerprint(scan),
        "recipe": None if recipe is None else to_dict(recipe),
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    if plan.trained is None:  # as compressions were recorded before there were gates
        del plain["plan"]["gate_steps"]
        if recipe is not None:
            del plain["recipe"]["gates"]
    return plain


def _prepare(places: Places, identity: dict[str, Any], lock: FolderLock) -> None:
    file = places.output / PLAN
    if file.exists() and not places.resume:
        raise RdError(f"{places.output} already holds a compression", hint="continue with --resume, or another folder")
    if places.resume and not file.exists():
        raise RdError(f"{places.output} holds no compression to resume", hint="leave --resume out to start one")
    try:
        places.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RdError(f"{places.output} cannot be made: {error.strerror}", hint="name another folder") from None
    lock.take()
    if not file.exists():
        write_json(file, identity)
        return
    stored = read_json(file)
    changes = difference(stored if isinstance(stored, dict) else {}, identity)
    if changes:
        raise RdError(
            f"{places.output} is another compression: " + "; ".join(changes[:5]),
            hint="resume with the student, data and options that it was started with",
        )


def _step(
    plan: Compression,
    places: Places,
    recipe: TrainingRecipe | None,
    before: Path,
    folder: Path,
    number: int,
    shares: Sequence[float],
    report: Report,
) -> Path:
    """The checkpoint after one step: what is there already is not made again."""
    made = folder / "compressed"
    if not is_checkpoint(made):
        if plan.trained is not None:
            assert recipe is not None  # noqa: S101  (the command has seen to it)
            before = _gated(plan, places, recipe, before, folder / "gates", shares[0])
        student = load_checkpoint(before)
        waves = _waves(plan, places)
        for name, share in zip(plan.methods, shares, strict=True):
            if name in TRAINED:
                continue
            student = by_name(name)(student, share, waves, plan.seed)
        save_checkpoint(made, student, provenance=_provenance(plan, places, number))
    shares_by_name = ", ".join(f"{name} {share:g}" for name, share in zip(plan.methods, shares, strict=True))
    report(f"step {number} of {len(plan.levels)}: {shares_by_name} removed; {_size(load_checkpoint(made))}")
    if recipe is None or not plan.recover:
        return made
    losses: list[float] = []
    for round_number in range(1, plan.rounds + 1):
        made, loss = _recovered(plan, places, recipe, made, folder / f"round-{round_number}")
        losses.append(loss)
        report(f"  round {round_number}: loss {loss:.4g}")
        if plan.settle is None and round_number == plan.rounds:
            return made
        if plan.settle is not None and has_settled(losses, plan.settle):
            return made
    assert plan.settle is not None  # noqa: S101
    raise never_settled(number, losses, plan.settle)


def _recovered(
    plan: Compression, places: Places, recipe: TrainingRecipe, start: Path, folder: Path
) -> tuple[Path, float]:
    """(student, its loss) after one round of recovery from the checkpoint ``start``."""
    from reuse_distill.distill.training import run  # takes seconds to import

    done = folder / "student"
    if not is_checkpoint(done):
        settings = _run_settings(places, start, folder)
        settings = dataclasses.replace(settings, keep_zeros=bool(set(plan.methods) & set(SPARSE)))
        run(fitting(recipe, load_checkpoint(start).config, steps=plan.recover, seed=plan.seed), settings)
    losses = read_json(done / TRAINING)["losses"]
    last = losses[-max(1, len(losses) // 10) :]
    return done, sum(last) / len(last)


def _gated(plan: Compression, places: Places, recipe: TrainingRecipe, start: Path, folder: Path, target: float) -> Path:
    """The student that gates trained on ``start`` leave, without ``target`` of its parameters."""
    from reuse_distill.distill.training import run  # takes seconds to import

    done = folder / "student"
    if not is_checkpoint(done):
        settings = dataclasses.replace(_run_settings(places, start, folder), gates=plan.trained, remove=target)
        run(fitting(recipe, load_checkpoint(start).config, steps=plan.gate_steps, seed=plan.seed), settings)
    return done


def _run_settings(places: Places, start: Path, folder: Path) -> RunSettings:
    """A run on ``start`` in ``folder``, taught by what the compression is taught by; resumed where it was begun."""
    from reuse_distill.distill.training import RunSettings

    assert places.data is not None  # noqa: S101  (compress has seen to it)
    return RunSettings(
        teacher=places.teacher or (None if places.targets else places.output / "original"),
        targets=places.targets,
        data=places.data,
        output=folder,
        resume=(folder / "run.json").exists(),
        init=start,
        device=places.device,
    )


def fitting(recipe: TrainingRecipe, config: StudentConfig, *, steps: int, seed: int) -> TrainingRecipe:
    """The recipe for ``steps`` on a student of this shape, which also hears in the chunks that it is meant for."""
    recipe = changed(recipe, training={"steps": steps, "epochs": 0, "seed": seed})
    student = dataclasses.replace(recipe.student, changes=to_dict(config), fit_teacher=False, from_teacher=False)
    contexts = recipe.contexts if config.context is None else (*recipe.contexts, config.context)
    return dataclasses.replace(recipe, student=student, contexts=contexts)


def _waves(plan: Compression, places: Places) -> list[Tensor]:
    """A few utterances to score on, drawn by the seed."""
    if not set(plan.methods) & set(BY_DATA):
        return []
    assert places.data is not None  # noqa: S101
    return drawn_waves(places.data, plan.seed)


def drawn_waves(
    data: Path | str, seed: int, *, count: int = SCORED_UTTERANCES, split: str | None = None
) -> list[Tensor]:
    """The first seconds of ``count`` utterances, (T,) each."""
    utterances = find_utterances(data, bad_limit=0.05, split=split).utterances
    drawn = np.random.default_rng(seed).permutation(len(utterances))[:count]
    return [torch.from_numpy(read_utterance(utterances[index]))[: 16_000 * int(SECONDS)] for index in drawn]


def _provenance(plan: Compression, places: Places, number: int) -> dict[str, Any]:
    return {
        "made_by": "rd-distill compress",
        "methods": list(plan.methods),
        "removed": list(plan.levels[number - 1]),
        "from": places.student.name,
    }


def _finish(last: Path, plan: Compression, places: Places, report: Report) -> Path:
    student = load_checkpoint(last)
    provenance = {**read_provenance(last), **_provenance(plan, places, len(plan.levels))}
    training = {"weights_sha256": file_sha256(last / WEIGHTS), "plan": to_dict(plan)}
    done = save_checkpoint(places.output / "student", student, provenance=provenance, training=training)
    report(f"{done}: {_size(student)}")
    return done


def _size(student: Student) -> str:
    parameters = sum(p.numel() for p in student.parameters())
    macs = sum(macs_per_second(student.config, seconds=SECONDS).values())
    zeros = sparsity(student)
    sparse = f", {zeros:.0%} of the layers' weights are zero" if zeros > 0.01 else ""
    return f"{parameters / 1e6:.2f} M parameters, {macs / 1e9:.3f} GMACs per second{sparse}"
