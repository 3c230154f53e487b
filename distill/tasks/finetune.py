"""Fine-tuning: the last layers of a student and the head on top of them learn a task together.

The head starts from what was fitted on frozen features. What comes out is another student, and a head that is bound to
it: the layers below are the ones of the student that it started from.

Shapes: N layers that the head takes, F frames, W their width, K numbers of the head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.evaluation.bootstrap import difference_interval, ratio_interval
from reuse_distill.distill.evaluation.evaluate import LabelledData, Probe, labelled_data
from reuse_distill.distill.evaluation.features import pieces
from reuse_distill.distill.evaluation.linear_probes import decode, encode, letters_of
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.cli.progress import with_progress
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks.ctc_decode import edit_distance
from reuse_distill.student import Student, load_checkpoint, save_checkpoint
from reuse_distill.student.checkpoints.checkpoint import WEIGHTS, read_provenance
from reuse_distill.student.tasks import TaskHead
from torch import Tensor

KINDS = ("classify", "ctc")
BATCH = 8  # utterances whose gradients are added up
RATE, HEAD_RATE = 1e-4, 1e-3  # of AdamW, falling linearly to zero
DECAY = 0.01
LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Finetuning:
    """How many of the last layers learn, and how often every utterance is heard."""

    layers: int
    epochs: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Finetuned:
    """The changed student and the head on it; ``metrics`` say how good both were before and after."""

    student: Student
    head: TaskHead
    metrics: dict[str, Any]


def finetune(
    checkpoint: Path, head: TaskHead, probe: Probe, settings: Finetuning, *, report: Callable[[str], None] = print
) -> Finetuned:
    """Train on the split that the head was trained on, and judge on its test items before and after.

    Raises RdError for a kind of head that has no loss here, and for more layers than the student has.
    """
    kind, student = head.config.output.kind, load_checkpoint(checkpoint)
    if kind not in KINDS:
        raise RdError(f"a head of kind {kind!r} is not fine-tuned", hint=f"this is for {' and '.join(KINDS)}")
    if not 1 <= settings.layers <= student.config.layers:
        raise RdError(f"--finetune-layers {settings.layers} is outside 1..{student.config.layers}")
    data = labelled_data(probe, seed=settings.seed, report=report)
    before = _judged(student, head, data)
    learn(student, head, lambda i: read_utterance(data.utterances[i]), data.labels, data.train, settings, report)
    after = _judged(student, head, data)
    change = difference_interval(after[0], before[0], after[1], groups=data.groups)
    measure = "accuracy" if kind == "classify" else "letter_error_rate"
    metrics = {
        **head.config.metrics,
        f"{measure}_frozen": asdict(ratio_interval(*before, groups=data.groups)),
        measure: asdict(ratio_interval(*after, groups=data.groups)),
        "change_by_fine_tuning": asdict(change),
    }
    return Finetuned(student.eval(), head.eval(), metrics)


def save_finetuned(folder: Path, result: Finetuned, *, checkpoint: Path, settings: Finetuning) -> TaskHead:
    """Write the student as a checkpoint folder, and bind the head to it. Raises RdError as ``save_checkpoint`` does."""
    how = {
        "made_by": "rd-distill head --finetune-layers",
        "from_sha256": file_sha256(checkpoint / WEIGHTS),
        **asdict(settings),
        "rate": RATE,
        "head_rate": HEAD_RATE,
        "batch": BATCH,
    }
    provenance = {**read_provenance(checkpoint), "fine_tuned": how}
    provenance.pop("stored", None)  # in float32 from here on
    save_checkpoint(folder, result.student, provenance=provenance)
    config = dataclasses.replace(
        result.head.config,
        student_sha256=file_sha256(folder / WEIGHTS),
        student_name=folder.resolve().name,
        metrics=result.metrics,
        provenance={**result.head.config.provenance, "fine_tuned": how},
    )
    bound = TaskHead(config)
    bound.load_state_dict(result.head.state_dict())
    return bound.eval()


def learn(
    student: Student,
    head: TaskHead,
    read: Callable[[int], NDArray[np.float32]],
    labels: Sequence[str],
    items: Sequence[int],
    settings: Finetuning,
    report: Callable[[str], None],
) -> None:
    """Train both in place on ``items``: ``read(item)`` gives samples (T,), ``labels[item]`` what was said."""
    student.requires_grad_(False)
    last = [*student.encoder.layers[-settings.layers :]]
    if head.config.takes == "heads" and student.proj_head is not None:
        last += [*student.proj_head[-settings.layers :]]
    tuned = [p for module in last for p in module.requires_grad_(True).parameters()]
    of_head = [*head.requires_grad_(True).parameters()]
    groups = [{"params": tuned, "lr": RATE}, {"params": of_head, "lr": HEAD_RATE}]
    optimiser = torch.optim.AdamW(groups, weight_decay=DECAY)
    generator = torch.Generator().manual_seed(settings.seed)
    usable = [i for i in items if _target(head, labels[i]) is not None]
    steps = settings.epochs * -(-len(usable) // BATCH)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for epoch in range(1, settings.epochs + 1):
        order = [usable[i] for i in torch.randperm(len(usable), generator=generator).tolist()]
        losses = []
        batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        for batch in with_progress(batches, f"fine-tuning, epoch {epoch}", name=lambda _: ""):
            optimiser.zero_grad()
            for item in batch:
                loss = loss_of(student, head, read(item), labels[item])
                (loss / len(batch)).backward()
                losses.append(float(loss.detach()))
            torch.nn.utils.clip_grad_norm_([*tuned, *of_head], LARGEST_GRADIENT)
            optimiser.step()
            falling.step()
        report(f"epoch {epoch} of {settings.epochs}: loss {np.mean(losses):.4f}")
    student.requires_grad_(False)
    head.requires_grad_(False)


def loss_of(student: Student, head: TaskHead, samples: NDArray[np.float32], label: str) -> Tensor:
    """The loss of one utterance (T,): cross-entropy of the mean over time, or CTC."""
    scores, target = _scores(student, head, samples), _target(head, label)
    assert target is not None  # noqa: S101  (the caller leaves these out)
    if head.config.output.kind == "classify":
        return torch.nn.functional.cross_entropy(scores.mean(0)[None], target)
    sizes = torch.tensor([len(scores)]), torch.tensor([len(target)])
    return torch.nn.functional.ctc_loss(scores.log_softmax(-1)[:, None], target[None], *sizes, zero_infinity=True)


def _scores(student: Student, head: TaskHead, samples: NDArray[np.float32]) -> Tensor:
    """(T,) -> (F, K), before any softmax."""
    parts = []
    for piece in pieces(samples):
        output = student(torch.from_numpy(piece)[None], context=student.config.context)
        outputs = output.projections if head.config.takes == "heads" else output.layers
        known = student.config.targets if head.config.takes == "heads" else range(1, student.config.layers + 1)
        by_number = dict(zip(known, outputs, strict=True))
        parts.append(head.scores(torch.stack([by_number[number] for number in head.config.layers], dim=1))[0])
    return torch.cat(parts)


def _target(head: TaskHead, label: str) -> Tensor | None:
    """Classes of a label or a text; None for a label that the head does not know, and a text without letters."""
    if head.config.output.kind == "ctc":
        letters = letters_of(label)
        return encode(letters) if letters else None
    labels = head.config.output.labels
    return torch.tensor([labels.index(label)]) if label in labels else None


def _judged(student: Student, head: TaskHead, data: LabelledData) -> tuple[list[float], list[float]]:
    """Numerators and denominators of the measure on the test items: right answers, or edits and letters."""
    numerators: list[float] = []
    denominators: list[float] = []
    chosen: Sequence[int] = data.test
    for item in with_progress(chosen, "judging", name=lambda i: data.utterances[i].path.name):
        with torch.no_grad():
            scores = _scores(student, head, read_utterance(data.utterances[item]))
        if head.config.output.kind == "classify":
            right = head.config.output.labels[int(scores.mean(0).argmax())] == data.labels[item]
            numerators.append(float(right))
            denominators.append(1.0)
        else:
            reference = letters_of(data.labels[item])
            numerators.append(float(edit_distance(decode(scores), reference)))
            denominators.append(float(len(reference)))
    return numerators, denominators
