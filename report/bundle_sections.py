"""The sections of a bundle's page, each from its part of the manifest; an empty string where there is nothing.

What it computes and how far from torch, parity where it breaks first, what the artifact costs, which unit runs what.
"""

from __future__ import annotations

from collections import defaultdict
from html import escape
from typing import Any

from reuse_distill.report.bundle_plots import difference_plot, drift_plot, parity_plot, reuse_graph, search_plots
from reuse_distill.report.page import Badge, Html, code, facts, figures, section, table
from reuse_distill.report.quantities import quantity
from reuse_distill.runtime.bundle_format.manifest import Manifest

VISIBLE = 1e-6  # 1 - cosine below this is rounding: a plot of it would show nothing


def proof(manifest: Manifest) -> str:
    """The drawing, and the path that was followed in the file from each value product back to its map."""
    checked = manifest.graph_proof
    if checked is None:
        return section("Attention reuse", "<p>The graph of this bundle was not proven.</p>", badge=Badge("unmeasured"))
    rows = [
        (str(one.layer), str(one.source_layer), code(one.value_product), " ← ".join(one.path) or "directly")
        for one in checked.reused
    ]
    head = ("layer", "reuses", "value product", "nodes between it and the map")
    right = (
        f"<p>{escape(checked.checked_file)} holds {checked.softmaxes} attention softmaxes for {checked.layers} layers "
        f"({escape(checked.reuse_mode)} reuse). For every reusing layer the file was followed from its value product "
        "back to the map: only layout and quantise/dequantise nodes lie between, and it has no query or key "
        "weights. Established on the file itself, after every rewrite and after quantisation.</p>"
    )
    right += table(head, rows, numeric=(0, 1)) if rows else "<p>No layer reuses a map.</p>"
    exported = (checked.layers,) if predicts(manifest) else manifest.layers
    pictures = [("", reuse_graph(checked, exported=exported)), ("", right)]
    summary = f"{len(checked.reused)} of {checked.layers} layers reuse"
    return section("Attention reuse, proven on the file", figures(pictures), badge=Badge(summary, "good"))


def predicts(manifest: Manifest) -> bool:
    """Whether the layers of the manifest are the teacher's, predicted from the student's last one (DistilHuBERT)."""
    return manifest.features == "heads" and manifest.source.get("student", {}).get("head_kind") == "split"


def parity(manifest: Manifest) -> str:
    """Differences from torch, layer by layer and recording by recording.

    Of a deferred bundle, those of what was prepared and can run without the device.
    """
    record, badge, where = manifest.parity, None, ""
    if "measured" not in record and "prepared" in record:
        record, badge = record["prepared"], Badge("artifact unmeasured")
        where = f"Of {record['run']}; what the device builds is compared when it is finished there. "
    if "measured" not in record:
        return section("Parity with torch", "<p>Not measured.</p>", badge=Badge("unmeasured"))
    lead = f"Reference: {record.get('reference', 'torch float32')}. Checked on {record.get('audio', 'unknown audio')}. "
    lead += "What is exported: " + _figures(record["measured"], manifest.parity.get("bound", {}))
    body = f'<p class="lead">{escape(where + lead)}</p>{_plots(manifest, record)}{slices(record)}'
    return section("Parity with torch", body, badge=badge)


def _figures(measured: dict[str, float], bound: dict[str, float]) -> str:
    """Measured differences of the exported features beside what they must hold."""
    limits = [f"at most {bound['max_abs']:.2g}"] if "max_abs" in bound else []
    limits += [f"mean cosine at least {bound['mean_cosine']:g}"] if "mean_cosine" in bound else []
    figures_ = f"largest difference {measured['max_abs']:.2e}, mean cosine {measured['mean_cosine']:.5f}"
    return f"{figures_} ({', '.join(limits) or 'not bounded'})."


def _plots(manifest: Manifest, record: dict[str, Any]) -> str:
    """Plots where the layers can be looked into, the recordings beside or below."""
    layers = record.get("layers", [])
    # The bound is on what is exported: it has a place among the hidden layers only where these are what is exported.
    bound = manifest.parity.get("bound", {}).get("max_abs") if manifest.features == "hidden" else None
    recordings = _recordings(manifest, record.get("clips", []))
    if not layers:
        return recordings
    difference = ("After each layer: largest difference", difference_plot(layers, bound=bound))
    if not any(1 - row["min_cosine"] > VISIBLE for row in layers):
        return figures([difference, ("Recording by recording", recordings)])
    pictures = figures([difference, ("After each layer: direction", parity_plot(layers))])
    return f"{pictures}<details><summary>recording by recording</summary>{recordings}</details>"


