"""Frame counts, padding, chunks, and how far the past can reach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.student import ChunkContext
from reuse_distill.student.attention import chunk_mask, frames_for_lengths, padding_mask, past_frames


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=5))
def test_frames_follow_the_conv_length_rule(lengths: list[int]) -> None:
    assert frames_for_lengths(torch.tensor(lengths)).tolist() == [frames_for(samples) for samples in lengths]


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49)])
def test_frame_counts(samples: int, frames: int) -> None:
    assert frames_for_lengths(torch.tensor([samples])).item() == frames


def test_padding_mask() -> None:
    mask = padding_mask(torch.tensor([400, 399, 1040]), 3)
    assert mask.tolist() == [[False, True, True], [True, True, True], [False, False, False]]


def chunks_by_hand(frames: int, chunk: int, lookahead: int) -> list[range]:
    """The frames of each step, the first one starting R frames before the audio."""
    return [range(start, start + chunk) for start in range(-lookahead, frames, chunk)]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 30), st.integers(0, 15))
def test_chunk_mask_is_the_definition(frames: int, chunk: int, left: int, lookahead: int) -> None:
    mask = chunk_mask(frames, ChunkContext(chunk, left), lookahead=lookahead)
    expected = torch.zeros(frames, frames, dtype=torch.bool)
    for mine in chunks_by_hand(frames, chunk, lookahead):
        for query in mine:
            for key in range(mine.start - left, mine.stop):
                if 0 <= query < frames and 0 <= key < frames:
                    expected[query, key] = True
    assert torch.equal(mask, expected)


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 20), st.integers(0, 9))
def test_every_frame_sees_itself_and_no_later_chunk(frames: int, chunk: int, left: int, lookahead: int) -> None:
    mask = chunk_mask(frames, ChunkContext(chunk, left), lookahead=lookahead)
    assert mask.diagonal().all()
    for query in range(frames):
        seen = mask[query].nonzero().flatten()
        assert seen.max() < query + chunk
        assert seen.max() - seen.min() + 1 == len(seen) <= left + chunk


def test_a_chunk_without_frames_is_refused() -> None:
    for chunk, left in ((0, 4), (-1, 4), (4, -1)):
        with pytest.raises(RdError, match=f"chunk of {chunk} frames with {left} to the left"):
            ChunkContext(chunk, left)


REACH = [(4, 8, 2), (4, 6, 0), (1, 3, 1), (3, 0, 2), (8, 4, 5)]


@pytest.mark.parametrize(("chunk", "left", "lookahead"), REACH)
@pytest.mark.parametrize("reuse_mode", ["shared", "renormalised"])
def test_the_past_reaches_so_far_and_no_further(
    chunk: int, left: int, lookahead: int, reuse_mode: str, small_config, randomised, noise
) -> None:
    """``past_frames``: a change one frame earlier leaves no trace, a change at the bound does."""
    config = small_config(
        layers=3, reuse_layers=(2,), position_kernel=8, lookahead_frames=lookahead, reuse_mode=reuse_mode
    )
    student, context = randomised(config), ChunkContext(chunk, left)
    reach = past_frames(config, context)
    # The last frame of a chunk, far enough from the start: it has the longest past.
    frame = chunk * (reach // chunk + 3) - lookahead - 1
    wave = noise(320 * (frame + lookahead + 1) + 80)

    def change(at: int) -> float:
        """Difference at ``frame`` when only samples are changed that frame ``at`` alone hears."""
        other = wave.clone()
        other[320 * at + 80 : 320 * (at + 1)] += 1.0
        # One at a time: rows of one batch may be rounded differently.
        ours, theirs = (student(x[None], context=context).layers[-1][0, frame] for x in (wave, other))
        return float((ours - theirs).abs().max())

    assert change(frame - reach - 1) == 0
    assert change(frame - reach) > 0
    assert change(frame) > 1e-3


def test_past_of_the_streaming_preset() -> None:
    """12 layers, L = 128, C = 8, K = 128, R = 4: 33 seconds at most."""
    from reuse_distill.student import preset

    config = preset("arm-stream")
    assert past_frames(config, config.context) == 7 + 11 * 128 + 128 + 123
