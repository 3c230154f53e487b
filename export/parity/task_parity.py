"""Parity of heads by what a user sees: decisions per frame, words, labels and detections, artifact against torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from reuse_distill.export.parity.reference import (
    SELFTEST_FRAMES,
    last_rows,
    of_switches,
    reference_features,
    tail_lengths,
)
from reuse_distill.export.spec import ExportSpec
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.equivalence.selftest import AGREEMENT, decisions
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for, samples_for
from reuse_distill.runtime.tasks import TaskEvent, TaskOutput, decode, decoder_of
from reuse_distill.runtime.tasks.contract import ROW_KINDS
from reuse_distill.runtime.tasks.ctc_decode import edit_distance
from reuse_distill.runtime.tasks.xvector import XVectorWeights
from reuse_distill.student import Student

FLOAT_RELATIVE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}  # of the largest number, or of 1 where that is less
LEAST_AGREEMENT = {"fp32": 0.99, "fp16": 0.98, "bf16": 0.9}
QUANTISED_AGREEMENT = 0.9
QUANTISED_COSINE = 0.99  # of the rows of a projection or an x-vector
Rows = dict[str, np.ndarray]  # head -> (F, K)


def reference_heads(student: Student, spec: ExportSpec, wave: np.ndarray) -> Rows:
    """What torch in float32 makes of ``wave`` (T,): (F, K) of every head, with the context of the export's mode."""
    if not spec.tasks:
        return {}
    every = dataclasses.replace(spec, shown=None)
    features = reference_features(student, every, wave)  # (N, F, W)
    rows = {}
    for task in spec.tasks:
        chosen = [spec.layers.index(layer) for layer in task.config.layers]
        with torch.no_grad():
            rows[task.name] = task.module(torch.from_numpy(features[chosen])[None])[0].numpy()
    return rows


def selftest_heads(student: Student, spec: ExportSpec, wave: np.ndarray) -> Rows:
    """Arrays of ``selftest.npz`` for heads: rows of the recording, and for streams the last rows of its cuts."""
    wave = wave[: samples_for(SELFTEST_FRAMES)]
    whole = reference_heads(student, spec, wave)
    arrays = {f"head {name}": rows for name, rows in whole.items()}
    if spec.chunk_context is None or not whole:
        return arrays
    lengths, kept = tail_lengths(
        frames_for(len(wave)), spec.chunk_context.chunk_frames, student.config.lookahead_frames
    )
    cuts = [reference_heads(student, spec, wave[: samples_for(length)]) for length in lengths]
    switched = of_switches(spec, frames_for(len(wave)), student.config.lookahead_frames)
    if switched.schedule is not None:
        arrays |= {f"switch_head {name}": rows for name, rows in reference_heads(student, switched, wave).items()}
    for name in whole:
        arrays[f"tail_head {name}"] = np.stack([last_rows(cut[name][None], kept)[0] for cut in cuts])
    return arrays


def head_bounds(spec: ExportSpec, references: Mapping[str, np.ndarray], min_agreement: float | None) -> dict[str, Any]:
    """``parity.heads`` of the manifest as stated before anything is measured: a bound for every head.

    Float artifacts: the largest difference of a number, relative to the largest one. Quantised ones, and units: the
    share of frames with the same decision; rows of a projection or an x-vector decide nothing and keep a mean cosine.
    """
    bounds = {}
    for output in spec.task_contracts:
        scale = max(1.0, float(np.abs(references[output.name]).max()))
        relative = FLOAT_RELATIVE.get(spec.precision)
        least = LEAST_AGREEMENT.get(spec.precision, QUANTISED_AGREEMENT) if min_agreement is None else min_agreement
        if output.kind == "units" or (min_agreement is not None and output.kind not in ROW_KINDS):
            bound = {AGREEMENT: least}
        elif relative is not None:
            bound = {"max_abs": relative * scale}
        else:
            bound = {"mean_cosine": QUANTISED_COSINE} if output.kind in ROW_KINDS else {AGREEMENT: least}
        bounds[output.name] = {"bound": bound}
    return bounds


