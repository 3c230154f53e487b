"""Span masks over frames: which frames the masked pass hides.

Two samplers. ``span_mask`` is ours: an explicit ``numpy.random.Generator``, each row drawn alone, spans only on valid
frames, and the drawn share of frames really masked. ``public_mask_indices`` gives, bit for bit, the masks of the
sampler that HuBERT, WavLM and ARMHuBERT were trained with, from a ``numpy.random.RandomState``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from reuse_distill.runtime.errors import RdError

Selection = Literal["static", "uniform"]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SpanMask:
    """How spans are drawn. ``uniform`` lengths are uniform on [0, 2 span] frames, ``static`` are all ``span``.

    ``sampler`` is ``spans`` (ours) or ``public`` (the published sampler, see ``public_mask_indices``).
    """

    probability: float = 0.8
    span: int = 10
    selection: str = "uniform"
    min_spans: int = 2
    min_gap: int = 1
    sampler: str = "spans"

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise RdError(f"mask.probability is {self.probability}", hint="give a share of frames between 0 and 1")
        if self.span < 1 or self.min_spans < 0 or self.min_gap < 0:
            raise RdError(
                f"mask: span {self.span}, min_spans {self.min_spans}, min_gap {self.min_gap}",
                hint="span is at least 1 frame; min_spans and min_gap are at least 0",
            )
        for name, value, known in (
            ("selection", self.selection, ("static", "uniform")),
            ("sampler", self.sampler, ("spans", "public")),
        ):
            if value not in known:
                raise RdError(f"mask.{name} is {value!r}", hint=f"known: {', '.join(known)}")


def draw_mask(settings: SpanMask, valid: Sequence[int], frames: int, *, seed: Sequence[int]) -> Mask:
    """The mask of one batch (B, F), a pure function of the settings, the rows' valid frames and ``seed``."""
    if settings.sampler == "spans":
        return span_mask(settings, valid, frames, np.random.default_rng(list(seed)))
    random = np.random.RandomState(np.random.SeedSequence(list(seed)).generate_state(4))
    return public_mask_indices(
        (len(valid), frames),
        valid,
        probability=settings.probability,
        span=settings.span,
        selection="static" if settings.selection == "static" else "uniform",
        min_spans=settings.min_spans,
        min_gap=settings.min_gap,
        random=random,
    )


def span_mask(settings: SpanMask, valid: Sequence[int], frames: int, generator: np.random.Generator) -> Mask:
    """(B, F) bool, True = masked; row b masks only its first ``valid[b]`` frames.

    A row of n frames draws floor(probability n / span + u), u uniform on [0, 1), spans, at least ``min_spans``.
    Spans that do not fit with ``min_gap`` free frames between them are dropped, the last drawn first; what fits is
    placed uniformly over all arrangements.
    """
    mask = np.zeros((len(valid), frames), dtype=bool)
    for row, count in zip(mask, valid, strict=True):
        for start, length in _arrange(settings, int(count), generator):
            row[start : start + length] = True
    return mask


