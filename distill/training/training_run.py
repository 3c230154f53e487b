"""One run: from a recipe, a teacher and data to a run folder with a student in it.

OUTPUT/run.json      recipe, data, teacher, versions: what the run is; compared on --resume
OUTPUT/metrics.csv   one row per step
OUTPUT/validation.csv  one row per held-out loss (with --validation)
OUTPUT/best/         the checkpoints with the lowest held-out loss (with --validation)
OUTPUT/skipped.csv   files that were left out, and why
OUTPUT/centres.npy   codes of the loss clusters
OUTPUT/state.pt      for --resume
OUTPUT/loss.svg      the loss curves, however it ends
OUTPUT/student/      the checkpoint folder that rd-export takes
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill import files
from reuse_distill.distill.data.batches import BatchReader
from reuse_distill.distill.data.utterances import Scan, Skipped, check_disjoint, find_utterances, fingerprint, hold_out
from reuse_distill.distill.recipe import TrainingRecipe
from reuse_distill.distill.teachers import Teacher, TeacherInfo, open_teacher
from reuse_distill.distill.teachers.protocol import PairedTeacher, StoredTeacher
from reuse_distill.distill.teachers.stored import INDEX, TargetStore, read_index
from reuse_distill.distill.training.initial_student import started_from
from reuse_distill.distill.training.launch import (
    RunSettings,
    device_of,
    gathered,
    in_first,
    launch,
    precision_of,
    together,
)
from reuse_distill.distill.training.loop import Loop
from reuse_distill.distill.training.pairing import (
    CENTRES,
    check_pair,
    check_targets,
    fitted,
    fitted_centres,
    read_centres,
    with_groups,
    write_centres,
)
from reuse_distill.distill.training.run_folder import (
    RECORDINGS,
    prepare_folder,
    resumed_state,
    write_skipped,
)
from reuse_distill.distill.training.training_progress import Interrupted, interruptible, progress_display
from reuse_distill.report.training_plots import loss_curve
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.cli.progress import print_header
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import to_dict
from reuse_distill.student import StudentConfig, save_checkpoint
from reuse_distill.student.whisper import build_student
from torch import Tensor


def run(recipe: TrainingRecipe, settings: RunSettings) -> Path:
    """Distil; returns the student's checkpoint folder (or the run folder where ``stop_after`` came first).

    Raises RdError for data, teachers and students that do not fit, for an output folder in use, for a loss that is
    not finite, and for a full disk.
    """
    device = device_of(settings)
    teacher = _teacher(recipe, settings, device)
    config, layers = fitted(recipe, teacher.info)
    if settings.targets is not None:
        check_targets(recipe)
    check_pair(recipe, config, teacher, teaching=len(layers))
    targets = None
    if settings.targets is not None:
        targets = TargetStore(settings.targets, layers=layers, target_norm=recipe.loss.target_norm)
    if recipe.student.fit_teacher or recipe.loss.target_norm != "none":
        teacher = PairedTeacher(teacher, layers, target_norm=recipe.loss.target_norm)
    if settings.keep_zeros and (settings.init is None or settings.strategy == "fsdp"):
        raise RdError("zeros are kept of a checkpoint to start from, and not with fsdp", hint="--init; --strategy ddp")
    _check_gates(settings)
    if settings.init is not None:
        started_from(settings.init, config)  # before there is a folder of this run
    scan = find_utterances(settings.data, bad_limit=recipe.data.bad_limit, split=recipe.data.split)
    scan, held, disjoint = _held_out(scan, recipe, settings)
    reader = BatchReader(scan.utterances, recipe.data, seed=recipe.training.seed, bad_before=scan.bad, targets=targets)
    recipe = with_groups(recipe, teacher, reader, device, layers=len(layers))
    identity = {**_identity(recipe, config, teacher, scan, settings), **_recordings(reader)}
    if settings.keep_zeros:
        identity["keep_zeros"] = True
    if settings.gates is not None:
        identity["gates"] = [settings.gates, settings.remove]
    if settings.targets is not None:
        identity["targets_sha256"] = file_sha256(settings.targets / INDEX)
    identity["validation"] = {**fingerprint(held), "disjoint_by": disjoint} if held.utterances else None
    fabric = launch(recipe, settings, device)  # processes other than the first begin at the top, and come here
    with (
        together(fabric),
        files.FolderLock(settings.output) as lock,
        interruptible(quiet=fabric.global_rank > 0) as interrupted,
    ):
        in_first(fabric, partial(prepare_folder, settings, identity, lock))
        if fabric.global_rank == 0:
            print_header("rd-distill run", _facts(recipe, settings, config, layers, teacher.info, scan, device))
        resumed = resumed_state(settings)
        centres = _centres(recipe, settings, teacher, reader, device)
        if centres is not None:
            in_first(fabric, partial(write_centres, settings.output, centres))
        steps = total_steps(recipe, reader, ranks=fabric.world_size)
        loop = Loop(
            fabric, recipe, config, teacher, reader, settings,
            resumed=resumed, steps=steps, held=held.utterances, interrupted=interrupted, centres=centres,
        )  # fmt: skip
        _train(loop, [*scan.skipped, *held.skipped])
        return _finish(loop, settings, identity)


def _centres(
    recipe: TrainingRecipe, settings: RunSettings, teacher: Teacher, reader: BatchReader, device: torch.device
) -> Tensor | None:
    """Codes of the loss clusters: those that the run began with, or fitted now."""
    if "clusters" not in recipe.loss.weights:
        return None
    file = settings.output / CENTRES
    if settings.resume and file.exists():
        return read_centres(file, recipe.loss.clusters)
    return fitted_centres(recipe, teacher, reader, device)


def _check_gates(settings: RunSettings) -> None:
    if settings.gates is None:
        return
    if settings.init is None or settings.validation is not None or settings.devices * settings.nodes > 1:
        raise RdError(
            "gates are trained on a student that is there, by one process, without held-out losses",
            hint="rd-distill compress gates; judge what it leaves with rd-distill evaluate",
        )


def _teacher(recipe: TrainingRecipe, settings: RunSettings, device: torch.device) -> Teacher:
    """The teacher, or where only targets are at hand what is known of it. RdError: targets of another teacher."""
    opened = None
    if settings.teacher is not None:
        opened = open_teacher(settings.teacher, attention=_attention(recipe), dtype=teacher_dtype(recipe, device))
    if settings.targets is None:
        if opened is None:
            raise RdError("there is nothing to learn from", hint="--teacher TEACHER, or --targets DIR")
        return opened
    info = read_index(settings.targets).teacher
    if opened is not None and opened.info.sha256 != info.sha256:
        raise RdError(
            f"{settings.targets} holds targets of {info.name} ({info.sha256[:12]}), --teacher is {opened.info.name} "
            f"({opened.info.sha256[:12]})",
            hint="leave --teacher out, or make targets of this teacher",
        )
    return StoredTeacher(info)


def _facts(
    recipe: TrainingRecipe,
    settings: RunSettings,
    config: StudentConfig,
    layers: Sequence[int],
    info: TeacherInfo,
    scan: Scan,
    device: torch.device,
) -> list[tuple[str, object]]:
    """What a run is, for its header; which of the teacher's layers teaches which of the student's."""
    source = "its layers from targets" if settings.targets is not None else info.kind
    facts: list[tuple[str, object]] = [
        ("student", f"{recipe.student.preset}, {config.layers} layers of width {config.width}"),
        ("teacher", f"{info.name} ({source}), {info.layers} layers of width {info.width}"),
        ("data", f"{settings.data}: {len(scan.utterances)} utterances, {scan.seconds / 3600:.2f} h"),
        ("device", f"{device.type}, precision {precision_of(recipe, device)}"),
        ("output", settings.output),
    ]
    if config.head_kind != "split" and len(layers) == config.layers:
        pairs = ", ".join(f"{own}<-{theirs}" for own, theirs in enumerate(layers, start=1))
        facts.insert(2, ("layers", f"student's <- teacher's: {pairs}"))
    return facts


def _train(loop: Loop, left_out: Sequence[Skipped]) -> None:
    """Train; however it ends, the folder tells how far it came. Raises Interrupted in the first process."""
    folder, reader = loop.settings.output, loop.reader
    if loop.first:
        write_skipped(folder, [*left_out, *reader.augmentation.skipped])
    try:
        with progress_display(loop.steps, done=loop.step, quiet=not loop.first) as progress:
            loop.train(progress)
    except BaseException:
        if loop.metrics is not None:
            with suppress(RdError):  # the error that ended the training is the one to report
                loop.metrics.flush()
                write_skipped(folder, loop.skipped)
                _draw(loop)
        raise
    skipped = gathered(loop.fabric, loop.skipped)
    if loop.first:
        write_skipped(folder, skipped)
        _draw(loop)
        if loop.stopping and loop.step < loop.steps:
            raise Interrupted(f"step {loop.step} of {loop.steps} is saved in {folder}: continue with --resume")


def _draw(loop: Loop) -> None:
    if loop.metrics is not None and loop.metrics.rows:
        held_out = [] if loop.held_out is None else loop.held_out.rows
        loss_curve(loop.metrics.rows, loop.settings.output / "loss.svg", held_out=held_out)


def _held_out(scan: Scan, recipe: TrainingRecipe, settings: RunSettings) -> tuple[Scan, Scan, str]:
    """(training, held out, what they do not share); nothing is held out where nothing was requested."""
    nothing = Scan((), ())
    if settings.validation is None:
        return scan, nothing, ""
    try:
        share = float(settings.validation)
    except ValueError:
        held = find_utterances(settings.validation, bad_limit=recipe.data.bad_limit)
        return scan, held, check_disjoint(scan.utterances, held.utterances)
    split = hold_out(scan.utterances, share, seed=recipe.training.seed)
    return dataclasses.replace(scan, utterances=split.training), Scan(split.held, ()), split.by


def total_steps(recipe: TrainingRecipe, reader: BatchReader, *, ranks: int = 1) -> int:
    """Optimiser steps of the run; epochs are counted in batches of the first epoch's plan."""
    training = recipe.training
    if training.steps:
        return training.steps
    return max(1, math.ceil(training.epochs * len(reader.plan(0)) / (training.accumulate * ranks)))


