"""The streaming step equals the chunk-masked forward: every tail, every context, any mixture of streams."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.student import ChunkContext, Student
from reuse_distill.student.attention import past_frames
from reuse_distill.student.config import mel_stack
from reuse_distill.student.step import StreamState, initial_state, step, step_rows

# (C, L, R): one frame at a time, no past, L no multiple of C, no look-ahead, look-ahead longer than a chunk.
SHAPES = [(1, 0, 0), (1, 3, 2), (4, 0, 3), (4, 8, 4), (4, 6, 0), (3, 7, 5), (8, 5, 3), (2, 9, 7), (5, 5, 15)]


@pytest.mark.parametrize("reuse_mode", ["shared", "renormalised"])
@pytest.mark.parametrize(("chunk", "left", "ahead"), SHAPES)
def test_every_tail(chunk, left, ahead, reuse_mode, small_config, randomised, noise, streamed, largest_gap) -> None:
    """Utterances that end at every frame of a chunk, with and without samples to spare: 1e-10 in float64."""
    student = randomised(small_config(lookahead_frames=ahead, reuse_mode=reuse_mode))
    context = ChunkContext(chunk, left)
    for tail in range(chunk):
        wave = noise(320 * (3 * chunk + left + tail) + 80 + (97 * tail) % 320, seed=tail)
        gap = largest_gap(streamed(student, wave, context), student(wave[None], context=context))
        assert gap <= 1e-10, f"tail {tail}"


@pytest.mark.parametrize("reuse_mode", ["shared", "renormalised"])
@pytest.mark.parametrize(("chunk", "left", "ahead"), [(1, 3, 2), (4, 6, 0), (8, 5, 3), (2, 9, 7)])
def test_every_tail_in_single_precision(
    chunk, left, ahead, reuse_mode, small_config, randomised, noise, streamed, largest_gap
) -> None:
    student = randomised(small_config(lookahead_frames=ahead, reuse_mode=reuse_mode), dtype=torch.float32)
    context = ChunkContext(chunk, left)
    for tail in range(chunk):
        wave = noise(320 * (3 * chunk + left + tail) + 80, seed=tail, dtype=torch.float32)
        gap = largest_gap(streamed(student, wave, context), student(wave[None], context=context))
        assert gap <= 1e-4, f"tail {tail}"


@pytest.mark.parametrize(("chunk", "left", "ahead"), SHAPES)
def test_streams_shorter_than_a_chunk(chunk, left, ahead, small_config, randomised, noise, streamed, largest_gap):
    student, context = randomised(small_config(lookahead_frames=ahead)), ChunkContext(chunk, left)
    for frames in (1, 2, chunk):
        wave = noise(320 * frames + 80 + 319)
        assert largest_gap(streamed(student, wave, context), student(wave[None], context=context)) <= 1e-10


@pytest.mark.parametrize("reuse_layers", [(), (2, 3, 4), (3,)])
def test_any_pattern_of_reuse(reuse_layers, small_config, randomised, noise, streamed, largest_gap) -> None:
    student, context = randomised(small_config(reuse_layers=reuse_layers)), ChunkContext(3, 4)
    wave = noise(320 * 17 + 80)
    assert largest_gap(streamed(student, wave, context), student(wave[None], context=context)) <= 1e-10
    state = initial_state(student.config, context, batch=1, dtype=torch.float64)
    assert (len(state.keys), len(state.values)) == (4 - len(reuse_layers), 4), "keys only where a map is computed"


@pytest.mark.parametrize("changes", [{"head_width": None}, {"mask_embedding": False}])
def test_students_without_heads_or_mask(changes, small_config, randomised, noise, streamed, largest_gap) -> None:
    student, context = randomised(small_config(**changes)), ChunkContext(4, 8)
    wave = noise(320 * 17 + 80)
    assert largest_gap(streamed(student, wave, context), student(wave[None], context=context)) <= 1e-10


def test_front_end_of_another_width(small_config, randomised, noise, streamed, largest_gap) -> None:
    narrow = (*small_config().conv_layers[:-1], (8, 2, 2))
    student, context = randomised(small_config(conv_layers=narrow)), ChunkContext(4, 8)
    assert student.post_extract_proj is not None
    wave = noise(320 * 17 + 80)
    assert largest_gap(streamed(student, wave, context), student(wave[None], context=context)) <= 1e-10


def test_silence_is_a_stream_like_any_other(small_config, randomised, streamed, largest_gap) -> None:
    """Frames of silence are real frames: they are attended to, unlike frames that do not exist."""
    student, context, wave = randomised(small_config()), ChunkContext(4, 8), torch.zeros(320 * 18 + 80).double()
    assert largest_gap(streamed(student, wave, context), student(wave[None], context=context)) <= 1e-10


def test_the_end_is_not_silence(small_config, randomised, noise, streamed) -> None:
    """Finishing with zeros as if they were audio would be wrong on the last frames: validity is what matters."""
    student, context, wave = randomised(small_config()), ChunkContext(4, 8), noise(320 * 18 + 80)
    padded = torch.cat([wave, torch.zeros(320 * 8, dtype=wave.dtype)])
    masked, silence = (streamed(student, x, context).layers[-1] for x in (wave, padded))
    assert float((masked[0, 14:18] - silence[0, 14:18]).abs().max()) > 0.1


class Player:
    """One row of a batch: utterances one after the other, each after a pause, the row zeroed in between."""

    def __init__(self, waves: list[torch.Tensor], pause: int) -> None:
        self.waves, self.pause, self.number = list(waves), pause, 0
        self.finished: list[list[torch.Tensor]] = []
        self.chunks: list[torch.Tensor] = []


@pytest.mark.parametrize("reuse_mode", ["shared", "renormalised"])
@pytest.mark.parametrize("front_end", ["conv", "mel"])
@pytest.mark.parametrize(("chunk", "left", "ahead"), [(4, 8, 4), (3, 7, 5), (2, 9, 0)])
def test_unsynchronised_streams_with_resets(
    chunk, left, ahead, front_end, reuse_mode, small_config, randomised, noise, streamed, step_inputs, steps_of
) -> None:
    """Three rows, each starting, ending and being reset on its own: every utterance equals a single stream."""
    mel = {"front_end": "mel", "conv_layers": mel_stack(6, 16)} if front_end == "mel" else {}
    student = randomised(small_config(lookahead_frames=ahead, reuse_mode=reuse_mode, **mel))
    context = ChunkContext(chunk, left)
    lengths = [[320 * 21 + 80, 320 * 5 + 200], [400, 320 * 30 + 80, 320 * 9 + 80], [320 * 26 + 399]]
    waves = [[noise(n, seed=10 * r + i) for i, n in enumerate(row)] for r, row in enumerate(lengths)]
    players = [Player(row, pause) for row, pause in zip(waves, (0, 2, 5), strict=True)]
    state = initial_state(student.config, context, batch=3, dtype=torch.float64)
    while any(player.waves for player in players):
        inputs = []
        for player in players:
            running = player.waves and player.pause == 0
            wave = player.waves[0] if running else torch.zeros(0, dtype=torch.float64)
            inputs.append(step_inputs(wave, player.number, chunk))
        samples, fresh = (torch.stack(list(part)) for part in zip(*inputs, strict=True))
        output, state = step(student, samples, fresh, state)
        for row, player in enumerate(players):
            if player.pause or not player.waves:
                player.pause = max(0, player.pause - 1)
                continue
            player.chunks.append(output.layers[-1][row])
            player.number += 1
            frames = frames_for(len(player.waves[0]))
            if player.number == steps_of(frames, chunk, ahead):
                player.finished.append(torch.cat(player.chunks)[ahead : ahead + frames])
                player.waves.pop(0)
                player.pause, player.number, player.chunks = 1, 0, []
                state = zeroed(state, row)
    for row, player in zip(waves, players, strict=True):
        for wave, ours in zip(row, player.finished, strict=True):
            assert float((ours - streamed(student, wave, context).layers[-1][0]).abs().max()) <= 1e-10


def tensors(state: StreamState) -> list[torch.Tensor]:
    return [state.position, state.position_valid, state.valid, *state.keys, *state.values, state.audio]


def zeroed(state: StreamState, row: int) -> StreamState:
    """Reset of one stream: its rows are zeros, as at the start."""
    kept = [torch.ones(len(x), *[1] * (x.ndim - 1), dtype=x.dtype) for x in tensors(state)]
    for keep in kept:
        keep[row] = 0
    cleared = [x * keep for x, keep in zip(tensors(state), kept, strict=True)]
    keys = len(state.keys)
    return StreamState(*cleared[:3], cleared[3 : 3 + keys], cleared[3 + keys : -1], cleared[-1])


def test_a_reset_in_mid_stream_forgets_everything(small_config, randomised, noise, step_inputs) -> None:
    student = randomised(small_config(front_end="mel", conv_layers=mel_stack(6, 16)))
    context = ChunkContext(4, 8)
    state = initial_state(student.config, context, batch=1, dtype=torch.float64)
    for number in range(5):
        _, state = step(student, *(x[None] for x in step_inputs(noise(320 * 40), number, 4)), state)
    assert all(x.abs().max() > 0 for x in tensors(state))
    fresh = initial_state(student.config, context, batch=1, dtype=torch.float64)
    inputs = [x[None] for x in step_inputs(noise(320 * 40, seed=5), 0, 4)]
    ours, theirs = step(student, *inputs, zeroed(state, 0)), step(student, *inputs, fresh)
    assert torch.equal(ours[0].layers[-1], theirs[0].layers[-1])
    for a, b in zip(tensors(ours[1]), tensors(theirs[1]), strict=True):
        assert torch.equal(a, b)


def test_a_step_changes_nothing_in_place(small_config, randomised, noise, step_inputs) -> None:
    student, context = randomised(small_config()), ChunkContext(4, 8)
    state = initial_state(student.config, context, batch=1, dtype=torch.float64)
    samples, fresh = (x[None] for x in step_inputs(noise(320 * 40), 0, 4))
    before = [x.clone() for x in (samples, fresh, *tensors(state))]
    first, _ = step(student, samples, fresh, state)
    second, _ = step(student, samples, fresh, state)
    assert torch.equal(first.layers[-1], second.layers[-1])
    assert all(torch.equal(a, b) for a, b in zip(before, (samples, fresh, *tensors(state)), strict=True))


@pytest.mark.parametrize("left", [8, 6, 3])
def test_a_ring_buffer_of_rows_is_the_shifted_cache(left, small_config, randomised, noise, step_inputs) -> None:
    """Attention does not care for the order of slots: writing C rows over the oldest ones gives the same features."""
    student, context = randomised(small_config()), ChunkContext(4, left)
    shifted = initial_state(student.config, context, batch=1, dtype=torch.float64)
    ring, cursor, wave = initial_state(student.config, context, batch=1, dtype=torch.float64), 0, noise(320 * 50)
    for number in range(12):
        inputs = [x[None] for x in step_inputs(wave, number, 4)]
        expected, shifted = step(student, *inputs, shifted)
        output, rows = step_rows(student, *inputs, ring)
        torch.testing.assert_close(output.layers[-1], expected.layers[-1], atol=1e-10, rtol=0)
        newest = min(left, 4)
        slots = [(cursor + i) % left for i in range(newest)]
        ring.valid[:, slots] = rows.valid[:, -newest:]
        for cache, new in zip([*ring.keys, *ring.values], [*rows.keys, *rows.values], strict=True):
            cache[:, :, slots] = new[:, :, -newest:]
        ring = dataclasses.replace(ring, position=rows.position, position_valid=rows.position_valid)
        cursor = (cursor + newest) % left


def test_a_stream_forgets(small_config, randomised, noise, streamed) -> None:
    """After ``past_frames`` of warm-up a stream that began later, at a chunk's start, gives the same features."""
    student, context = randomised(small_config(layers=3, reuse_layers=(2,))), ChunkContext(4, 6)
    reach, late = past_frames(student.config, context), 4 * 9
    wave = noise(320 * (late + reach + 20) + 80)
    whole = streamed(student, wave, context).layers[-1][0, late:]
    fresh = streamed(student, wave[320 * late :], context).layers[-1][0]
    assert float((whole[reach:] - fresh[reach:]).abs().max()) <= 1e-10
    assert float((whole[: reach // 2] - fresh[: reach // 2]).abs().max()) > 1e-6


def test_a_student_with_statistics_over_time_cannot_stream(small_config) -> None:
    with pytest.raises(RdError, match=r"conv_norm is 'group'.*no step can be exact") as caught:
        initial_state(small_config("tiny"), ChunkContext(4, 8), batch=1, dtype=torch.float32)
    assert "arm-stream" in caught.value.hint


def test_a_student_that_reduces_time_cannot_stream(small_config) -> None:
    with pytest.raises(RdError, match=r"2 frames as one step .*no chunked forward") as caught:
        initial_state(small_config(time_reduction=2, context=None), ChunkContext(4, 8), batch=1, dtype=torch.float32)
    assert "--mode window" in caught.value.hint


def test_heads_on_the_last_layer(small_config, randomised, noise, streamed) -> None:
    student = randomised(small_config(head_kind="split", head_targets=(2, 5, 12)))
    context, wave = ChunkContext(3, 4), noise(320 * 17 + 80)
    found, wanted = streamed(student, wave, context), student(wave[None], context=context)
    assert len(found.projections) == 3
    for a, b in zip(found.projections, wanted.projections, strict=True):
        assert float((a - b).abs().max()) <= 1e-10


def test_a_wrong_number_of_samples(small_config, randomised) -> None:
    student = randomised(small_config())
    state = initial_state(student.config, ChunkContext(4, 8), batch=1, dtype=torch.float64)
    with pytest.raises(RdError, match="1280 samples for 4 frames, a step takes 1360"):
        step(student, torch.zeros(1, 1280).double(), torch.ones(1, 4).double(), state)


def test_state_sizes_of_the_streaming_preset() -> None:
    """C = 8, L = 128: below 2 MB in half precision."""
    from reuse_distill.student import preset

    config = preset("arm-stream")
    state = initial_state(config, config.context, batch=1, dtype=torch.float16)
    assert state.keys[0].shape == (1, 12, 128, 32)
    assert (len(state.keys), len(state.values)) == (6, 12)
    assert sum(x.numel() * x.element_size() for x in tensors(state)) <= 2 * 1024**2


def test_tiny_stream_as_it_ships(noise, streamed, largest_gap) -> None:
    from reuse_distill.student import preset

    torch.manual_seed(0)
    student = Student(preset("tiny-stream")).eval().requires_grad_(False)
    wave = noise(16_000 * 4 + 123, dtype=torch.float32)
    context = student.config.context
    assert largest_gap(streamed(student, wave, context), student(wave[None], context=context)) <= 1e-4
