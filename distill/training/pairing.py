"""Whether a teacher can teach a student by a recipe, before anything is read or computed."""

from __future__ import annotations

import dataclasses

from reuse_distill.distill.recipe import MASKED_LOSSES, TrainingRecipe
from reuse_distill.distill.teachers import Teacher, TeacherInfo
from reuse_distill.distill.teachers.paired import layers_by_depth
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import StudentConfig


def fitted(recipe: TrainingRecipe, info: TeacherInfo) -> tuple[StudentConfig, tuple[int, ...]]:
    """(the student's shape, the teacher's layers that teach): fitted to the teacher where the recipe says so.

    With ``student.fit_teacher`` the heads have the teacher's width, and each layer is taught by the teacher's at the
    same share of the depth. Otherwise the recipe's shape and all layers, which have to fit (``check_pair``).
    """
    config = recipe.student.config()
    if not recipe.student.fit_teacher:
        return config, tuple(range(1, info.layers + 1))
    if config.head_width is not None and "head_width" not in recipe.student.changes:
        config = dataclasses.replace(config, head_width=info.width)
    if config.head_kind == "split":
        return config, tuple(range(1, info.layers + 1))
    return config, layers_by_depth(config.layers, info.layers)


def check_targets(recipe: TrainingRecipe) -> None:
    """Raise RdError where targets that were made before cannot serve a recipe."""
    kinds, data = recipe.loss.weights.keys(), recipe.data
    if kinds & {"masking", "star"}:
        raise RdError(
            f"loss {' + '.join(sorted(kinds))} needs the teacher itself: targets hold its layers of the unmasked input",
            hint="loss.kind=hint or heads without loss.mix, or --teacher in place of --targets",
        )
    common = [name for name, drawn in (("gain_db", data.gain_db > 0), ("speeds", bool(data.speeds))) if drawn]
    if data.teacher_hears != "clean":
        common += [name for name in ("noise", "rooms", "noise_snr_db") if getattr(data, name) is not None]
    if common:
        raise RdError(
            f"targets were made of the recordings as they are, but data.{common[0]} changes what the teacher hears",
            hint="data.student_gain_db and data.narrow_band_probability are the student's own; noise and rooms are "
            "with data.teacher_hears=clean",
        )


def check_pair(
    recipe: TrainingRecipe, student: StudentConfig, teacher: Teacher, *, teaching: int | None = None
) -> None:
    """Raise RdError where this teacher cannot teach this student. ``teaching``: how many of its layers do."""
    info, kinds = teacher.info, recipe.loss.weights.keys()
    layers = info.layers if teaching is None else teaching
    too_deep = student.head_kind == "split" and student.targets[-1] > info.layers
    if too_deep or (student.head_kind == "layerwise" and student.layers != layers):
        raise RdError(
            f"teacher {info.name} has {info.layers} layers, student {recipe.student.preset} has {student.layers}"
            + (f" and predicts layers {list(student.head_targets)}" if student.head_targets else ""),
            hint=f"choose another student, or student.changes.layers={info.layers} (and its reuse_layers)"
            if not student.head_targets
            else "set student.changes.head_targets",
        )
    _check_kinds(recipe, student)
    if kinds in ({"star"}, {"align"}):
        return
    if student.head_width is None and kinds == {"hint"} and student.width == info.width:
        return  # layer against layer: a student that is taught by what it was before compression
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
    masked = sorted(MASKED_LOSSES & kinds)
    if masked and not student.mask_embedding:
        raise RdError(f"loss {masked[0]} needs a student with a mask embedding", hint="mask_embedding: true")


def _check_kinds(recipe: TrainingRecipe, student: StudentConfig) -> None:
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
