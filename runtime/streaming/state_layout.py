"""How the states of a stream lie in a snapshot, so that another engine, batch position or form of step takes them.

Caches that the host keeps as rings are saved as they lie, with the slot of their oldest row; a step that returns
whole states wants the oldest row first. Everything else about a state (name, type, sizes, what it holds) is the
student's, and so the same for every engine that was exported from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from reuse_distill.runtime.bundle_format.manifest import Manifest, State
from reuse_distill.runtime.bundle_format.stepspec import StepSpec
from reuse_distill.runtime.streaming.snapshot import SCHEMA, Saved

DIGEST_CHARACTERS = 16
# Targets whose steps take states and give them back; coreml by its evaluator, and by an app of one's own.
MOVABLE_TARGETS = ("onnx", "ort", "openvino", "executorch", "litert", "tensorrt", "tensorrt-rtx", "coreml")


def is_ring(state: State) -> bool:
    """Whether a host keeps the state as a ring."""
    return state.update == "append" and not state.ordered


def note_rings(saved: Saved, spec: StepSpec) -> None:
    """Write into ``saved`` which states lie as rings, and how long these are."""
    saved.counters["ring"] = spec.ring_frames
    for state in spec.states:
        saved.counters[f"ring {state.name}"] = int(is_ring(state))


def in_layout(saved: Saved, spec: StepSpec) -> Saved:
    """``saved`` as a pool of ``spec`` keeps it: rings stay where they lie, other states begin with the oldest row.

    Raises RdError where the saved cursor or the marks of rings make no sense.
    """
    if "ring" not in saved.counters:  # written before states could move: they lie as in the bundle that wrote them
        return saved
    slots = saved.counter("ring", 0, max((int(s.shape[s.axis]) for s in spec.states), default=0))
    cursor = saved.counter("cursor", 0, max(slots - 1, 0))
    arrays = dict(saved.arrays)
    for state in spec.states:
        name = f"state {state.name}"
        was_ring = bool(saved.counter(f"ring {state.name}", 0, 1))
        if name not in arrays or was_ring == is_ring(state) or arrays[name].ndim < state.axis:
            continue  # what is missing or has another shape is refused by the pool
        arrays[name] = np.roll(arrays[name], -cursor if was_ring else cursor, axis=state.axis - 1)
    return Saved({**saved.counters, "cursor": cursor if spec.ring_frames else 0}, arrays)


def engine_keeps_states(manifest: Manifest) -> bool:
    """Whether the engine keeps the states (Core ML's own), where no host can read or write them."""
    return any(state.output == state.input for state in manifest.states)


def describe_snapshot(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says about snapshots of its streams: format, layout of the states, bytes, and where they may go.

    Bundles with the same ``layout`` take each other's snapshots, whatever their target, batch and chunk size.
    """
    if not manifest.states:
        return {}
    if engine_keeps_states(manifest):
        return {"moves_to": "nowhere: the engine keeps the states itself"}
    described = [list(_facts(state)) for state in manifest.states]
    facts = {
        "student": manifest.source.get("sha256"),
        "lookahead_frames": manifest.geometry.lookahead_frames,
        "left_frames": manifest.geometry.left_frames,
        "states": sorted(described),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {
        "schema": SCHEMA,
        "layout": digest[:DIGEST_CHARACTERS],
        "state_bytes": sum(state.row_bytes for state in manifest.states),
        "state_types": sorted({state.dtype for state in manifest.states}),
        "targets": list(MOVABLE_TARGETS),
        "moves_to": "every bundle with this layout: any target, engine, processor, batch and chunk size",
    }


def _facts(state: State) -> Iterator[Any]:
    yield from (state.name, state.role, state.dtype, list(state.shape[1:]), state.axis)