def weights_sha256(checkpoint: Path) -> str:
    """Hash of a checkpoint's weights; raises RdError where there are none."""
    path = checkpoint / "model.safetensors"
    if not path.is_file():
        raise RdError(
            f"{checkpoint} is not a checkpoint folder: model.safetensors is missing",
            hint="a run's are RUN/student and RUN/best/step-…",
        )
    return file_sha256(path)


def teacher_dtype(recipe: TrainingRecipe, device: torch.device) -> torch.dtype:
    """``auto``: half precision on CUDA unless the run asks for float32, float32 elsewhere."""
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    precision = recipe.training.teacher_precision
    if precision != "auto":
        return known[precision]
    return torch.float16 if device.type == "cuda" and recipe.training.precision != "32-true" else torch.float32


def _attention(recipe: TrainingRecipe) -> str | None:
    return "eager" if "star" in recipe.loss.weights and recipe.loss.attention_weight > 0 else None


def _identity(
    recipe: TrainingRecipe, config: StudentConfig, teacher: Teacher, scan: Scan, settings: RunSettings
) -> dict[str, Any]:
    packages = ("numpy", "transformers", "lightning-fabric", "soxr")
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build, +cu130 or +cpu
    return {
        "recipe": to_dict(recipe),
        "student": to_dict(config),
        "teacher": to_dict(teacher.info),
        "data": fingerprint(scan),
        "processes": settings.devices * settings.nodes,
        "init_sha256": None if settings.init is None else weights_sha256(settings.init),
        "versions": {**versions, **{name: version(name) for name in packages}},
    }


