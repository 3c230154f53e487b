"""The plots of the demo's page, from what the commands wrote; maps of attention on a recording not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.report.bundle_plots import parity_plot
from reuse_distill.report.drawing.heatmap import attention_picture, full_scale
from reuse_distill.report.drawing.plots import Line, Mark, histogram, line_plot, timeline
from reuse_distill.report.drawing.svg import BLUE, GREEN, GREY, INK, RED
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.audio.resample import resample
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

from demo.demo_results import Losses, Result

SECONDS = 2.4


def loss_curves(losses: Sequence[Losses]) -> str:
    """Each student's loss, raw behind and smoothed before."""
    lines = []
    for one, colour in zip(losses, (BLUE, GREEN), strict=True):
        lines.append(Line("", tuple(zip(one.steps, one.loss, strict=True)), colour, faint=True))
        lines.append(Line(one.student, tuple(zip(one.steps, one.smooth(), strict=True)), colour))
    return line_plot(lines, x_title="step", y_title="loss", from_zero=True)


def layer_losses(losses: Losses) -> str:
    """The loss term of every layer, at the start and at the end."""
    numbers = [float(i) for i in range(1, len(losses.by_layer) + 1)]
    tenth = max(1, len(losses.loss) // 10)
    first = tuple((x, float(np.mean(rows[:tenth]))) for x, rows in zip(numbers, losses.by_layer, strict=True))
    last = tuple((x, float(np.mean(rows[-tenth:]))) for x, rows in zip(numbers, losses.by_layer, strict=True))
    lines = [Line("at the start", first, GREY, markers=True), Line("at the end", last, BLUE, markers=True)]
    return line_plot(lines, x_title="layer", y_title="loss of the layer", from_zero=True, x_ticks=numbers)


def attention_figures(pair: Pair) -> list[tuple[str, str]]:
    """A computing and a reusing layer on one scale."""
    full = full_scale([pair.computed, pair.reused])
    same = pair.largest_difference
    difference = "the very same map" if same == 0 else f"largest difference {same:.1e}"
    return [
        (f"Layer {pair.computing} computes its map\nmean over heads; the strongest colour is {full:.2g} and more",
         attention_picture(pair.computed, full=full)),
        (f"Layer {pair.reusing} reuses the map of {pair.computing}\n{difference}; it has no queries and no keys",
         attention_picture(pair.reused, full=full)),
    ]  # fmt: skip


def drift(layers: Sequence[dict[str, Any]]) -> str:
    """1 - cosine of every layer of the artifact with torch."""
    return parity_plot(layers)


def latencies(result: Result) -> list[tuple[str, str]]:
    """How often each latency occurred and how it went over time, from the raw samples."""
    measurement = result.latency["measurement"]
    samples = result.samples_ms()
    at_s = np.concatenate([np.asarray(one["at_s"], np.float64) for one in measurement["samples"]])
    order = np.argsort(at_s)
    marks = [Mark(n, float(v), INK) for n in ("p50", "p90") if (v := result.metrics.get(n)) is not None]
    marks += [Mark(f"limit {c['metric']}", c["limit"], RED) for c in result.latency["checks"] if c["metric"] == "p90"]
    period_ms = 20.0 * result.manifest.geometry.chunk_frames
    over_time = timeline(
        at_s[order],
        samples[order],
        deadline_ms=period_ms,
    )
    return [("How often", histogram(samples, marks)), ("Over time", over_time)]


@dataclass(frozen=True)
class Pair:
    """A layer that computes its map and the next that takes it; maps (F, F) averaged over heads."""

    computing: int
    reusing: int
    computed: np.ndarray
    reused: np.ndarray

    @property
    def largest_difference(self) -> float:
        return float(np.abs(self.computed - self.reused).max())


def read_pair(checkpoint: Path, recording: Path) -> Pair:
    """The last pair of layers of the checkpoint in which one takes the other's map."""
    import torch
    from reuse_distill.student import load_checkpoint

    student = load_checkpoint(checkpoint)
    audio = read_audio(recording)
    wave = resample(audio.samples, audio.sample_rate_hz)[: int(SECONDS * SAMPLE_RATE_HZ)]
    with torch.no_grad():
        output = student(torch.from_numpy(np.ascontiguousarray(wave, np.float32))[None], with_maps=True)
    reusing = max(student.config.reuse_layers)
    source = student.config.map_source(reusing)
    maps = [one[0].mean(0).numpy() for one in output.maps]
    return Pair(source, reusing, maps[source - 1], maps[reusing - 1])
