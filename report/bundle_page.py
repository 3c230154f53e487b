"""``report.html`` of a bundle: what it is, what was proven on the file, how far it is from torch, what heads give."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from reuse_distill.report.bundle_sections import (
    contract,
    cost,
    files,
    parity,
    placement,
    predicts,
    proof,
    quantisation,
    state_bytes,
    stream,
    window,
)
from reuse_distill.report.drawing.heatmap import attention_picture, full_scale
from reuse_distill.report.page import Badge, Tile, figures, notes, page, section, table, tiles
from reuse_distill.report.quantities import cosine_text, quantity
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.tasks.contract import TaskOutput

MOST_LABELS = 8


def bundle_report(manifest: Manifest, *, maps: dict[int, np.ndarray] | None = None) -> str:
    """The page, self-contained. ``maps``: 1-based layer -> head-averaged attention map (F, F) of torch."""
    parts = [
        tiles(_tiles(manifest)),
        notes(_unfinished(manifest)),
        proof(manifest),
        parity(manifest),
        heads(manifest),
        _maps(manifest, maps) if maps else "",
        quantisation(manifest),
        placement(manifest),
        contract(manifest),
        stream(manifest),
        window(manifest),
        cost(manifest),
        files(manifest),
    ]
    name = manifest.source.get("name", "student")
    return page(
        f"{name}: {manifest.kind} {manifest.precision}",
        heading=f"{name}",
        badge=verdict(manifest),
        about=about(manifest),
        body="".join(parts),
    )


def about(manifest: Manifest) -> str:
    """One line: kind, target, precision, what comes out."""
    layers = ", ".join(map(str, manifest.layers))
    what = "projection heads" if manifest.features == "heads" else "hidden features"
    what = "predictions of the teacher's" if predicts(manifest) else f"{what} of"
    many = "layer" if len(manifest.layers) == 1 else "layers"
    form = f"{manifest.kind} {manifest.target} {manifest.precision}"
    if manifest.features == "none":
        return f"{form} · {', '.join(head.name for head in manifest.heads)}, every 20 ms"
    step = manifest.geometry.step_frames
    seen = f", layers see {step} frames as one" if step > 1 else ""
    return f"{form} · {what} {many} {layers}, {manifest.feature_width} wide, every 20 ms{seen}"


def verdict(manifest: Manifest) -> Badge:
    """From the figures themselves: a bundle without proof or parity is called so."""
    if manifest.status != "built":
        return Badge(manifest.status, "open")
    if manifest.graph_proof is None:
        return Badge("graph not proven", "open")
    held = within_bound(manifest)
    if held is None:
        return Badge("parity unmeasured", "open")
    return Badge("graph proven, parity within bound", "good") if held else Badge("parity outside its bound", "bad")


def within_bound(manifest: Manifest) -> bool | None:
    """Whether measured parity holds the stated bound; None where either is missing."""
    bound, measured = manifest.parity.get("bound"), manifest.parity.get("measured")
    if not bound or not measured:
        return None
    largest, cosine = bound.get("max_abs"), bound.get("mean_cosine")
    small = largest is None or measured["max_abs"] <= largest
    return small and (cosine is None or measured["mean_cosine"] >= cosine)


def _unfinished(manifest: Manifest) -> list[str]:
    """What is left to do for a deferred bundle, and why."""
    if manifest.status == "built":
        return []
    why = (manifest.device or {}).get("deferred", "it is bound to a device")
    return [f"Not built yet: {why}. On the device: rd-export --finish BUNDLE"]


def _tiles(manifest: Manifest) -> list[Tile]:
    source, measured = manifest.source, manifest.parity.get("measured", {})
    bound = manifest.parity.get("bound", {})
    size = manifest.artifact_bytes or None
    parameters = source.get("parameters")
    items = [
        Tile("artifact", quantity(size, "bytes"), manifest.artifact),
        Tile("parameters", f"{parameters / 1e6:.2f} M" if parameters else "unmeasured", "of the student"),
        _maps_tile(manifest),
        Tile("largest difference", _small(measured.get("max_abs")), _limit("bound", bound.get("max_abs"))),
        Tile(
            "mean frame cosine", cosine_text(measured.get("mean_cosine")), _limit("at least", bound.get("mean_cosine"))
        ),
    ]
    return [*items, *_latency_tiles(manifest)]


def _maps_tile(manifest: Manifest) -> Tile:
    proof_ = manifest.graph_proof
    if proof_ is None:
        return Tile("maps computed", "unmeasured", "no proof", "none")
    return Tile("maps computed", f"{proof_.computed_maps} of {proof_.layers}", f"{len(proof_.reused)} reused")


def _latency_tiles(manifest: Manifest) -> list[Tile]:
    """What the geometry alone costs; computing comes on top and is measured on a device."""
    if manifest.kind == "offline":
        return [Tile("latency", "whole utterance", "no stream")]
    geometry = manifest.geometry
    worst = Tile("latency, worst", f"{geometry.worst_latency_ms:.0f} ms", f"mean {geometry.mean_latency_ms:.0f} ms")
    if manifest.kind != "streaming":
        return [worst]
    return [worst, Tile("state", quantity(state_bytes(manifest), "bytes"), "per stream")]


def _maps(manifest: Manifest, maps: dict[int, np.ndarray]) -> str:
    """Every layer's map; a reusing layer's is that of its source."""
    ordered = {layer: maps[layer] for layer in sorted(maps)}
    full = full_scale(list(ordered.values()))
    reused = {one.layer: one.source_layer for one in manifest.graph_proof.reused} if manifest.graph_proof else {}
    step = manifest.geometry.step_frames
    unit, steps = ("frame", "") if step == 1 else ("step", f" A step is {step} frames.")
    items = []
    for layer, attention in ordered.items():
        caption = f"Layer {layer}\n" + (f"reuses the map of {reused[layer]}" if layer in reused else "computes its map")
        items.append((caption, attention_picture(attention, full=full, unit=unit)))
    lead = (
        '<p class="lead">Averaged over heads, of the torch student on part of the check audio. '
        f"The strongest colour is a weight of {full:.2g} and more, the page's own colour none.{steps}</p>"
    )
    return section("Attention maps", lead + figures(items, columns=6))


def _small(value: float | None) -> str:
    return "unmeasured" if value is None else f"{value:.1e}" if value < 0.01 else f"{value:.3f}"


def _limit(word: str, value: float | None) -> str:
    return f"{word} {value:g}" if value is not None else "not bounded"


def heads(manifest: Manifest) -> str:
    """A row per head; an empty string without any."""
    if not manifest.heads:
        return ""
    record = manifest.parity.get("prepared", manifest.parity).get("heads", {})
    rows = [_row(head, record.get(head.name, {}), manifest.parity.get("heads", {})) for head in manifest.heads]
    head_row = ("head", "kind", "gives", "agreement with torch", "largest difference", "bound", "seen by a user")
    measured = all("measured" in record.get(head.name, {}) for head in manifest.heads)
    lead = (
        '<p class="lead">Agreement: the share of frames with the same decision, a unit or the label that scores most. '
        f"On {escape(str(manifest.parity.get('audio', 'the recordings that check')))}.</p>"
    )
    badge = None if measured else Badge("unmeasured")
    return section("Heads", lead + table(head_row, rows, numeric=(3, 4)), badge=badge)


def _row(head: TaskOutput, entry: dict[str, Any], stated: dict[str, Any]) -> tuple[str, ...]:
    measured = entry.get("measured", {})
    bound = entry.get("bound") or stated.get(head.name, {}).get("bound", {})
    agreement, largest = measured.get("agreement"), measured.get("max_abs")
    return (
        head.name,
        head.kind,
        gives(head),
        "unmeasured" if agreement is None else f"{agreement:.4f}",
        "–" if largest is None else f"{largest:.2e}",
        ", ".join(f"{name.replace('_', ' ')} {limit:.3g}" for name, limit in bound.items()),
        ", ".join(f"{_figure(value)} {what.replace('_', ' ')}" for what, value in measured.get("seen", {}).items()),
    )


def _figure(value: Any) -> str:
    return f"{value:.5f}" if isinstance(value, float) else "unmeasured" if value is None else str(value)


def gives(head: TaskOutput) -> str:
    """What comes out, in words."""
    if head.kind == "units":
        return f"one of {head.size} units"
    if head.kind == "projection":
        return f"{head.size} numbers"
    if head.kind == "xvector":
        return "a vector for the recording"
    more = f" and {len(head.labels) - MOST_LABELS} more" if len(head.labels) > MOST_LABELS else ""
    return ", ".join(head.labels[:MOST_LABELS]) + more
