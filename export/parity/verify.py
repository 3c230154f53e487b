"""Parity of a finished bundle with torch: through the runtime, as a user runs it, and layer by layer inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.parity.dial_parity import measure_dial
from reuse_distill.export.parity.reference import reference_features, reference_layers
from reuse_distill.export.parity.slices import (
    Compared,
    clips_at_levels,
    level_row,
    noisy_clips,
    slice_rows,
    worst_clip,
    worst_figures,
)
from reuse_distill.export.parity.task_parity import measure_heads, outside, reference_heads
from reuse_distill.export.quantise.quantisation_recipe import Recipe, of_precision
from reuse_distill.export.spec import ExportSpec, SlidingWindow, Streaming
from reuse_distill.export.targets import Job, Target
from reuse_distill.runtime.bundle_format.bundle import SELFTEST
from reuse_distill.runtime.cli.progress import with_progress
from reuse_distill.runtime.equivalence.parity import Difference, difference
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ, samples_for
from reuse_distill.student import Student

FP32_MAX_ABS = 1e-4
FP16_RELATIVE = 5e-3
INT8_MEAN_COSINE = 0.99
# Parts of ``parity`` that have to keep the bound, each by itself, and what they were measured on.
CHECKED_ON = {"measured": "the recordings that check", "selftest": "the bundle's own recording and its cut ends"}


def stated_bound(precision: str, reference: np.ndarray, min_cosine: float | None) -> dict[str, float]:
    """The bound that the bundle states and is refused without.

    fp32: largest difference 1e-4, more only as ``rounding`` says. fp16: largest difference 5e-3 of the largest feature.
    int8: mean frame cosine 0.99, or what the user requested.
    """
    if precision == "fp32":
        return {"max_abs": FP32_MAX_ABS}
    if precision == "fp16":
        return {"max_abs": FP16_RELATIVE * float(np.abs(reference).max())}
    return {"mean_cosine": INT8_MEAN_COSINE if min_cosine is None else min_cosine}


def measure(
    target: Target, job: Job, student: Student, clips: Sequence[np.ndarray], names: Sequence[str] = ()
) -> dict[str, Any]:
    """``parity`` of the manifest but for its bound: worst difference over ``clips``, by slices and per layer."""
    counted = with_progress(clips, "comparing with torch", unit="clips", name=_seconds)
    outputs = [target.outputs(job.folder, job, clip) for clip in counted]
    heads = _heads(target, job, student, clips, [of_heads for _, of_heads in outputs])
    if not job.spec.shown_layers:  # heads alone: figures of the first one stand where those of features do
        return {**_of_heads(job, heads), "heads": heads}
    compared = [
        Compared(clip, features, reference_features(student, job.spec, clip))
        for clip, (features, _) in zip(clips, outputs, strict=True)
    ]
    rows = [difference(one.features, one.reference) for one in compared]
    rms = [float(np.sqrt(np.square(one.reference).mean())) for one in compared]
    by = target.measured_by(job)
    return {
        "reference": _reference_name(job.spec),
        **({} if by is None else {"by": by}),
        "measured": worst_figures(rows),
        "clips": [
            {"samples": len(clip), **_named(names, i), **_figures(row), "reference_rms": round(level, 6)}
            for i, (clip, row, level) in enumerate(zip(clips, rows, rms, strict=True))
        ],
        "worst": worst_clip(rows, names, by_size=job.spec.precision == "fp32"),
        "slices": [
            *slice_rows(compared, _compared(target, job, student, noisy_clips(clips), "comparing in noise")),
            *_level_rows(target, job, student, clips),
        ],
        "layers": layer_rows(target, job, student, clips),
        "selftest": selftest_figures(
            job.folder / SELFTEST,
            lambda wave: target.run(job.folder, job, wave),
            chunk_frames=job.captured.geometry.chunk_frames,
        ),
        **({"heads": heads} if heads else {}),
        **measure_dial(target, job, student, clips),
    }


def _heads(
    target: Target, job: Job, student: Student, clips: Sequence[np.ndarray], of_clips: Sequence[dict[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Per head: figures over ``clips`` with the outputs ``of_clips``, and of the bundle's own recording."""
    outputs = job.spec.task_contracts
    if not outputs:
        return {}
    with np.load(job.folder / SELFTEST, allow_pickle=False) as arrays:
        own, expected = arrays["wave"], {o.name: arrays[f"head {o.name}"] for o in outputs}
    measured = measure_heads(
        outputs,
        of_clips,
        [reference_heads(student, job.spec, clip) for clip in clips],
        job.spec.decoder_weights,
    )
    selftest = measure_heads(outputs, [target.outputs(job.folder, job, own)[1]], [expected], job.spec.decoder_weights)
    return {name: {"measured": measured[name], "selftest": selftest[name]} for name in measured}