def _arrange(settings: SpanMask, frames: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """(start, length) of every span of one row of ``frames`` frames."""
    if frames == 0 or settings.probability == 0:
        return []
    drawn = int(settings.probability * frames / settings.span + generator.random())
    lengths = _span_lengths(settings, max(drawn, settings.min_spans), generator)
    lengths = _that_fit([min(length, frames) for length in lengths if length > 0], frames, settings.min_gap)
    spare = frames - sum(lengths) - settings.min_gap * max(len(lengths) - 1, 0)
    # Stars and bars: n+spare places, choose n of them for the spans; what lies between are the spare frames.
    places = np.sort(generator.choice(spare + len(lengths), size=len(lengths), replace=False))
    spans, used = [], 0
    for index, (place, length) in enumerate(zip(places, lengths, strict=True)):
        spans.append((int(place) - index + used, length))
        used += length + settings.min_gap
    return spans


def _span_lengths(settings: SpanMask, count: int, generator: np.random.Generator) -> list[int]:
    if settings.selection == "static":
        return [settings.span] * count
    return [int(n) for n in generator.integers(0, 2 * settings.span, size=count, endpoint=True)]


def _that_fit(lengths: list[int], frames: int, gap: int) -> list[int]:
    while lengths and sum(lengths) + gap * (len(lengths) - 1) > frames:
        lengths = lengths[:-1]
    return lengths


def public_mask_indices(
    shape: tuple[int, int],
    valid: Sequence[int] | None,
    *,
    probability: float,
    span: int,
    selection: Selection = "static",
    min_spans: int = 0,
    no_overlap: bool = True,
    min_gap: int = 0,
    same_count: bool = True,
    random: np.random.RandomState,
) -> Mask:
    """The masks of fairseq 0.12.2 (and of the WavLM and MelHuBERT copies), bit for bit, and as much randomness used.

    ``shape`` (B, F); ``valid`` frames per row or None (no padding mask was given, which draws differently);
    ``same_count`` thins every row to as many masked frames as the poorest row has, as the public code does.
    """
    rows, frames = shape
    for_all = _public_count(probability, frames, span, min_spans, random)
    chosen: list[NDArray[np.int64]] = []
    for row in range(rows):
        length = frames if valid is None else int(valid[row])
        count = for_all if valid is None else _public_count(probability, length, span, min_spans, random)
        lengths = _public_lengths(selection, span, count, length, random)
        place = _public_apart if no_overlap else _public_overlapping
        indices = place(lengths, length, min_gap, random)
        chosen.append(np.unique(indices[indices < length]))
    mask = np.zeros(shape, dtype=bool)
    fewest = min(len(indices) for indices in chosen)
    for row, indices in enumerate(chosen):
        thin = same_count and len(indices) > fewest
        mask[row, random.choice(indices, fewest, replace=False) if thin else indices] = True
    return mask


def _public_count(probability: float, frames: int, span: int, min_spans: int, random: np.random.RandomState) -> int:
    return max(min_spans, int(probability * frames / float(span) + random.rand()))


def _public_lengths(
    selection: Selection, span: int, count: int, frames: int, random: np.random.RandomState
) -> NDArray[np.int64]:
    static = selection == "static"
    if count == 0:  # nothing to hide; the public code fails here
        return np.zeros(0, dtype=np.int64)
    lengths = np.full(count, span) if static else random.randint(0, 2 * span + 1, size=count)
    if lengths.sum() == 0:
        lengths[0] = min(span, frames - 1)
    return lengths


def _public_apart(
    lengths: NDArray[np.int64], frames: int, gap: int, random: np.random.RandomState
) -> NDArray[np.int64]:
    """Longest span first into a free part drawn by its size; spans that fit nowhere end the search."""
    if not len(lengths):
        return np.zeros(0, dtype=np.int64)
    free = [(0, frames)]
    shortest = int(lengths.min())
    masked: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        room = np.array([end - start if end - start >= length + gap else 0 for start, end in free], dtype=np.int64)
        if room.sum() == 0:
            break
        start, end = free.pop(random.choice(len(free), p=room / room.sum()))
        # The public code leaves out the last place, and fails where there is only one.
        first = random.randint(start, end - length) if end - length > start else start
        masked.extend(range(first, first + length))
        if first - start - gap >= shortest:
            free.append((start, first - gap + 1))
        if end - first - length - gap > shortest:
            free.append((first + length + gap, end))
    return np.array(masked, dtype=np.int64)


def _public_overlapping(
    lengths: NDArray[np.int64], frames: int, gap: int, random: np.random.RandomState
) -> NDArray[np.int64]:
    """Starts drawn without replacement, spans may overlap; ``gap`` plays no part."""
    if not len(lengths):
        return np.zeros(0, dtype=np.int64)
    count, shortest = len(lengths), int(lengths.min())
    if frames - shortest <= count:
        shortest = frames - count - 1
    starts = random.choice(frames - shortest, count, replace=False)
    return np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
