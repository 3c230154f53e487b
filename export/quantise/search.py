"""The cheapest mix of int8 and float under a drift limit: which blocks to leave in float.

Drift is 1 - mean frame cosine to the float32 features, on the recordings that check; the bundle's own recording and its
cut ends have a limit of their own, the bundle's bound; so has what heads decide, where that is requested. Cost is what
int8 saves: multiply-accumulates. Blocks are measured one at a time and moved to float in the order of drift per saved
MAC, above what all in float leaves. Every combination on the way is measured itself, because blocks do not add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reuse_distill.runtime.errors import RdError


@dataclass(frozen=True)
class Point:
    """One measured combination."""

    in_float: tuple[str, ...]
    drift: float
    own_drift: float  # the largest of the bundle's own recording and of its cut ends
    size_bytes: int
    agreement: float | None = None  # the least of any head, of frames with the decision of float32; None: no heads


@dataclass(frozen=True)
class Limits:
    """What a combination has to keep."""

    drift: float
    own_drift: float
    agreement: float | None = None  # of every head; None: whatever it is

    def keep(self, point: Point) -> bool:
        """Whether ``point`` does."""
        agrees = self.agreement is None or (point.agreement is not None and point.agreement >= self.agreement)
        return point.drift <= self.drift and point.own_drift <= self.own_drift and agrees


@dataclass(frozen=True)
class SearchResult:
    """What a search measured and chose."""

    chosen: Point
    limits: Limits
    floor: Point  # every block in float
    alone: Mapping[str, Point]  # block -> everything else in float
    frontier: tuple[Point, ...]  # from all in int8 on, in the order in which they were measured


Measure = Callable[[Sequence[str]], Point]  # blocks in float -> what that gives


def search(macs: Mapping[str, float], measure: Measure, limits: Limits) -> SearchResult:
    """The cheapest combination within ``limits`` that the greedy order meets; ``macs``: block -> MACs that int8 saves.

    Blocks are measured one at a time even where all in int8 is within the limits: the report shows them. Raises RdError
    where not even all blocks in float are within the limits, with the nearest.
    """
    names = list(macs)
    floor, everything = measure(names), measure(())
    if not limits.keep(floor) and not limits.keep(everything):
        raise _unreachable((floor, everything), limits)
    alone = {name: measure([other for other in names if other != name]) for name in names}
    order = sorted(names, key=lambda name: (alone[name].drift - floor.drift) / macs[name], reverse=True)
    frontier = [everything]
    while not limits.keep(frontier[-1]):  # ends with the floor, if not before
        count = len(frontier)
        frontier.append(
            measure(order[:count]) if count < len(order) else dataclasses.replace(floor, in_float=tuple(order))
        )
    return _pruned(SearchResult(frontier[-1], limits, floor, alone, tuple(frontier)), macs, measure)


def _pruned(result: SearchResult, macs: Mapping[str, float], measure: Measure) -> SearchResult:
    """Blocks back to int8, the largest saving first, as long as the limits hold: some may be in float for nothing."""
    best, frontier = result.chosen, list(result.frontier)
    last = best.in_float[-1:]  # without it the limits did not hold
    for name in sorted(set(best.in_float) - set(last), key=lambda name: (-macs[name], name)):
        frontier.append(measure([other for other in best.in_float if other != name]))
        if result.limits.keep(frontier[-1]):
            best = frontier[-1]
    return dataclasses.replace(result, chosen=best, frontier=tuple(frontier))


def _unreachable(points: Sequence[Point], limits: Limits) -> RdError:
    """Says which limit stands in the way, with the nearest of ``points``."""
    left = "what is left is in the weights that are stored small"
    kept = [point for point in points if point.drift <= limits.drift]
    if not kept:
        nearest = min(points, key=lambda point: point.drift)
        return RdError(
            f"--max-drift {limits.drift:g} cannot be met: the nearest is {nearest.drift:.2g}, "
            f"with {_kept(nearest)} in float",
            hint=f"{left}: allow more drift, or use --precision fp16",
        )
    own = [point for point in kept if point.own_drift <= limits.own_drift]
    if own:
        nearest = max(own, key=lambda point: point.agreement or 0.0)
        return RdError(
            f"--min-agreement {limits.agreement:g} cannot be met: the nearest is {nearest.agreement or 0.0:.4f}, "
            f"with {_kept(nearest)} in float",
            hint=f"{left}: lower --min-agreement knowingly, or use --precision fp16",
        )
    nearest = min(kept, key=lambda point: point.own_drift)
    return RdError(
        f"the bundle's own recording and its cut ends cannot keep its bound, a mean frame cosine of "
        f"{1 - limits.own_drift:g}: the nearest is {1 - nearest.own_drift:.4f}, with {_kept(nearest)} in float "
        f"(--max-drift {limits.drift:g} is kept on the recordings that check)",
        hint=f"{left}: lower --min-cosine knowingly, or use --precision fp16",
    )


def _kept(point: Point) -> str:
    return f"all {len(point.in_float)} blocks" if point.in_float else "no block"


def block_macs(
    conv_layers: Sequence[tuple[int, int, int]],
    *,
    mel_bins: int = 0,
    width: int,
    layer_weights: Sequence[tuple[int, int]],
    head_weights: int,
    heads: int,
    step_frames: int = 1,
) -> dict[str, float]:
    """MACs per second of audio that each block computes in int8 where it is quantised.

    ``layer_weights``: of each exported layer, those of its attention and of its feed-forward block. ``heads``: how
    many are exported, of ``head_weights`` each. ``step_frames``: frames that the layers see as one, by a convolution
    before them. Not counted: the first convolution, the positional one and the attention products, which stay in
    float. ``mel_bins``: of a log-mel front end, which stands before its convolutions as the first one does; 0: none.
    """
    macs, rate, before = dict[str, float](), 100.0 if mel_bins else 16_000.0, mel_bins or 1
    for number, (channels, kernel, stride) in enumerate(conv_layers, start=1 if mel_bins else 0):
        rate /= stride
        if number:
            macs[f"front-end.{number}"] = rate * before * channels * kernel
        before = channels
    if before != width:
        macs["input"] = rate * before * width
    rate /= step_frames
    for number, (attention, ffn) in enumerate(layer_weights, start=1):
        macs[f"layer.{number}.attention"] = rate * attention
        macs[f"layer.{number}.ffn"] = rate * ffn
    if step_frames > 1:
        macs["layer.1.attention"] += rate * step_frames * width * width
    if heads:
        macs["heads"] = rate * heads * head_weights
    return macs
