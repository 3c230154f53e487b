"""runtime/streaming/snapshot.py: a stream that moves, and bytes that must not be believed."""

import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.snapshot import MAGIC, Saved, pack, unpack

KINDS = ["offline", "window", "streaming"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_a_stream_that_moves_gives_the_same_frames(toys, kind, rate_hz):
    path = getattr(toys, kind)
    encoder, elsewhere = Encoder.load(path), Encoder.load(path)
    wave = toys.speech(3 * rate_hz)
    whole = encoder.stream(rate_hz)
    wanted = encoder.join([*whole.push(wave), *whole.finish()])
    rng = np.random.default_rng(0)
    stream, parts, at = encoder.stream(rate_hz), [], 0
    while at < len(wave):
        size = int(rng.integers(1, rate_hz // 4))
        parts += stream.push(wave[at : at + size])
        at += size
        moved = elsewhere.stream(rate_hz)
        moved.push(toys.speech(12_345, seed=7))
        moved.restore(stream.snapshot())
        stream = moved
    stream.end()
    moved = elsewhere.stream(rate_hz)
    moved.restore(stream.snapshot())  # in the tail
    parts += moved.finish()
    found = encoder.join(parts)
    assert [p.index for p in parts] == np.cumsum([0, *map(len, parts)])[:-1].tolist()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= (0 if rate_hz == 16_000 else 1e-4)
    if kind != "window":
        moved.restore(moved.snapshot())
        assert moved.finish() == []


def test_fed_samples_move_too(toys):
    encoder = Encoder.load(toys.streaming)
    stream, moved = encoder.stream(), encoder.streams(3)[1]
    stream.feed(toys.speech(9000))
    moved.restore(stream.snapshot())
    assert np.array_equal(encoder.join(moved.finish()), encoder.extract(toys.speech(9000)))


def test_a_snapshot_is_small(toys):
    """State and the samples of one step, not the history."""
    stream = Encoder.load(toys.streaming).stream()
    stream.push(toys.speech(20_000))
    early = len(stream.snapshot())
    stream.push(toys.speech(200_000))
    assert abs(len(stream.snapshot()) - early) < 4 * 2000


@settings(max_examples=150)
@given(st.data())
def test_a_flipped_bit_or_a_cut_is_noticed(toys, data):
    encoder = Encoder.load(toys.streaming)
    stream, target = encoder.stream(), encoder.stream()
    stream.push(toys.speech(5000))
    target.push(toys.speech(777, seed=3))
    good, before = stream.snapshot(), target.snapshot()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, 8 * len(good) - 1))
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
    else:
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    with pytest.raises(RdError, match=r"^snapshot: "):
        target.restore(bytes(bad))
    assert target.snapshot() == before


@pytest.mark.parametrize("data", [b"", b"nonsense", MAGIC, MAGIC + b"\xff\xff\xff\xff", b"PK\x03\x04" + bytes(100)])
def test_other_bytes_are_refused(toys, data):
    with pytest.raises(RdError, match=r"^snapshot: "):
        Encoder.load(toys.streaming).stream().restore(data)


def test_another_bundles_snapshot_is_refused(toys):
    stream = Encoder.load(toys.streaming).stream()
    other = Encoder.load(toys.build("streaming", toys.Toy(seed=5))).stream()
    before = stream.snapshot()
    with pytest.raises(RdError, match=r"taken with artifact '.*', this stream has '.*'\n\nhint: .*same student"):
        stream.restore(other.snapshot())
    assert stream.snapshot() == before


def test_other_settings_are_refused(toys):
    streaming, offline = Encoder.load(toys.streaming), Encoder.load(toys.offline)
    with pytest.raises(RdError, match="taken with sample_rate_hz 8000, this stream has 16000"):
        streaming.stream().restore(streaming.stream(8000).snapshot())
    with pytest.raises(RdError, match="taken with left_frames 9, this stream has 150"):
        offline.stream().restore(offline.stream(left_frames=9).snapshot())


def rewritten(data, change):
    """``data`` with its header changed and the checksum made right again: damage that the checksum cannot see."""
    size = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    start = len(MAGIC) + 4
    header = json.loads(data[start : start + size])
    change(header)
    text = json.dumps(header).encode()
    body = MAGIC + len(text).to_bytes(4, "little") + text + data[start + size : -4]
    return body + zlib.crc32(body).to_bytes(4, "little")


CHANGES = {
    "a step ahead of its audio": lambda h: h["counters"].update(place=9999),
    "a negative step": lambda h: h["counters"].update(place=-1),
    "another step": lambda h: h["counters"].update(place=h["counters"]["place"] - 1),
    "a slot outside the ring": lambda h: h["counters"].update(cursor=13),
    "ended and not ended": lambda h: h["counters"].update(ended=1),
    "frames of an end that was not": lambda h: h["counters"].update(frames=3),
    "ended with other frames": lambda h: h["counters"].update(frames=3, ended=1),
    "more samples given than taken": lambda h: h["counters"].update(given=1 << 40),
    "more samples taken than given": lambda h: h["counters"].update(taken=9999),
    "samples from elsewhere": lambda h: h["counters"].update(samples_start=1),
    "a counter that is text": lambda h: h["counters"].update(place="ten"),
    "a missing counter": lambda h: h["counters"].pop("cursor"),
    "a missing state": lambda h: h["arrays"].pop(),
    "a state of another shape": lambda h: h["arrays"][-1][2].append(1) or h["arrays"][-1][2].reverse(),
    "a state of objects": lambda h: h["arrays"][-1].__setitem__(1, "object"),
    "a state of a huge shape": lambda h: h["arrays"][-1][2].__setitem__(0, 1 << 60),
    "a state of a negative shape": lambda h: h["arrays"][-1][2].__setitem__(0, -1),
    "no arrays": lambda h: h.pop("arrays"),
    "arrays that are none": lambda h: h.update(arrays=7),
    "no identity": lambda h: h.pop("identity"),
    "another schema": lambda h: h.update(schema=3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_states_that_cannot_be_are_refused(toys, change):
    encoder = Encoder.load(toys.streaming)
    stream, target = encoder.stream(), encoder.stream()
    stream.push(toys.speech(5000))
    target.push(toys.speech(777, seed=3))
    before = target.snapshot()
    with pytest.raises(RdError, match=r"^snapshot: "):
        target.restore(rewritten(stream.snapshot(), change))
    assert target.snapshot() == before
    target.restore(rewritten(stream.snapshot(), lambda header: None))


def test_a_state_that_is_not_finite_is_refused(toys):
    encoder = Encoder.load(toys.streaming)
    stream = encoder.stream()
    stream.engine.pool.states[0][:] = np.nan
    with pytest.raises(RdError, match=r"snapshot: state position holds a NaN"):
        encoder.stream().restore(stream.snapshot())


def test_pack_and_unpack():
    saved = Saved({"a": 1, "b": -5}, {"x": np.arange(6, dtype=np.float16).reshape(2, 3), "y": np.zeros(0, np.float32)})
    found = unpack(pack(saved, {"who": "me"}), {"who": "me"})
    assert found.counters == saved.counters
    assert all(np.array_equal(found.arrays[k], v) and found.arrays[k].dtype == v.dtype for k, v in saved.arrays.items())
