"""steps.py: the exact engine against the definition of the toy student, for every push size, tail and batch."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for, samples_for

CLOSE = 5e-6
SIZES = {  # chunk, look-ahead, ring, ordered rows
    "as exported": (4, 2, 13, 7),
    "look-ahead longer than a chunk": (2, 5, 9, 3),
    "no look-ahead": (4, 0, 8, 4),
    "ring shorter than a chunk": (8, 3, 5, 2),
    "single frames": (1, 1, 6, 1),
    "look-ahead a multiple of the chunk": (3, 6, 7, 5),
}


@pytest.fixture(scope="module", params=SIZES)
def streamed(request, toys):
    """An encoder of each geometry, with its definition."""
    chunk, lookahead, left, trace = SIZES[request.param]
    toy = toys.Toy(chunk=chunk, lookahead=lookahead, left=left, trace=trace)
    return toy, Encoder.load(toys.build("streaming", toy)), toys


def push_all(stream, wave, sizes):
    """Features (N, F, W) of all frames; indices must follow one another."""
    parts, at = [], 0
    for size in sizes:
        parts += stream.push(wave[at : at + size])
        at += size
    parts += stream.push(wave[at:])
    parts += stream.finish()
    assert [p.index for p in parts] == np.cumsum([0, *map(len, parts)])[:-1].tolist()
    return np.concatenate([np.zeros((2, 0, 6), np.float32), *(p.features for p in parts)], axis=1)


def test_every_tail_of_more_than_a_chunk(streamed):
    toy, encoder, toys = streamed
    wave = toys.speech(320 * 70)
    for frames in [*range(3 * toy.chunk + toy.lookahead + 2), *range(50, 51 + toy.chunk)]:
        for extra in (0, 1, 319):
            cut = wave[: samples_for(frames) + extra]
            found = encoder.extract(cut)
            wanted = toys.streaming_reference(toy, cut)
            assert found.shape == wanted.shape == (2, frames_for(len(cut)), toys.WIDTH)
            assert np.abs(found - wanted).max(initial=0) < CLOSE


@settings(max_examples=25)
@given(data=st.data())
def test_any_pushes_give_the_same_bits(streamed, data):
    toy, encoder, toys = streamed
    wave = toys.speech(data.draw(st.integers(0, 9000)))
    sizes = data.draw(st.lists(st.integers(0, 3 * 320 * toy.chunk), max_size=15))
    assert np.array_equal(push_all(encoder.stream(), wave, sizes), encoder.extract(wave))


def test_frames_come_as_soon_as_they_can(streamed):
    _, encoder, _ = streamed
    stream, given_samples, first = encoder.stream(), 0, None
    while first is None:
        given_samples += 40
        first = next(iter(stream.push(np.zeros(40, np.float32))), None)
    assert given_samples / 16 == encoder.latency.first_frame_ms
    assert first.index == 0


def test_the_worst_latency_is_that_of_a_chunks_oldest_frame(streamed):
    """Push one frame's samples at a time: no frame is older than stated when it comes, and one is exactly that old."""
    _, encoder, toys = streamed
    stream, ages = encoder.stream(), []
    stream.push(toys.speech(80))
    for n in range(1, 60):
        for frames in stream.push(np.zeros(320, np.float32)):
            ages.append((80 + 320 * n) / 16 - frames.start_s * 1000)
    settled = ages[len(ages) // 2 :]
    assert max(settled) == pytest.approx(encoder.latency.worst_ms)


def test_a_reset_forgets_everything(streamed):
    _, encoder, toys = streamed
    wave, stream = toys.speech(7000), encoder.stream()
    for used in (123, 5000):
        stream.push(toys.speech(used, seed=9))
        stream.reset()
        assert np.array_equal(push_all(stream, wave, [100]), encoder.extract(wave))
        stream.reset()


@settings(max_examples=15)
@given(seed=st.integers(0, 1 << 30), count=st.integers(1, 5), neighbours=st.booleans())
def test_a_batch_of_unequal_streams_equals_each_alone(streamed, seed, count, neighbours):
    toy, encoder, toys = streamed
    rng = np.random.default_rng(seed)
    waves = [toys.speech(int(rng.integers(0, 6000)), seed=i) for i in range(count)]
    streams = encoder.streams(count) if neighbours else [encoder.stream() for _ in range(count)]
    parts, left = [[] for _ in streams], list(waves)
    while any(stream.ready for stream in streams) or any(wave is not None for wave in left):
        for i in rng.permutation(count)[: rng.integers(0, count + 1)]:
            if left[i] is None:
                continue
            size = int(rng.integers(0, 2 * 320 * toy.chunk))
            streams[i].feed(left[i][:size])
            left[i] = left[i][size:]
            if not len(left[i]):
                streams[i].end()
                left[i] = None
        for part, frames in zip(parts, encoder.step(streams), strict=True):
            part += [] if frames is None else [frames]
    for wave, part in zip(waves, parts, strict=True):
        assert np.abs(encoder.join(part) - encoder.extract(wave)).max(initial=0) < CLOSE


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_serves_any_number_of_streams(toys, batch):
    toy = toys.Toy(batch=batch)
    encoder = Encoder.load(toys.build("streaming", toy))
    waves = [toys.speech(5000 + 700 * i, seed=i) for i in range(5)]
    for streams in (encoder.streams(5), [encoder.stream() for _ in waves]):
        parts = [[] for _ in waves]
        for stream, wave in zip(streams, waves, strict=True):
            stream.feed(wave)
            stream.end()
        while any(stream.ready for stream in streams):
            for part, frames in zip(parts, encoder.step(streams), strict=True):
                part += [] if frames is None else [frames]
        for wave, part in zip(waves, parts, strict=True):
            assert np.abs(encoder.join(part) - toys.streaming_reference(toy, wave)).max() < CLOSE


def test_states_in_half_precision(toys):
    toy = toys.Toy(half=True)
    encoder = Encoder.load(toys.build("streaming", toy))
    wave = toys.speech(9000)
    found = encoder.extract(wave)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - toys.streaming_reference(toy, wave)).max() < 5e-3
    assert encoder.stream().engine.pool.states[0].dtype == np.float16