def _recordings(manifest: Manifest, clips: list[dict[str, Any]]) -> str:
    rows = [
        (
            clip.get("name", str(number)),
            f"{clip['samples'] / manifest.sample_rate_hz:.2f} s",
            f"{clip['max_abs']:.2e}",
            f"{clip['mean_cosine']:.5f}",
            f"{clip['min_cosine']:.5f}",
            f"{clip['reference_rms']:.3f}",
        )
        for number, clip in enumerate(clips, start=1)
    ]
    head = ("recording", "length", "largest difference", "mean cosine", "worst frame", "rms of the features")
    return table(head, rows, numeric=range(1, 6)) if rows else ""


def quantisation(manifest: Manifest) -> str:
    """What is in integers, what is not, and why not."""
    record = manifest.quantisation
    if not record:
        return ""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for entry in record.get("in_float", []):
        by_reason[entry["why"]].append(entry["node"])
    rows = [(str(len(nodes)), why, Html(_names(nodes))) for why, nodes in by_reason.items()]
    apart = ("in_float", "search", "recipe")
    left = facts([(key.replace("_", " "), _plain(value)) for key, value in record.items() if key not in apart])
    if not rows:
        return section("Precision", left)
    right = table(("nodes", "kept in float because", "which"), rows, numeric=(0,))
    searched = search_plots(record["search"]) if "search" in record else ""
    return section("Quantisation", searched + figures([("In integers", left), ("In float, and why", right)]))


def contract(manifest: Manifest) -> str:
    """What the samples have to be and which ones a call takes, in words; empty for bundles that do not say."""
    rules = "".join(f"<li>{escape(rule)}</li>" for rule in manifest.input.rules)
    return section("Input", f"<ul>{rules}</ul>") if rules else ""


def stream(manifest: Manifest) -> str:
    """Chunk, look-ahead and context, and every state that a client carries."""
    if manifest.kind != "streaming":
        return ""
    g = manifest.geometry
    left = facts(
        [
            ("chunk", f"{g.chunk_frames} frames, {20 * g.chunk_frames} ms of audio per step"),
            ("look-ahead", f"{g.lookahead_frames} frames, {20 * g.lookahead_frames} ms"),
            ("left context", f"{g.left_frames} frames per attention layer, {g.left_frames / 50:.2f} s"),
            ("latency, oldest frame of a chunk", f"{g.worst_latency_ms:.0f} ms, and computing"),
            ("latency, mean over a chunk", f"{g.mean_latency_ms:.0f} ms, and computing"),
            ("computing", "unmeasured here: rd-latency BUNDLE measures it on a device"),
            ("state", f"{quantity(state_bytes(manifest), 'bytes')} per stream, zeros at the start"),
        ]
    )
    rows = [
        (
            code(s.name),
            s.role,
            "\u202f×\u202f".join(map(str, s.shape)),
            s.dtype,
            s.update,
            quantity(s.row_bytes, "bytes"),
        )
        for s in manifest.states
    ]
    head = ("state", "holds", "shape", "type", "update", "per stream")
    return section("Stream", figures([("Geometry", left), ("State", table(head, rows, numeric=(5,)))]))


def window(manifest: Manifest) -> str:
    """How the features of a sliding window drift from those of the whole utterance as context shrinks."""
    if manifest.kind != "window":
        return ""
    g, record = manifest.geometry, manifest.drift
    about = f"[{g.left_frames} | {g.chunk_frames} | {g.right_frames}] frames of left context, chunk and right context"
    if not record:
        body = "<p>Drift from the features of the whole utterance: unmeasured.</p>"
        return section("Sliding window, approximate", body, badge=Badge("approximate"), where=about)
    exported = record["exported"]
    lead = (
        f"As exported: mean frame cosine {exported['mean_cosine']:.4f}, worst frame {exported['min_cosine']:.4f}, "
        f"{_lowest(exported)}against {record['reference']}, on {record['seconds']:g} s of audio. "
        f"Norm statistics: {exported['norm']}"
    )
    other = record.get("other_norm")
    lead += f"; {other['norm']} ones would give {other['mean_cosine']:.4f}." if other else "."
    pictures = [
        (f"Over left context\nright context {g.right_frames} frames", drift_plot(record["left"], side="left")),
        (f"Over right context\nleft context {g.left_frames} frames", drift_plot(record["right"], side="right")),
    ]
    body = f'<p class="lead">{escape(lead)}</p>{figures(pictures)}'
    return section("Sliding window, approximate", body, badge=Badge("approximate"), where=about)


def _lowest(exported: dict[str, Any]) -> str:
    """Above what 99 % of the frames are; bundles of before do not tell."""
    return f"99 % of the frames above {exported['p01_cosine']:.4f}, " if "p01_cosine" in exported else ""