def _of_heads(job: Job, heads: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What ``parity`` says at its top where there are no features: the first head's figures."""
    first = heads[job.spec.task_contracts[0].name]

    def figures(part: dict[str, Any]) -> dict[str, float]:
        cosine = float(part["agreement"] if "agreement" in part else part["mean_cosine"])
        return {"max_abs": part.get("max_abs", 1.0 - cosine), "mean_cosine": cosine, "min_cosine": cosine}

    return {
        "reference": _reference_name(job.spec),
        "of": f"head {job.spec.task_contracts[0].name}: cosine is the share of frames with the same decision",
        "measured": figures(first["measured"]),
        "selftest": figures(first["selftest"]),
        "clips": [],
        "slices": [],
        "layers": [],
    }


def _level_rows(target: Target, job: Job, student: Student, clips: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Of quantised artifacts: what calibrated them may have had another level than users have."""
    if not job.spec.recipe.quantises:
        return []
    levelled = clips_at_levels(clips)
    rows = _compared(target, job, student, list(levelled.values()), "comparing at the levels of users")
    return [level_row(level, row) for level, row in zip(levelled, rows, strict=True)]


def _compared(target: Target, job: Job, student: Student, clips: Sequence[np.ndarray], what: str) -> list[Compared]:
    return [
        Compared(clip, target.run(job.folder, job, clip), reference_features(student, job.spec, clip))
        for clip in with_progress(clips, what, unit="clips", name=_seconds)
    ]


def _seconds(clip: np.ndarray) -> str:
    return f"{len(clip) / SAMPLE_RATE_HZ:.1f} s of audio"


def _named(names: Sequence[str], index: int) -> dict[str, str]:
    return {"name": names[index]} if index < len(names) else {}


def selftest_figures(file: Path, run: Callable[[np.ndarray], np.ndarray], *, chunk_frames: int) -> dict[str, float]:
    """Worst difference over the recording in the bundle and its cut ends: what a device will hold the bundle to.

    ``run``: (T,) -> (N, F, W). Cuts shorter than a chunk count as one case, as they do in the certificate.
    """
    with np.load(file, allow_pickle=False) as arrays:
        wave, cases = arrays["wave"], [(run(arrays["wave"]), arrays["features"])]
        tails = zip(arrays["tail_frames"], arrays["tail_features"], strict=True) if "tail_frames" in arrays else ()
        few: list[tuple[np.ndarray, np.ndarray]] = []
        for frames, tail in tails:
            features = run(wave[: samples_for(int(frames))])
            last = min(int(frames), tail.shape[1])
            (few if frames < chunk_frames else cases).append((features[:, -last:], tail[:, -last:]))
    if few:
        cases.append((np.concatenate([a for a, _ in few], axis=1), np.concatenate([b for _, b in few], axis=1)))
    rows = [difference(features, reference) for features, reference in cases]
    return {**worst_figures(rows), "mean_cosine": min(row.mean_cosine for row in rows)}


def layer_rows(target: Target, job: Job, student: Student, clips: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Difference after every layer of the artifact, worst over ``clips``; empty where a target cannot show them."""
    inside = target.layers(job.folder, job)
    if inside is None:
        return []
    differences: list[list[Difference]] = [[] for _ in range(job.depth)]
    for clip in with_progress(clips, "comparing layer by layer", unit="clips", name=_seconds):
        reference = reference_layers(student, job.spec, clip)
        for layer, values in enumerate(inside(clip)):
            differences[layer].append(difference(values, reference[layer]))
    return [{"layer": number, **worst_figures(rows)} for number, rows in enumerate(differences, start=1)]


def within(parity: dict[str, Any]) -> bool:
    """Whether the measured parity keeps the stated bound, on the bundle's own recording too; NaN never does."""
    heads = outside(parity.get("heads", {})) is None
    return heads and features_within(parity)


def features_within(parity: dict[str, Any]) -> bool:
    """The same, whatever heads do."""
    return all(_keeps(figures, parity["bound"]) for _, figures in _checked(parity))


def decisive(parity: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """(of which recordings, their figures) of what is outside the bound, or else of the recordings that check."""
    checked = _checked(parity)
    return next((one for one in checked if not _keeps(one[1], parity["bound"])), checked[0])


def _checked(parity: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """(what was measured on, figures) of everything that has to keep the bound by itself."""
    parts = [(where, parity[name]) for name, where in CHECKED_ON.items() if name in parity]
    levels = [row for row in parity.get("slices", ()) if "level_dbfs" in row]
    parts += [(f"steps of {row['chunk_frames']} frames", row) for row in parity.get("chunks", ())]
    parts += [("streams that switch between chunk sizes", parity["switches"])] if "switches" in parity else []
    return parts + [(f"speech at {row['level_dbfs']} dBFS", row) for row in levels]


def _keeps(measured: dict[str, float], bound: dict[str, float]) -> bool:
    close = measured["max_abs"] <= bound.get("max_abs", np.inf) and measured["max_abs"] == measured["max_abs"]
    return bool(close and measured["mean_cosine"] >= bound.get("mean_cosine", -1.0))


def outside_in_words(parity: dict[str, Any]) -> str:
    """Which figure is outside its bound, a head's first: ``check`` names the same."""
    head = outside(parity.get("heads", {}))
    if head is not None:
        return head
    where, measured = decisive(parity)
    return f"mean frame cosine {measured['mean_cosine']:.4f} on {where}"


def check(parity: dict[str, Any], *, precision: str) -> None:
    """Raises RdError when the measured parity is outside the stated bound."""
    (where, measured), bound = decisive(parity), parity["bound"]
    if within(parity):
        return
    head = outside(parity.get("heads", {}))
    if head is not None:
        raise RdError(
            f"parity failed: {precision}, {head}",
            hint=_remedy(of_precision(precision), option="--min-agreement"),
        )
    if "rounding" in parity:
        own = parity["rounding"]
        raise RdError(
            f"parity failed: {precision} features differ by {measured['max_abs']:.3g} on {where}, "
            f"the bound is {bound['max_abs']:.3g}; torch in float32 differs from float64 by "
            f"{own['torch_float32_to_float64']:.3g} (RMS of the features {own['reference_rms']:.3g})",
            hint=_rounding_remedy(own),
        )
    if "max_abs" in bound:
        raise RdError(
            f"parity failed: {precision} features differ by {measured['max_abs']:.3g} on {where}, "
            f"the bound is {bound['max_abs']:.3g}",
            hint="the artifact is not written; report this with the versions in constraints.txt",
        )
    raise RdError(
        f"parity failed: {precision} features have mean frame cosine {measured['mean_cosine']:.4f} on {where}, "
        f"the bound is {bound['mean_cosine']:g}",
        hint=_remedy(of_precision(precision)),
    )


def _rounding_remedy(rounding: dict[str, float]) -> str:
    if 2 * rounding["torch_float32_to_float64"] > FP32_MAX_ABS:
        return "these weights amplify float32's rounding so far that no artifact can be compared; check the weights"
    return "the artifact is not written; report this with the versions in constraints.txt"


def _remedy(recipe: Recipe, *, option: str = "--min-cosine") -> str:
    """What helps where the figure that ``option`` bounds is too low.

    Only static int8 is calibrated, and bfloat16 has one bound.
    """
    first = "take a --precision with more bits"
    if recipe.calibrates:
        first = "calibrate on more and more varied speech (--calibration), as loud as that of users"
    return f"{first}, or lower {option} knowingly" if recipe.quantises else first


def _reference_name(spec: ExportSpec) -> str:
    if isinstance(spec.mode, Streaming):
        chunk, left = spec.mode.context.chunk_frames, spec.mode.context.left_frames
        return f"torch float32, forward in chunks of {chunk} frames with {left} to the left"
    if isinstance(spec.mode, SlidingWindow):
        return "torch float32, the same sliding windows"
    return "torch float32, whole utterance, batch of one"


def _figures(row: Difference) -> dict[str, float]:
    return {"max_abs": row.max_abs, "mean_cosine": row.mean_cosine, "min_cosine": row.min_cosine}
