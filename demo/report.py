"""``demo/out/report.html``: what the demo did and what came out, on one self-contained page."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from pathlib import Path

from reuse_distill.report.bundle_plots import reuse_graph
from reuse_distill.report.page import Badge, Html, Tile, code, facts, figures, notes, page, section, table, tiles
from reuse_distill.report.quantities import quantity

from demo.data import Data
from demo.demo_results import HEAD, Losses, Result, rows
from demo.demo_steps import Step
from demo.pictures import Pair, attention_figures, drift, latencies, layer_losses, loss_curves


@dataclass(frozen=True)
class Story:
    """Everything that the page tells."""

    data: Data
    results: Sequence[Result]
    losses: Sequence[Losses]
    pair: Pair
    steps: Sequence[Step]
    seconds: float
    teacher: Path

    def result(self, mode: str, precision: str) -> Result:
        """The bundle of that kind."""
        return next(one for one in self.results if (one.artifact.mode, one.artifact.precision) == (mode, precision))

    @property
    def failed(self) -> list[str]:
        return [step.title for step in self.steps if step.status]


def demo_report(story: Story) -> str:
    """The page."""
    badge = Badge(f"{len(story.failed)} of {len(story.steps)} steps failed", "bad")
    if not story.failed:
        badge = Badge(f"all {len(story.steps)} steps passed", "good")
    return page(
        "Reuse Distill: demo",
        heading="From a teacher to a streaming, quantised student",
        badge=badge,
        about=f"{story.data.name} · {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        body="".join((_summary(story), _artifacts(story), _distillation(story), _proof(story), _drift(story)))
        + _latency(story)
        + _commands(story)
        + _machine(story),
    )


def _summary(story: Story) -> str:
    streamed = story.result("streaming", "int8")
    proof, source = streamed.manifest.graph_proof, streamed.manifest.source
    plain = story.result("streaming", "fp32")
    computed = f"{proof.computed_maps} of {proof.layers}" if proof else "unmeasured"
    numbers = [
        Tile("whole demo", f"{story.seconds:.0f} s", f"{len(story.steps)} commands"),
        Tile("student", f"{source['parameters'] / 1e6:.2f} M", "parameters"),
        Tile("maps computed", computed, "proven on the file"),
        Tile(
            "int8 stream",
            quantity(streamed.size_bytes, "bytes"),
            f"fp32 {quantity(plain.size_bytes, 'bytes')}",
        ),
        Tile("int8 cosine", f"{streamed.manifest.parity['measured']['mean_cosine']:.4f}", "stream with torch"),
        Tile("algorithmic latency", f"{streamed.manifest.geometry.worst_latency_ms:.0f} ms", "oldest frame, worst"),
        Tile("computing, p90", quantity(streamed.metrics.get("p90"), "time"), "per 160 ms chunk, 99 % confidence"),
        Tile("real-time factor", quantity(streamed.metrics.get("rtf"), "ratio"), "1 thread"),
    ]
    return tiles(numbers) + notes(_honest(story))


def _honest(story: Story) -> list[str]:
    """What a reader must know before the numbers."""
    cautions = [f"failed: {title}" for title in story.failed]
    cautions.append(
        f"The students were trained for seconds, by {story.teacher.name}. This page shows that every step works and "
        "what it costs; what features of longer runs are worth is in docs/quality.md."
    )
    streamed = story.result("streaming", "int8")
    measurement = streamed.latency.get("measurement") or {}
    return [*cautions, *(f"Latency of {streamed.artifact.name}: {text}." for text in measurement.get("notes", []))]


def _artifacts(story: Story) -> str:
    links = [
        Html(
            f'<a href="{one.artifact.name}/report.html">bundle</a> · '
            f'<a href="{one.artifact.name}.latency.html">latency</a>'
        )
        for one in story.results
    ]
    body = [(*cells, link) for cells, link in zip(rows(story.results), links, strict=True)]
    return section("Artifacts", table((*HEAD, "reports beside this file"), body, numeric=(1, 5, 6)))


def _distillation(story: Story) -> str:
    data = story.data
    lead = (
        f"Trained on {data.trained} recordings ({data.train_seconds:.0f} s), everything below is checked with "
        f"{data.checked} others ({data.check_seconds:.0f} s); split by {data.held_out_by}."
    )
    fell = ", ".join(f"{one.student} {one.first_tenth:.3f} → {one.last_tenth:.3f}" for one in story.losses)
    pictures = [
        (f"Masking distillation loss\nmean of the first and the last tenth: {fell}", loss_curves(story.losses)),
        ("Loss by layer\nmean of the first and the last tenth of the steps, tiny", layer_losses(story.losses[0])),
    ]
    return section("Distillation", f'<p class="lead">{escape(lead)}</p>{figures(pictures)}')


def _proof(story: Story) -> str:
    result = story.result("offline", "int8")
    proof = result.manifest.graph_proof
    if proof is None:
        return section("Attention reuse", "<p>Not proven.</p>", badge=Badge("unmeasured"))
    graph = ("Proven on the finished int8 file", reuse_graph(proof, exported=result.manifest.layers))
    pictures = [*attention_figures(story.pair), graph]
    return section("Attention reuse", figures(pictures, columns=3), badge=Badge(result.reuse, "good"))


def _drift(story: Story) -> str:
    pictures = []
    for mode in ("offline", "streaming"):
        measured = story.result(mode, "int8").manifest.parity
        caption = f"{mode.capitalize()} int8\n{measured['reference']}; {measured['audio']}"
        pictures.append((caption, drift(measured["layers"])))
    return section("Drift of int8 from torch, layer by layer", figures(pictures))


def _latency(story: Story) -> str:
    streamed = story.result("streaming", "int8")
    count = len(streamed.samples_ms())
    if not count:
        return section("Latency", "<p>Not measured.</p>", badge=Badge("unmeasured"))
    good = streamed.verdict == "pass"
    lead = (
        f"{count} chunks of 160 ms at the pace of a microphone, streaming int8, one thread: from the arrival of a "
        "chunk's last sample to its features. Every raw sample is in the JSON beside this file."
    )
    badge = Badge(f"budget: {streamed.verdict}", "good" if good else "bad")
    body = f'<p class="lead">{escape(lead)}</p>{figures(latencies(streamed))}'
    return section("Latency on this machine", body, badge=badge)


def _commands(story: Story) -> str:
    head = ("", "step", "command", "time", "CPU time", "")
    body = [
        (str(number), step.title, code(step.command), _seconds(step.seconds), _seconds(step.cpu_seconds), _ended(step))
        for number, step in enumerate(story.steps, start=1)
    ]
    return section("Commands that were run", table(head, body, numeric=(3, 4)))


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _ended(step: Step) -> str:
    return "" if step.status == 0 else f"status {step.status}"


def _machine(story: Story) -> str:
    measured = next((one.latency["measurement"] for one in story.results if one.latency.get("measurement")), None)
    context = measured["context"] if measured else {}
    memory = context.get("memory_bytes")
    machine = [
        ("processor", f"{context.get('processor', 'unmeasured')}, {context.get('architecture', platform.machine())}"),
        ("cores", str(context.get("cores", "unmeasured"))),
        ("memory", quantity(memory, "bytes") if memory else "unmeasured"),
        ("system", f"{context.get('system', platform.system())}, {context.get('kernel', platform.release())}"),
        ("virtualised", str(context.get("virtualised", "unmeasured"))),
        ("threads", f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '1')}; latency on one thread"),
    ]
    versions = [("Python", platform.python_version()), *story.results[0].manifest.tools.items()]
    return section("Machine and versions", figures([("Machine", facts(machine)), ("Versions", facts(versions))]))
