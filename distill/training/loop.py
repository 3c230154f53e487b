"""The loop: batches to steps. It owns the device, the optimiser, the files and where the random draws start.

Lightning Fabric places the model, runs mixed precision and joins processes (DDP); what happens in a step stands here.
A step whose loss or gradient is not finite keeps its batches and ends the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.distill.compress.gates import GatedStudent
from reuse_distill.distill.compress.methods import gated
from reuse_distill.distill.compress.weight_pruning import keep_zeros, zero_masks
from reuse_distill.distill.data.batches import Batch, BatchReader, Position
from reuse_distill.distill.data.utterances import Skipped, Utterance
from reuse_distill.distill.quantised import QuantisedStudent
from reuse_distill.distill.recipe import OptimiserSettings, TrainingRecipe
from reuse_distill.distill.teachers import Teacher
from reuse_distill.distill.training.held_out import BestCheckpoints, Validator
from reuse_distill.distill.training.initial_student import copy_weights, last_layers_only, started_from
from reuse_distill.distill.training.launch import (
    RunSettings,
    load_optimiser_state,
    model_state,
    optimiser_state,
    place,
    precision_of,
    share,
)
from reuse_distill.distill.training.objective import Draws, Measured, draw, frame_count, measure, on_device
from reuse_distill.distill.training.run_folder import (
    STATE,
    VALIDATION,
    MetricsFile,
    TensorBoardLog,
    restored,
    save_state,
)
from reuse_distill.distill.training.training_progress import TrainingProgress
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import StudentConfig
from reuse_distill.student.whisper import build_student
from torch import Tensor, nn

SCALED = "16-mixed"  # the precision that has a gradient scaler


def learning_rate(settings: OptimiserSettings, step: int, steps: int) -> float:
    """Rate of 0-based ``step``: linear warm-up over the first share of the steps, then linear decay to zero."""
    warm = int(settings.warmup * steps)
    if step < warm:
        return settings.lr * (step + 1) / (warm + 1)
    return settings.lr * (steps - step) / max(1, steps - warm)


class Loop:
    """One run in this process. ``step`` counts finished optimiser steps; ``position`` is the next batch."""

    def __init__(
        self,
        fabric: Any,
        recipe: TrainingRecipe,
        config: StudentConfig,
        teacher: Teacher,
        reader: BatchReader,
        settings: RunSettings,
        *,
        resumed: dict[str, Any] | None,
        steps: int,
        held: Sequence[Utterance] = (),
        centres: Tensor | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.recipe, self.config, self.reader, self.settings, self.steps = (
            recipe,
            config,
            reader,
            settings,
            steps,
        )
        self.fabric, self.interrupted = fabric, interrupted
        self.stopping = False  # one of the processes was interrupted
        self.device: torch.device = self.fabric.device
        self.precision = precision_of(recipe, self.device)
        self.first: bool = self.fabric.global_rank == 0
        self.teacher = teacher.to(self.device)
        self.centres = None if centres is None else centres.to(self.device)
        torch.manual_seed(recipe.training.seed)  # the student's initial weights
        student = build_student(config) if settings.init is None else started_from(settings.init, config)
        if recipe.student.from_teacher and settings.init is None:
            copy_weights(self.teacher, student)
        self.student = last_layers_only(student, recipe.training.last_layers)
        self.zeros = zero_masks(student) if settings.keep_zeros else {}  # of the weights that it starts from
        self.gated: GatedStudent | None = None
        if settings.gates is not None:
            self.gated = gated(student, settings.gates, recipe.gates, settings.remove)
        quantised = QuantisedStudent(student) if recipe.training.fake_quant else student
        trained = self.gated or quantised
        if resumed is not None:
            restored(self._state_file, "model", partial(trained.load_state_dict, resumed["model"]))
        if settings.compile:
            student.compile(dynamic=True)
        make_optimiser = partial(_optimiser, settings=recipe.optimiser, fused=self.precision != SCALED)
        if self.gated is not None:
            groups = self.gated.parameter_groups(recipe.optimiser.lr)
            make_optimiser = partial(_optimiser_of, groups, make_optimiser)
        self.model, self.optimiser = place(fabric, trained.train(), make_optimiser)
        self.step, self.position = 0, Position()
        if resumed is not None:
            saved = resumed["optimiser"]
            load = partial(load_optimiser_state, fabric, self.model.module, self.optimiser, saved)
            restored(self._state_file, "optimiser", load)
            precision = partial(self.fabric.strategy.precision.load_state_dict, resumed["precision"])
            restored(self._state_file, "precision", precision)
            self.step, self.position = int(resumed["step"]), Position(*resumed["position"])
        self.metrics = MetricsFile(settings.output, keep_steps=self.step) if self.first else None
        self.validator = None
        if held:
            self.validator = Validator(
                fabric, recipe, self.teacher, held,
                layers=config.layers, targets=reader.targets, centres=self.centres,
            )  # fmt: skip
        keeps_held = self.first and self.validator is not None
        self.held_out, self.best = None, None
        if keeps_held:
            self.held_out = MetricsFile(settings.output, keep_steps=self.step, name=VALIDATION)
            self.best = BestCheckpoints(settings.output, keep=recipe.training.keep_best)
        logs = self.first and settings.tensorboard
        self.tensorboard = TensorBoardLog(settings.output, from_step=self.step) if logs else None

    def train(self, progress: TrainingProgress) -> None:
        """Steps until the run is done (or ``stop_after``), with checkpoints on the way and at the end."""
        stop = min(self.steps, self.settings.stop_after or self.steps)
        every = self.recipe.training.checkpoint_every
        rank, ranks, pin = self.fabric.global_rank, self.fabric.world_size, self.device.type == "cuda"
        batches = self.reader.batches(self.position, rank=rank, ranks=ranks, pin=pin)
        try:
            while self.step < stop and not self.stopping:
                row = self._step(batches)
                if self.metrics is not None:
                    self.metrics.add(row)
                if self.tensorboard is not None:
                    self.tensorboard.add(row)
                progress.step(self.step, row)
                if self.validator is not None and self._validates_now():
                    self._validate(self.validator, progress)
                if self.step % every == 0 or self.step == stop or self.stopping:
                    self._save()
        except RuntimeError as error:
            out_of = _memory_that_ran_out(error)
            if out_of is None:
                raise
            raise RdError(
                f"{out_of} at step {self.step + 1}: {str(error).splitlines()[0]}",
                hint=f"lower data.batch_seconds (now {self.recipe.data.batch_seconds:g}) and raise training.accumulate",
            ) from None
        finally:
            batches.close()
            if self.tensorboard is not None:
                self.tensorboard.close()

    @property
    def _state_file(self) -> Path:
        return self.settings.output / STATE

    def student_state(self) -> dict[str, Tensor]:
        """The student's parameters on the CPU; every process calls it (``launch.model_state``)."""
        return model_state(self.fabric, self.student)

    @property
    def skipped(self) -> list[Skipped]:
        """What this process knows to be left out since the scan, held-out audio too."""
        return [*self.reader.skipped, *(self.validator.reader.skipped if self.validator is not None else ())]

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the student comes from, for its checkpoint folders."""
        info = self.teacher.info
        return {
            "made_by": f"rd-distill run {self.recipe.name}",
            "teacher": info.name,
            "teacher_sha256": info.sha256,
        }

    def _validates_now(self) -> bool:
        every = self.recipe.training.validate_every or self.recipe.training.checkpoint_every
        return self.step % every == 0 or self.step == self.steps

    def _validate(self, validator: Validator, progress: TrainingProgress) -> None:
        """The held-out loss after this step, and the checkpoint if it is one of the best."""
        row = {"step": float(self.step), **validator.measure(self.model)}
        weights = self.student_state()
        if self.held_out is None or self.best is None:
            return
        self.held_out.add(row)
        self.held_out.flush()
        progress.validated(self.step, row["loss"])
        if self.tensorboard is not None:
            self.tensorboard.add(row, prefix="validation/")
        if self.best.wants(self.step, row["loss"]):
            student = build_student(self.config)
            student.load_state_dict(weights)
            self.best.add(self.step, row["loss"], student, self.provenance)

    def _step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step over ``accumulate`` batches in every process; the row for metrics.csv."""
        began = time.perf_counter()
        group = list(islice(batches, self.recipe.training.accumulate))
        ranks = self.fabric.world_size
        counts = torch.tensor([[frame_count(self.recipe, b), b.seconds] for b in group]).sum(0)
        damaged = sum(source.unshared for source in self.reader.damaged_files)
        totals = torch.cat([counts, torch.tensor([float(self.interrupted()), float(damaged)])]).to(self.device)
        totals = self.fabric.all_reduce(totals, reduce_op="sum") if ranks > 1 else totals
        rate = learning_rate(self.recipe.optimiser, self.step, self.steps)
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = rate * parameters.get("scale", 1.0)
        drawn = [(batch, draw(self.recipe, batch, layers=self.config.layers)) for batch in group]
        terms: dict[str, Tensor] = {}
        losses = []
        for number, (batch, draws) in enumerate(drawn):
            with self.fabric.no_backward_sync(self.model, enabled=number + 1 < len(group)):
                losses.append(self._accumulate(batch, draws, totals[0], terms))
        norm = self._apply()
        last = group[-1].position
        self.position = self.reader.after(last, ranks - self.fabric.global_rank)
        self.step += 1
        row = {"step": float(self.step), "epoch": float(last.epoch), "lr": rate}
        read, own_losses = self._read(norm, terms, totals[1:], losses)
        self.stopping = read.pop("interrupted") > 0
        if read.pop("damaged") > 0:
            share(self.fabric, self.reader.damaged_files)
        row |= read
        stop_if_not_finite(
            row,
            own_losses,
            drawn,
            output=self.settings.output,
            rank=self.fabric.global_rank,
            scaled=self.precision == SCALED,
        )
        return {**row, "wall_s": time.perf_counter() - began}

    def _accumulate(self, batch: Batch, draws: Draws, frames: Tensor, terms: dict[str, Tensor]) -> Tensor:
        """Add the gradients and terms of one batch; its loss, detached."""
        moved, draws = on_device(batch, draws, self.device)
        measured = measure(self.recipe, self.model, self.teacher, moved, draws, frames=frames, centres=self.centres)
        if self.gated is not None:  # by as much in each batch of the step
            penalty = self.gated.penalty(self.step / self.steps) / self.recipe.training.accumulate
            removed = self.gated.removed() / self.recipe.training.accumulate
            terms_of_gates = {"distillation": measured.loss, "removed": removed}
            measured = Measured(measured.loss + penalty, {**measured.terms, **terms_of_gates})
        # Processes average their gradients, the loss is divided by the frames of all: hence the factor.
        self.fabric.backward(measured.loss * self.fabric.world_size)
        for name, value in {"loss": measured.loss, **measured.terms}.items():
            terms[name] = terms.get(name, torch.zeros((), device=self.device)) + value.detach().float()
        return measured.loss.detach().float()

    def _apply(self) -> Tensor:
        """One optimiser step; the norm of the gradients before clipping."""
        limit = self.recipe.optimiser.clip_norm or float("inf")
        norm = self.fabric.clip_gradients(self.model, self.optimiser, max_norm=limit, error_if_nonfinite=False)
        self.optimiser.step()
        self.optimiser.zero_grad()
        keep_zeros(self.student, self.zeros)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _read(
        self, norm: Tensor, terms: dict[str, Tensor], totals: Tensor, losses: Sequence[Tensor]
    ) -> tuple[dict[str, float], list[float]]:
        """(norm, terms of all processes, their ``totals``; this process's loss of each batch), on the host.

        totals: seconds of audio, how many processes were interrupted, and files that one of them found damaged.

        The one place where a step waits for the device.
        """
        summed = torch.stack(list(terms.values()))
        if self.fabric.world_size > 1:
            summed = self.fabric.all_reduce(summed, reduce_op="sum")
        numbers = torch.cat([norm.float()[None], summed, totals, torch.stack(losses)]).tolist()
        named = dict(zip(("grad_norm", *terms, "audio_s", "interrupted", "damaged"), numbers, strict=False))
        return named, numbers[len(named) :]

    def _save(self) -> None:
        model = model_state(self.fabric, self.model.module)
        optimiser = optimiser_state(self.fabric, self.model.module, self.optimiser)
        if self.metrics is None:
            return
        self.metrics.flush()
        save_state(
            self.settings.output,
            step=self.step,
            position=self.position,
            model=model,
            optimiser=optimiser,
            precision=self.fabric.strategy.precision.state_dict(),
        )


