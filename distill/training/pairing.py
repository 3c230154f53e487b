"""Whether a teacher can teach a student by a recipe, before anything is read or computed."""

from __future__ import annotations

from reuse_distill.distill.recipe import Recipe
from reuse_distill.distill.teachers import Teacher
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import StudentConfig


def check_pair(recipe: Recipe, student: StudentConfig, teacher: Teacher) -> None:
    """Raise RdError where this teacher cannot teach this student."""
    info, kinds = teacher.info, recipe.loss.weights.keys()
    if student.targets[-1] > info.layers or (student.head_kind == "layerwise" and student.layers != info.layers):
        raise RdError(
            f"teacher {info.name} has {info.layers} layers, student {recipe.student.preset} has {student.layers}"
            + (f" and predicts layers {list(student.head_targets)}" if student.head_targets else ""),
            hint=f"choose another student, or student.changes.layers={info.layers} (and its reuse_layers)"
            if not student.head_targets
            else "set student.changes.head_targets",
        )
    _check_kinds(recipe, student)
    if kinds == {"star"}:
        return
    if student.head_width is None:
        raise RdError(
            f"loss {recipe.loss.kind!r} compares projection heads, student {recipe.student.preset} has none",
            hint=f"student.changes.head_width={info.width}, or a recipe with loss.kind star",
        )
    if student.head_width != info.width:
        raise RdError(
            f"teacher {info.name} has width {info.width}, the student's heads have {student.head_width}",
            hint=f"student.changes.head_width={info.width}",
        )
    if "masking" in kinds and not getattr(teacher, "can_mask", True):
        raise RdError(
            f"teacher {info.name} has no mask embedding, so it cannot see a masked input",
            hint="loss.kind hint, star or heads; or the same teacher as a transformers folder or .pt file",
        )
    if "masking" in kinds and not student.mask_embedding:
        raise RdError("masking distillation needs a student with a mask embedding", hint="mask_embedding: true")


def _check_kinds(recipe: Recipe, student: StudentConfig) -> None:
    """Losses that compare every layer need as many of them on both sides."""
    kinds = recipe.loss.weights.keys()
    if student.head_kind == "split" and kinds != {"heads"}:
        raise RdError(
            f"losses {sorted(kinds)} compare every layer, student {recipe.student.preset} predicts some from its last",
            hint="loss.kind=heads without loss.mix",
        )
    if student.time_reduction > 1 and "star" in kinds and recipe.loss.attention_weight > 0:
        raise RdError(
            f"the attention maps of a student with time_reduction {student.time_reduction} have other frames than "
            "the teacher's",
            hint="loss.attention_weight=0",
        )
    if student.time_reduction > 1 and any(context is not None for context in recipe.contexts):
        raise RdError("a student that reduces time has no chunked forward", hint="contexts: [null]")
