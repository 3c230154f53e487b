"""Pictures of a training run and of an evaluation, as SVG files: loss curves, layer similarity, attention maps."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from reuse_distill.report.drawing.heatmap import attention_picture, matrix_picture
from reuse_distill.report.drawing.plots import Line, line_plot
from reuse_distill.report.drawing.svg import AMBER, BLUE, GREEN, GREY, INK, RED, arranged, file_text
from reuse_distill.runtime.errors import RdError

_LAYER = re.compile(r"(^|_)layer_\d+$")
NOT_LOSSES = ("step", "epoch", "lr", "grad_norm", "audio_s", "wall_s")
COLUMNS = 6  # attention maps beside each other
DASHES = ("", "7 4", "2 3", "8 3 2 3")
TERMS = (GREEN, AMBER, RED, GREY)


def loss_curve(rows: Sequence[dict[str, float]], path: Path, *, held_out: Sequence[dict[str, float]] = ()) -> Path:
    """The loss and its terms over the steps, and beside them the loss of every layer.

    Each is a running mean over a fiftieth of the run, the loss also raw. ``held_out``: rows of validation.csv, drawn as
    points. Raises RdError where ``path`` cannot be written.
    """
    layers = [name for name in rows[0] if _LAYER.search(name)]
    terms = [name for name in rows[0] if name not in (*NOT_LOSSES, *layers, "loss")]
    title = "Loss" + (", and its terms before their weights" if terms else "")
    pictures = [(title, _loss_lines(rows, terms, held_out))]
    if layers:
        pictures.append(("Each layer against the teacher", _plotted(_layer_lines(rows, layers))))
    return _write(arranged(pictures, columns=2, label="losses over the steps"), path)


def _loss_lines(rows: Sequence[dict[str, float]], terms: Sequence[str], held_out: Sequence[dict[str, float]]) -> str:
    lines = [Line("", tuple((row["step"], row["loss"]) for row in rows), GREY, faint=True)]
    lines.append(Line("loss", _smoothed(rows, "loss"), BLUE))
    for index, name in enumerate(terms):
        dash = DASHES[index // len(TERMS) % len(DASHES)]
        lines.append(Line(name.replace("_", " "), _smoothed(rows, name), TERMS[index % len(TERMS)], dash=dash))
    if held_out:
        points = tuple((row["step"], row["loss"]) for row in held_out)
        lines.append(Line("loss, held out", points, INK, markers=True))
    return _plotted(lines)


def _layer_lines(rows: Sequence[dict[str, float]], names: Sequence[str]) -> list[Line]:
    """One line per layer; a mixture has them for each of its losses, which differ in their dashes."""
    numbers = sorted({_number_of(name) for name in names})
    kinds = sorted({_LAYER.sub("", name) for name in names})
    colours = _ramp(len(numbers))
    return [
        Line(
            name.replace("_", " "),
            _smoothed(rows, name),
            colours[numbers.index(_number_of(name))],
            dash=DASHES[kinds.index(_LAYER.sub("", name)) % len(DASHES)],
        )
        for name in names
    ]


def _plotted(lines: Sequence[Line]) -> str:
    drawn = [one for one in lines if one.points]
    return line_plot(drawn or [Line("", ((0.0, 0.0),), GREY)], x_title="step", y_title="loss", from_zero=True)


def _number_of(name: str) -> int:
    return int(name.rpartition("_")[2])


def _ramp(count: int) -> list[str]:
    """Colours from blue over green to amber, from the first layer to the last, for light and dark pages alike."""
    shades = [colorsys.hls_to_rgb(0.62 - 0.52 * i / max(1, count - 1), 0.47, 0.62) for i in range(count)]
    return ["#" + "".join(f"{round(255 * channel):02x}" for channel in shade) for shade in shades]


def _smoothed(rows: Sequence[dict[str, float]], name: str) -> tuple[tuple[float, float], ...]:
    """(step, running mean) of the rows that have a finite number: layers may be drawn, and left out of a step."""
    kept = [row for row in rows if np.isfinite(row[name])]
    means = running_mean([row[name] for row in kept], max(1, len(rows) // 50))
    return tuple(zip((row["step"] for row in kept), means, strict=True))


def similarity_matrix(matrix: Sequence[Sequence[float]], path: Path, *, title: str) -> Path:
    """A CKA matrix: student layers down, teacher layers across."""
    return _write(matrix_picture(matrix, title=title, across="teacher layer", down="student layer"), path)


def attention_maps(
    maps: Sequence[npt.ArrayLike], reuses: Sequence[bool], path: Path, *, seconds: float, title: str
) -> Path:
    """Head-averaged maps (F, F) over ``seconds``, each with a scale of its own; ``reuses``: which reuse another's."""
    pictures = []
    for layer, (values, reused) in enumerate(zip(maps, reuses, strict=True), start=1):
        array = np.asarray(values, np.float64)
        caption = f"Layer {layer}" + (", reused" if reused else "")
        pictures.append((caption, attention_picture(array, full=float(array.max()) or 1.0)))
    about = f"{title} ({seconds:.1f} s; each map from 0 to its own maximum)"
    return _write(arranged(pictures, columns=COLUMNS, label=title, title=about), path)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the last ``width`` values at each place."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means


def _write(picture: str, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file_text(picture), encoding="utf-8")
    except OSError as error:
        raise RdError(f"{path} was not written: {error.strerror or error}", hint="free disk space") from None
    return path
