"""Span masks: the public sampler bit for bit, and the invariants of our own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reuse_distill.distill.masks import SpanMask, draw_mask, public_mask_indices, span_mask
from reuse_distill.runtime.errors import RdError


def test_every_public_mask_is_reproduced_bit_for_bit(golden_dir: Path) -> None:
    records = json.loads((golden_dir / "masks/compute_mask_indices.json").read_text())["records"]
    packed = np.load(golden_dir / "masks/compute_mask_indices.npz", allow_pickle=False)
    assert len(records) == 130
    for record in records:
        random = np.random.RandomState(record["seed"])
        ours = public_mask_indices(
            tuple(record["shape"]),
            record["valid_lengths"],
            probability=record["mask_prob"],
            span=record["mask_length"],
            selection=record["mask_type"],
            min_spans=record["min_masks"],
            no_overlap=record["no_overlap"],
            min_gap=record["min_space"],
            same_count=record.get("require_same_masks", True),
            random=random,
        )
        expected = np.unpackbits(packed[record["id"]], axis=1, count=record["shape"][1]).astype(bool)
        assert np.array_equal(ours, expected), record["id"]
        assert random.rand() == record["next_rand_after"], f"{record['id']}: not the same amount of randomness"


def spans_of(row: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    valid=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    probability=st.floats(0, 1),
    span=st.integers(1, 30),
    gap=st.integers(0, 4),
    selection=st.sampled_from(["static", "uniform"]),
    seed=st.integers(0, 2**32),
)
def test_own_masks_stay_on_valid_frames_and_apart(valid, probability, span, gap, selection, seed) -> None:
    how = SpanMask(probability=probability, span=span, min_gap=gap, selection=selection)
    mask = span_mask(how, valid, 310, np.random.default_rng(seed))
    for row, count in zip(mask, valid, strict=True):
        assert not row[count:].any()
        if gap:
            starts_ends = spans_of(row)
            longest = span if selection == "static" else 2 * span
            assert all(end - start <= longest for start, end in starts_ends)
            assert all(b[0] - a[1] >= gap for a, b in pairwise(starts_ends))


def test_the_masked_share_is_the_probability_and_rows_do_not_depend_on_each_other() -> None:
    how = SpanMask(probability=0.4)
    shares = [span_mask(how, [600], 600, np.random.default_rng(seed)).mean() for seed in range(200)]
    assert np.mean(shares) == pytest.approx(0.4, abs=0.02)
    alone = span_mask(how, [200], 200, np.random.default_rng(3))
    padded = span_mask(how, [200, 50], 400, np.random.default_rng(3))
    assert np.array_equal(alone[0], padded[0, :200])


def test_every_frame_is_masked_equally_often() -> None:
    how = SpanMask(probability=0.5, span=4, selection="static")
    share = np.mean([span_mask(how, [60], 60, np.random.default_rng(s))[0] for s in range(4000)], axis=0)
    inner = share[4:-4]
    assert inner.max() - inner.min() < 0.12  # edges are reached by fewer arrangements, the inside is level


def test_draw_mask_is_a_function_of_its_seed() -> None:
    for sampler in ("spans", "public"):
        how = SpanMask(sampler=sampler)
        first, again, other = (draw_mask(how, [90, 120], 120, seed=s) for s in ((1, 2), (1, 2), (1, 3)))
        assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_bad_settings_say_what_is_wrong() -> None:
    with pytest.raises(RdError, match=r"mask\.probability is 1\.5"):
        SpanMask(probability=1.5)
    with pytest.raises(RdError, match="known: static, uniform"):
        SpanMask(selection="gauss")