def measure_heads(
    outputs: Sequence[TaskOutput],
    computed: Sequence[Rows],
    references: Sequence[Rows],
    weights: Mapping[str, XVectorWeights] | None = None,
) -> dict[str, dict[str, Any]]:
    """Per head: worst difference, agreement of decisions over all frames, and what a user sees of it.

    ``weights``: what decoders of x-vectors compute with, by the name of the head.
    """
    known = weights or {}
    return {output.name: _measured(output, computed, references, known.get(output.name)) for output in outputs}


def _measured(
    output: TaskOutput, computed: Sequence[Rows], references: Sequence[Rows], weights: XVectorWeights | None
) -> dict[str, Any]:
    pairs = [(a[output.name], b[output.name]) for a, b in zip(computed, references, strict=True)]
    for rows, reference in pairs:
        if rows.shape != reference.shape or not np.isfinite(rows).all():
            raise RdError(f"head {output.name!r}: rows of shape {rows.shape}, {reference.shape} expected, all finite")
    ours, theirs = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    figures: dict[str, Any] = {"frames": len(ours)}
    if output.kind != "units":
        row = difference(ours, theirs)
        figures |= {"max_abs": row.max_abs, "mean_cosine": row.mean_cosine}
    if output.kind == "projection":
        return figures
    events = [tuple(decode(decoder_of(output, weights), rows) for rows in pair) for pair in pairs]
    if output.kind == "xvector":
        return {**figures, "seen": _vectors(events)}
    same = (decisions(output, ours) * decisions(output, theirs)).sum(-1)
    figures[AGREEMENT] = float(same.mean())
    return {**figures, "seen": _seen(output, events)}


def _seen(output: TaskOutput, events: Sequence[tuple[list[TaskEvent], ...]]) -> dict[str, Any]:
    """What a user would notice, over all recordings: (the artifact's events, the reference's) each."""
    if output.kind == "classify":
        flips = sum(a[-1].label != b[-1].label for a, b in events if a and b)
        return {"recordings": len(events), "label_flips": flips}
    if output.kind == "spot":
        counts = [sum(len(side[i]) for side in events) for i in (0, 1)]
        same = sum(len(_common(a, b)) for a, b in events)
        return {"detections": counts[0], "detections_of_source": counts[1], "detections_alike": same}
    texts = [tuple(" ".join(e.label for e in side) for side in pair) for pair in events]
    if output.kind == "ctc":
        edits, length = sum(edit_distance(a, b) for a, b in texts), sum(len(b) for _, b in texts)
        return {"edits": edits, "letters_of_source": length}
    sequences = [tuple([e.label for e in side] for side in pair) for pair in events]
    edits, length = sum(edit_distance(a, b) for a, b in sequences), sum(len(b) for _, b in sequences)
    return {"edits_without_repeats": edits, "units_of_source": length}


def _vectors(events: Sequence[tuple[list[TaskEvent], ...]]) -> dict[str, Any]:
    """Recordings that are long enough for a vector, and the least cosine between theirs and the reference's."""
    pairs = [tuple(np.array(side[-1].vector) for side in pair) for pair in events if all(pair)]
    cosines = [float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)) for a, b in pairs]
    return {"recordings": len(pairs), "least_cosine_of_vectors": min(cosines, default=None)}


def _common(ours: Sequence[TaskEvent], theirs: Sequence[TaskEvent], within_s: float = 0.2) -> list[TaskEvent]:
    """Detections of ``ours`` that ``theirs`` has too, at most 0.2 s apart."""
    left, common = list(theirs), []
    for event in ours:
        match = next((o for o in left if o.label == event.label and abs(o.end_s - event.end_s) <= within_s), None)
        if match is not None:
            left.remove(match)
            common.append(event)
    return common


def outside(heads: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What is wrong with the first head outside its bound; None where all keep theirs, NaN never does."""
    for name, entry in heads.items():
        for part in ("measured", "selftest"):
            for figure, limit in entry["bound"].items():
                value = entry.get(part, {}).get(figure)
                kept = value is not None and (value <= limit if figure == "max_abs" else value >= limit)
                if not kept:
                    text = "unmeasured" if value is None else f"{value:.4g}"
                    on = "the recordings that check" if part == "measured" else "the bundle's own recording"
                    return f"head {name!r}: {figure.replace('_', ' ')} {text} on {on}, the bound is {limit:.4g}"
    return None