def files(manifest: Manifest) -> str:
    """Every file with its hash, the source and the tools."""
    rows = [(code(n), quantity(e.size_bytes, "bytes"), code(e.sha256)) for n, e in sorted(manifest.files.items())]
    source = [(key.replace("_", " "), _plain(value)) for key, value in manifest.source.items() if key != "student"]
    student = manifest.source.get("student", {})
    shape = facts([(key.replace("_", " "), _plain(value)) for key, value in student.items()])
    tools = facts([(name, version) for name, version in manifest.tools.items()])
    table_ = table(("file", "size", "SHA-256"), rows, numeric=(1,))
    body = f"{table_}<br>{figures([('Source', facts(source)), ('Made with', tools)])}"
    if student:
        body += f"<details><summary>configuration of the student</summary>{shape}</details>"
    return section("Files and provenance", body)


def state_bytes(manifest: Manifest) -> int:
    """Bytes of state that one stream carries."""
    return sum(state.row_bytes for state in manifest.states)


def _names(nodes: list[str]) -> str:
    rest = ", ".join(escape(name) for name in nodes)
    label = "1 name" if len(nodes) == 1 else f"{len(nodes)} names"
    return f"<details style='margin:0'><summary>{label}</summary><code>{rest}</code></details>"


def _plain(value: Any) -> str:
    """A value of the manifest as people write it."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return " · ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else str(value)


def slices(record: dict[str, Any]) -> str:
    """Quiet, loud and noisy audio, and the worst recording; an empty string for bundles of before."""
    rows = [
        (
            row["slice"].replace("-", "\u2212").replace(" ", "\u00a0"),  # never cut in two
            row["of"],
            str(row["frames"]),
            f"{row['max_abs']:.2e}",
            f"{row['mean_cosine']:.5f}",
            f"{row['min_cosine']:.5f}",
        )
        for row in record.get("slices", [])
    ]
    if not rows:
        return ""
    head = ("slice", "of", "frames", "largest difference", "mean cosine", "worst frame")
    return f"<h3>By level and in noise</h3>{table(head, rows, numeric=range(2, 6))}{_worst(record)}"


def _worst(record: dict[str, Any]) -> str:
    worst = record.get("worst")
    if not worst:
        return ""
    figures_ = f"largest difference {worst['max_abs']:.2e}, mean cosine {worst['mean_cosine']:.5f}"
    return facts([("worst recording", f"{worst['name']}: {figures_}")])


def cost(manifest: Manifest) -> str:
    """MACs and memory as computed from the shapes, and which unit ran what where that is known."""
    record = manifest.estimates
    if not record:
        return ""
    rows = [
        ("of", str(record["of"])),
        ("multiply-accumulates", f"{macs(record['macs_per_second'])} for a second of audio"),
        ("artifact", quantity(record["artifact_bytes"] or None, "bytes")),
        ("weights in memory", quantity(record.get("weight_bytes", record["artifact_bytes"]) or None, "bytes")),
        ("state", quantity(record["state_bytes"], "bytes") if record["state_bytes"] else "none"),
        ("largest values at once", quantity(record["activation_bytes"], "bytes") + ", in float32"),
        ("memory in all", quantity(record["memory_bytes"], "bytes") + ", without the engine itself"),
    ]
    parity = manifest.parity.get("prepared", manifest.parity)
    pictures = [("From the shapes of the graph", facts(rows)), ("Which unit ran what", _units(parity))]
    return section("Cost", figures(pictures), badge=Badge("estimated, not measured"))


def macs(per_second: float) -> str:
    """Millions or thousands of millions, three digits."""
    return f"{per_second / 1e6:.3g} M" if per_second < 1e9 else f"{per_second / 1e9:.3g} G"


def _units(parity: dict[str, Any]) -> str:
    ran_on = parity.get("ran_on")
    if not ran_on:
        by = parity.get("by")
        return f"<p>Not record for this target.{' Compared by ' + by + '.' if by else ''}</p>"
    rows = [
        (unit, str(part["nodes"]), ", ".join(f"{count} {op}" for op, count in part["operators"].items()))
        for unit, part in ran_on.items()
    ]
    return table(("unit", "nodes", "operators"), rows, numeric=(1,))


def placement(manifest: Manifest) -> str:
    """Operations per unit and what stays on portable kernels; an empty string where the file does not tell."""
    device = manifest.device or {}
    if "placement" not in device:
        return ""
    rows = [(code(unit), str(count)) for unit, count in sorted(device["placement"].items(), key=lambda row: -row[1])]
    left = table(("unit", "operations"), rows, numeric=(1,))
    portable = device.get("portable_operations", {})
    names = ", ".join(f"{name} × {count}" for name, count in portable.items()) or "none"
    right = facts(
        [
            ("delegate", str(device.get("delegate", "none"))),
            ("calls of the delegate", str(device.get("delegate_calls", "unmeasured"))),
            ("on portable kernels", names),
        ]
    )
    lead = f"<p>Read off {escape(manifest.artifact)}, delegates' payloads included.</p>"
    return section("Units", figures([("", lead + left), ("", right)]))