def test_one_layer_has_no_layer_axis(toys):
    toy = toys.Toy(layers=1)
    encoder = Encoder.load(toys.build("streaming", toy))
    wave = toys.speech(5000)
    assert np.abs(encoder.extract(wave) - toys.streaming_reference(toy, wave)[0]).max() < CLOSE
    assert encoder.extract(wave[:300]).shape == (0, toys.WIDTH)
    assert encoder.stream().push(wave)[0].features.ndim == 2


def test_frames_keep_their_features(toys):
    """What a push returned is not overwritten by later steps, alone or in a batch."""
    encoder = Encoder.load(toys.streaming)
    stream = encoder.stream()
    frames = stream.push(toys.speech(5000))
    kept = [f.features.copy() for f in frames]
    stream.push(toys.speech(5000, seed=5))
    stream.feed(toys.speech(5000, seed=6))
    encoder.step([stream])
    assert all(np.array_equal(f.features, k) for f, k in zip(frames, kept, strict=True))


def test_streams_in_threads_share_an_encoder(toys):
    encoder = Encoder.load(toys.streaming)
    waves = [toys.speech(40_000, seed=i) for i in range(4)]
    wanted = [encoder.extract(wave) for wave in waves]
    found = {}

    def work(i):
        found[i] = push_all(encoder.stream(), waves[i], [700] * 60)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(np.array_equal(found[i], wanted[i]) for i in range(4))


def test_batches_of_streams_in_threads_share_an_encoder(toys):
    """Two threads that gather batches of their own streams do not mix them up."""
    encoder = Encoder.load(toys.streaming)
    wave, failures = toys.speech(16_000), []
    wanted = encoder.extract(wave)

    def work():
        streams = [encoder.stream() for _ in range(3)]
        parts = [[] for _ in streams]
        for stream in streams:
            stream.feed(wave)
            stream.end()
        while any(stream.ready for stream in streams):
            for part, frames in zip(parts, encoder.step(streams), strict=True):
                part += [] if frames is None else [frames]
        for part in parts:
            if np.abs(encoder.join(part) - wanted).max() > CLOSE:
                failures.append(part)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures


def test_a_batch_of_two_encoders_is_refused(toys):
    first, second = Encoder.load(toys.streaming), Encoder.load(toys.streaming)
    streams = [first.stream(), second.stream()]
    for stream in streams:
        stream.feed(toys.speech(3000))
    with pytest.raises(RdError, match="1 of 2 streams belong to another encoder"):
        first.step(streams)
    with pytest.raises(RdError, match="given twice in one step"):
        first.step([streams[0], streams[0]])
    assert first.step([]) == []


def test_the_past_reaches_only_as_far_as_the_states(toys):
    """Attention sees L frames, the ordered rows T, h P more: beyond that, other audio changes nothing, bit by bit."""
    toy = toys.Toy()
    encoder = Encoder.load(toys.streaming)
    reach = max(toy.left, toy.trace) + toy.past + toy.chunk + toy.lookahead
    wave = toys.speech(320 * 80 + 80)
    other = wave.copy()
    other[: 320 * 40] = toys.speech(320 * 40, seed=8)
    a, b = encoder.extract(wave), encoder.extract(other)
    same = np.abs(a - b).max((0, 2)) < 1e-6
    assert not same[39]
    assert same[40 + reach :].all()
    assert same[40 + reach :].size > 10
