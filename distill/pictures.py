"""Pictures of a run and of an evaluation, as SVG: loss curves, layer similarity, attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import RdError

SMOOTHED = ("loss", "mask_hint", "unmask_hint", "mask_rec", "unmask_rec", "layerwise", "intra", "attention")


def loss_curve(rows: Sequence[dict[str, float]], path: Path, *, held_out: Sequence[dict[str, float]] = ()) -> Path:
    """The loss and its terms over the steps, each a running mean over a fiftieth of the run, the loss also raw.

    ``held_out``: rows of validation.csv, drawn as points.
    """
    figure, axis = _figure(7, 4)
    steps = [row["step"] for row in rows]
    axis.plot(steps, [row["loss"] for row in rows], color="0.8", linewidth=0.7)
    for name in SMOOTHED:
        if name in rows[0]:
            width = 2.0 if name == "loss" else 1.0
            axis.plot(
                steps, running_mean([row[name] for row in rows], max(1, len(rows) // 50)), label=name, linewidth=width
            )
    if held_out:
        points = [row["step"] for row in held_out], [row["loss"] for row in held_out]
        axis.plot(*points, label="held out", color="black", marker="o", markersize=3, linewidth=1)
    axis.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axis.legend(frameon=False)
    return _save(figure, path)


def similarity(matrix: Sequence[Sequence[float]], path: Path) -> Path:
    """A CKA matrix: student layers down, teacher layers across."""
    figure, axis = _figure(5, 4)
    image = axis.imshow(np.asarray(matrix), vmin=0, vmax=1, cmap="viridis")
    axis.set(xlabel="teacher layer", ylabel="student layer", title="linear CKA")
    _number(axis, len(matrix[0]), len(matrix))
    figure.colorbar(image)
    return _save(figure, path)


def attention_maps(maps: Sequence[Any], reuses: Sequence[bool], path: Path) -> Path:
    """Head-averaged maps (F, F) of every layer side by side; ``reuses`` says which layers took theirs."""
    figure, axes = _figure(2.2 * len(maps), 2.6, columns=len(maps))
    for number, (axis, one, reused) in enumerate(zip(np.atleast_1d(axes), maps, reuses, strict=True), start=1):
        axis.imshow(np.asarray(one), cmap="magma", aspect="auto")
        axis.set(title=f"layer {number}" + (" (reused)" if reused else ""), xticks=[], yticks=[])
    return _save(figure, path)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the last ``width`` values at each place."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def _figure(width: float, height: float, *, columns: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise RdError("matplotlib is not installed", hint="pip install 'reuse-distill[distill]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(1, columns)


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
