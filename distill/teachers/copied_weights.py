"""Start a student with parts of its teacher, as DistilHuBERT does: front end, positional convolution, first layers."""

from __future__ import annotations

from reuse_distill.distill.teachers.protocol import Teacher
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student
from reuse_distill.student.foreign.foreign_encoder import student_name
from torch import Tensor

# What the public code copies; the norm before the layers and the heads begin anew.
COPIED = ("feature_extractor.", "post_extract_proj.", "encoder.pos_conv.", "encoder.layers.")


def copy_weights(teacher: Teacher, student: Student) -> list[str]:
    """Copy the teacher's parameters into ``student``; returns their names.

    Raises RdError for a teacher of another architecture and where a shape differs or a parameter has no counterpart.
    """
    model = getattr(teacher, "model", None)
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
            found = list(theirs[name].shape) if name in theirs else "missing"
            raise RdError(
                f"{name}: the student needs {list(own[name].shape)}, teacher {teacher.info.name} has {found}",
                hint="student.from_teacher=false, or a student of the teacher's widths without reuse",
            )
    student.load_state_dict({name: theirs[name].float() for name in copied}, strict=False)
    return copied