def _recordings(reader: BatchReader) -> dict[str, Any]:
    """What identifies the noise and the rooms of a run; only where there are any."""
    drawn = {name: getattr(reader.augmentation, name) for name in RECORDINGS}
    return {name: fingerprint(recordings.scan) for name, recordings in drawn.items() if recordings is not None}


def _finish(loop: Loop, settings: RunSettings, identity: dict[str, Any]) -> Path:
    if loop.step < loop.steps:
        return settings.output
    student, weights = settings.output / "student", loop.student_state()
    if loop.metrics is None:
        return student
    rows = loop.metrics.rows
    losses = [row["loss"] for row in rows]
    tenth = max(1, len(losses) // 10)
    training = {
        **identity,
        "steps": loop.steps,
        "seed": loop.recipe.training.seed,
        "device": str(loop.device),
        "precision": loop.precision,
        "loss_first_tenth": sum(losses[:tenth]) / tenth,
        "loss_last_tenth": sum(losses[-tenth:]) / tenth,
        "losses": losses,
        "audio_hours": sum(row["audio_s"] for row in rows) / 3600,
    }
    fresh = build_student(loop.config)
    fresh.load_state_dict(weights)
    if loop.gated is not None:
        fresh, training["gates"] = loop.gated.pruned(), loop.gated.record()
    held_out = [] if loop.held_out is None else loop.held_out.rows
    if loop.best is not None:
        training["validation_losses"] = [[row["step"], row["loss"]] for row in held_out]
        training["best"] = loop.best.entries
    save_checkpoint(student, fresh, provenance=loop.provenance, training=training)
    return student