def _memory_that_ran_out(error: RuntimeError) -> str | None:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "the GPU ran out of memory"
    return "the host ran out of memory" if "DefaultCPUAllocator" in str(error) else None


def _optimiser_of(groups: list[dict[str, Any]], make: Callable[[Any], Any], _: Any) -> Any:
    """The optimiser of ``groups`` in place of all parameters in one."""
    return make(groups)


def _optimiser(
    parameters: Iterable[nn.Parameter], settings: OptimiserSettings, *, fused: bool
) -> torch.optim.Optimizer:
    """AdamW, in one kernel where ``fused``; with a gradient scaler that kernel would unscale after the clipping."""
    return torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def stop_if_not_finite(
    row: Mapping[str, float],
    losses: Sequence[float],
    group: Sequence[tuple[Batch, Draws]],
    *,
    output: Path,
    rank: int,
    scaled: bool,
) -> None:
    """Raise RdError where ``row`` has a loss or gradient norm that is not finite, with this process's batches kept.

    losses: one per batch of ``group``, in this process. group: batches and what was drawn for them. scaled: whether a
    gradient scaler looks after gradients that overflow (float16), so that only the loss counts.
    """
    named = [name for name in ("loss", "grad_norm")[: 1 if scaled else 2] if not math.isfinite(row[name])]
    if not named:
        return
    step, what = round(row["step"]), {"loss": "loss", "grad_norm": "norm of the gradients"}[named[0]]
    broken = [pair for pair, loss in zip(group, losses, strict=True) if not math.isfinite(loss)]
    if named[0] == "grad_norm":
        broken = list(group)  # which of them it was cannot be determined
    paths = [
        _keep(output / f"failed_step_{step}_rank_{rank}{f'_batch_{n}' if n else ''}.npz", *pair)
        for n, pair in enumerate(broken)
    ]
    where = (
        f"its batch is kept in {', '.join(map(str, paths))}" if paths else "in another process, which keeps its batch"
    )
    raise RdError(
        f"the {what} is {row[named[0]]} at step {step}; {where}",
        hint="lower optimiser.lr or optimiser.clip_norm, look for damaged audio in the batch, or, where a teacher "
        "overflows in float16, training.teacher_precision=bfloat16",
    )


def _keep(path: Path, batch: Batch, draws: Draws) -> Path:
    with path.open("wb") as stream:
        np.savez(
            stream,
            wave=batch.wave.numpy(),
            clean=batch.for_teacher.numpy(),
            lengths=batch.lengths.numpy(),
            mask=np.zeros(0, bool) if draws.mask is None else draws.mask.numpy(),
            files=np.array(batch.names),
        )
    return path
