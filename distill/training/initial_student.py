"""The student that a run starts from: a checkpoint's, parts of the teacher, and which of its layers are trained.

Parts of the teacher as DistilHuBERT copies them: front end, positional convolution, first layers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reuse_distill.distill.recipe import difference
from reuse_distill.distill.teachers import Teacher
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import to_dict
from reuse_distill.student import Student, StudentConfig, load_checkpoint
from reuse_distill.student.foreign.foreign_encoder import student_name
from reuse_distill.student.whisper import build_student
from torch import Tensor

# What the public code copies; the norm before the layers and the heads begin anew.
COPIED = ("feature_extractor.", "post_extract_proj.", "encoder.pos_conv.", "encoder.layers.")


def copy_weights(teacher: Teacher, student: Student) -> list[str]:
    """Copy the teacher's parameters into ``student``; returns their names.

    Raises RdError for a teacher of another architecture and where a shape differs or a parameter has no counterpart.
    """
    model = teacher.model
    if model is None or teacher.info.kind == "wavlm":
        raise RdError(
            f"teacher {teacher.info.name} ({teacher.info.kind}) has other layers than a student",
            hint="student.from_teacher=false, or a HuBERT or wav2vec 2.0 teacher",
        )
    theirs: dict[str, Tensor] = {student_name(name): value for name, value in model.state_dict().items()}
    own = student.state_dict()
    copied = [name for name in own if name.startswith(COPIED)]
    for name in copied:
        if name not in theirs or theirs[name].shape != own[name].shape:
            shape = list(theirs[name].shape) if name in theirs else "missing"
            raise RdError(
                f"{name}: the student needs {list(own[name].shape)}, teacher {teacher.info.name} has {shape}",
                hint="student.from_teacher=false, or a student of the teacher's widths without reuse",
            )
    student.load_state_dict({name: theirs[name].float() for name in copied}, strict=False)
    return copied


def last_layers_only(student: Student, layers: int) -> Student:
    """Freeze everything but the last ``layers`` and their heads (0: nothing). RdError for more than there are."""
    count = student.config.layers
    if not layers:
        return student
    if layers > count:
        raise RdError(f"training.last_layers is {layers}, the student has {count}", hint="0 trains everything")
    student.requires_grad_(False)
    heads = student.split_heads if student.proj_head is None else student.proj_head[count - layers :]
    for module in (*student.encoder.layers[count - layers :], *([] if heads is None else [heads])):
        module.requires_grad_(True)
    return student


def started_from(checkpoint: Path, config: StudentConfig) -> Student:
    """The student ``config`` with the weights of a checkpoint folder, to be trained further.

    Its attention context may be another than the checkpoint's: no weight depends on it. Raises RdError where its shape
    is another.
    """
    before = load_checkpoint(checkpoint)
    changes = difference(to_dict(replace(before.config, context=config.context)), to_dict(config))
    if changes:
        raise RdError(
            f"{checkpoint} is another student than the recipe's: " + "; ".join(changes[:5]),
            hint="name its preset with --student and its changes with student.changes.KEY=VALUE",
        )
    student = build_student(config)
    student.load_state_dict(before.state_dict())
    return student.requires_grad_(True)
