"""Pictures of a run and of an evaluation, as SVG: loss curves, layer similarity, attention maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.errors import RdError

_LAYER = re.compile(r"(^|_)layer_\d+$")
NOT_LOSSES = ("step", "epoch", "lr", "grad_norm", "audio_s", "wall_s")
COLUMNS = 6  # attention maps beside each other
COLOURS = "viridis"  # of layers, from the first to the last


def loss_curve(rows: Sequence[dict[str, float]], path: Path, *, held_out: Sequence[dict[str, float]] = ()) -> Path:
    """The loss and its terms over the steps, and beside them the loss of every layer.

    Each is a running mean over a fiftieth of the run, the loss also raw. ``held_out``: rows of validation.csv, drawn as
    points.
    """
    layers = [name for name in rows[0] if _LAYER.search(name)]
    terms = [name for name in rows[0] if name not in (*NOT_LOSSES, *layers, "loss")]
    figure, axes = _figure(11 if layers else 7, 4, columns=2 if layers else 1)
    left, *right = np.atleast_1d(axes)
    left.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="0.8", linewidth=0.7)
    for name in ("loss", *terms):
        left.plot(*_smoothed(rows, name), label=name.replace("_", " "), linewidth=2.0 if name == "loss" else 1.0)
    if held_out:
        points = [row["step"] for row in held_out], [row["loss"] for row in held_out]
        left.plot(*points, label="loss, held out", color="black", marker="o", markersize=3, linewidth=1)
    left.set_title("loss" + (", and its terms before their weights" if terms else ""))
    for axis in right:
        _layer_curves(axis, rows, layers)
    for axis in (left, *right):
        axis.set(xlabel="step", ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
        axis.legend(frameon=False, fontsize="small", ncols=1 + (len(axis.lines) > 16), **beside)
    return _save(figure, path)


def _layer_curves(axis: Any, rows: Sequence[dict[str, float]], names: Sequence[str]) -> None:
    """One line per layer; a mixture has them for each of its losses, which differ in their dashes."""
    numbers = sorted({_number_of(name) for name in names})
    kinds = sorted({_LAYER.sub("", name) for name in names})
    colours = _colours(len(numbers))
    for name in names:
        dash = ("-", "--", ":", "-.")[kinds.index(_LAYER.sub("", name)) % 4]
        colour = colours[numbers.index(_number_of(name))]
        axis.plot(*_smoothed(rows, name), label=name.replace("_", " "), color=colour, linestyle=dash, linewidth=1)
    axis.set_title("each layer against the teacher")


def _number_of(name: str) -> int:
    return int(name.rpartition("_")[2])


def _colours(count: int) -> Any:
    from matplotlib import colormaps

    return colormaps[COLOURS](np.linspace(0, 0.9, count))


def _smoothed(rows: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """(steps, running means) of the rows that have a finite number: layers may be drawn, and left out of a step."""
    kept = [row for row in rows if np.isfinite(row[name])]
    return [row["step"] for row in kept], running_mean([row[name] for row in kept], max(1, len(rows) // 50))


def similarity(matrix: Sequence[Sequence[float]], path: Path, *, title: str) -> Path:
    """A CKA matrix: student layers down, teacher layers across."""
    figure, axis = _figure(5, 4)
    image = axis.imshow(np.asarray(matrix), vmin=0, vmax=1, cmap="viridis")
    axis.set(xlabel="teacher layer", ylabel="student layer", title=title)
    _number(axis, len(matrix[0]), len(matrix))
    figure.colorbar(image)
    return _save(figure, path)


def attention_maps(maps: Sequence[Any], reuses: Sequence[bool], path: Path, *, seconds: float, title: str) -> Path:
    """Head-averaged maps (F, F) over ``seconds``, each with colours of its own; ``reuses``: which took theirs."""
    columns = min(len(maps), COLUMNS)
    rows = -(-len(maps) // columns)
    figure, axes = _figure(2.2 * columns + 0.4, 2.5 * rows + 0.6, rows=rows, columns=columns)
    for number, (axis, one) in enumerate(zip(np.atleast_1d(axes).flat, maps, strict=False), start=1):
        axis.imshow(np.asarray(one), cmap="magma", aspect="auto", extent=(0, seconds, seconds, 0))
        axis.set(title=f"layer {number}" + (" (reused)" if reuses[number - 1] else ""))
        axis.label_outer()
    for axis in np.atleast_1d(axes).flat[len(maps) :]:
        axis.set_axis_off()
    figure.suptitle(title)
    figure.supxlabel("attended to, s")
    figure.supylabel("frame at, s")
    return _save(figure, path)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the last ``width`` values at each place."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def _figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise RdError("matplotlib is not installed", hint="pip install 'reuse-distill[distill]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(rows, columns)


def _number(axis: Any, across: int, down: int) -> None:
    axis.set(xticks=range(across), yticks=range(down))
    axis.set_xticklabels(range(1, across + 1))
    axis.set_yticklabels(range(1, down + 1))


def _save(figure: Any, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise RdError(f"{path} was not written: {error.strerror or error}", hint="free disk space") from None
    return path
