"""state_layout.py: streams that move between forms of the step, batch positions and bundles of one student."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.bundle import SHIPPED
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.engines.engine_choice import RUNNABLE_TARGETS
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.equivalence.selftest import read_expected
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.snapshot import MAGIC, SCHEMA
from reuse_distill.runtime.streaming.state_layout import MOVABLE_TARGETS, describe_snapshot

SOURCE = {"name": "toy", "sha256": "a" * 64}


@pytest.fixture(scope="module")
def bundles(toys) -> dict[str, Encoder]:
    """The same toy student in several forms."""
    forms = {
        "rings": toys.Toy(),
        "whole": toys.Toy(whole=True),
        "batch of 3": toys.Toy(batch=3),
        "chunks of 3": toys.Toy(chunk=3),
        "half": toys.Toy(half=True),
    }
    return {name: Encoder.load(toys.build("streaming", toy, source=SOURCE)) for name, toy in forms.items()}


def header(data: bytes) -> dict:
    start = len(MAGIC) + 4
    return json.loads(data[start : start + int.from_bytes(data[len(MAGIC) : start], "little")])


@pytest.mark.parametrize(
    "order", [("rings", "whole", "batch of 3", "rings"), ("whole", "rings", "whole", "batch of 3")]
)
def test_a_stream_moves_between_forms_of_its_step(toys, bundles, order):
    """Rings that have gone round to whole states and back, into other places of a pool: the same features."""
    wave = toys.speech(320 * 70 + 33)
    parts, saved = [], None
    cuts = [0, 7000, 12_345, 17_001, len(wave)]
    for form, first, last in zip(order, cuts[:-1], cuts[1:], strict=True):
        stream = bundles[form].streams(3)[2]
        if saved is not None:
            stream.restore(saved)
        parts += stream.push(wave[first:last])
        saved = stream.snapshot()
    parts += stream.finish()
    found = bundles["rings"].join(parts)
    assert np.abs(found - toys.streaming_reference(toys.Toy(), wave)).max() <= 2e-5


def test_a_stream_goes_on_with_another_chunk_size(toys, bundles):
    wave = toys.speech(320 * 40)
    stream = bundles["rings"].stream()
    parts = stream.push(wave[: 320 * 16 + 80])
    other = bundles["chunks of 3"].stream()
    other.restore(stream.snapshot())
    parts += [*other.push(wave[320 * 16 + 80 :]), *other.finish()]
    expected = toys.streaming_reference(toys.Toy(), wave, [4, 4, 4, 4, 3])
    assert np.abs(bundles["rings"].join(parts) - expected).max() <= 2e-5


def test_states_of_another_type_are_refused(bundles, toys):
    stream = bundles["half"].stream()
    stream.push(toys.speech(9000))
    target = bundles["rings"].stream()
    before = target.snapshot()
    with pytest.raises(RdError, match=r"snapshot: state \w+ is float16 .*, float32 .* is needed"):
        target.restore(stream.snapshot())
    assert target.snapshot() == before


def test_another_student_is_refused(bundles, toys):
    other = Encoder.load(toys.build("streaming", toys.Toy(seed=4), source={**SOURCE, "sha256": "b" * 64}))
    with pytest.raises(RdError, match=r"taken with student 'b+', this stream has 'a+'"):
        bundles["rings"].stream().restore(other.stream().snapshot())


def test_what_a_snapshot_says_of_itself(bundles, toys):
    said = header(bundles["rings"].stream().snapshot())
    assert said["schema"] == SCHEMA and said["identity"]["student"] == "a" * 64
    assert said["taken_by"]["target"] == "onnx" and "chunk_frames" not in said["identity"]


def test_bundles_that_take_each_others_snapshots_have_one_layout(bundles):
    layouts = {name: describe_snapshot(encoder.manifest)["layout"] for name, encoder in bundles.items()}
    assert layouts["rings"] == layouts["whole"] == layouts["batch of 3"] == layouts["chunks of 3"]
    assert layouts["half"] != layouts["rings"]


@pytest.mark.parametrize("change", [{"ring": 10**6}, {"ring": -1}, {"ring keys": 2}, {"ring keys": -1}])
def test_marks_of_rings_that_make_no_sense_are_refused(bundles, toys, change, monkeypatch):
    from reuse_distill.runtime.streaming import steps
    from reuse_distill.runtime.streaming.state_layout import note_rings

    def lie(saved, spec):
        note_rings(saved, spec)
        saved.counters |= change

    monkeypatch.setattr(steps, "note_rings", lie)
    stream = bundles["rings"].stream()
    stream.push(toys.speech(9000))
    with pytest.raises(RdError, match="snapshot: ring"):
        bundles["whole"].stream().restore(stream.snapshot())


def test_a_compact_snapshot_of_the_shipped_student_is_below_1_mb():
    """And the stream continues as it would have, but for the rounding of its caches."""
    encoder = Encoder.load(SHIPPED)
    wave = read_expected(encoder.bundle).wave
    stream, moved = encoder.stream(), encoder.stream()
    stream.push(np.concatenate([wave, wave]))
    exact, compact = stream.snapshot(), stream.snapshot(compact=True)
    assert 100_000 < len(compact) < 1_000_000 and len(compact) < 0.65 * len(exact) < 900_000
    moved.restore(compact)
    ours, theirs = (encoder.join([*one.push(wave), *one.finish()]) for one in (moved, stream))
    assert difference(ours, theirs).mean_cosine > 0.999


def test_a_compact_snapshot_rounds_caches_and_nothing_else(bundles, toys):
    wave = toys.speech(320 * 40)
    stream, moved = bundles["rings"].stream(), bundles["whole"].stream()
    parts = stream.push(wave[:8000])
    moved.restore(stream.snapshot(compact=True))
    found = bundles["rings"].join([*parts, *moved.push(wave[8000:]), *moved.finish()])
    error = np.abs(found - toys.streaming_reference(toys.Toy(), wave)).max()
    assert 2e-5 < error < 5e-3


@pytest.mark.parametrize("halved", [["state nothing"], [7], 3, ["state keys"], None])
def test_names_of_caches_that_make_no_sense_are_refused(bundles, toys, halved):
    import zlib

    stream = bundles["rings"].stream()
    now = stream.snapshot()
    start = len(MAGIC) + 4
    stop = start + int.from_bytes(now[len(MAGIC) : start], "little")
    text = json.dumps({**header(now), "halved": halved}).encode()
    body = MAGIC + len(text).to_bytes(4, "little") + text + now[stop:-4]
    data = body + zlib.crc32(body).to_bytes(4, "little")
    if halved == ["state keys"]:  # float32 as it is: nothing to widen, nothing lost
        stream.restore(data)
        return
    with pytest.raises(RdError, match="snapshot: its header makes no sense"):
        stream.restore(data)


def test_snapshots_that_were_taken_before_states_could_move_are_read(toys, tmp_path: Path):
    """Schema 1: bound to its artifact, arrays as they are, the number of steps for the place."""
    import zlib

    encoder = Encoder.load(toys.streaming)
    wave = toys.speech(9000)
    stream = encoder.stream()
    parts = stream.push(wave[:6000])
    now = stream.snapshot()
    start = len(MAGIC) + 4
    stop = start + int.from_bytes(now[len(MAGIC) : start], "little")
    head, manifest = header(now), encoder.manifest
    counters = {k: v for k, v in head["counters"].items() if not k.startswith("ring")}
    steps = counters.pop("steps")
    del counters["place"], counters["chunk"]
    geometry = {"chunk_frames": 4, "lookahead_frames": 2, "left_frames": 13, "right_frames": 0, "step_frames": 1}
    identity = {"artifact": manifest.files["model.onnx"].sha256, **geometry, "sample_rate_hz": 16_000}
    old = {"schema": 1, "identity": identity, "counters": {**counters, "step": steps}, "arrays": head["arrays"]}
    text = json.dumps(old).encode()
    body = MAGIC + len(text).to_bytes(4, "little") + text + zlib.decompress(now[stop:-4])
    restored = encoder.stream()
    restored.restore(body + zlib.crc32(body).to_bytes(4, "little"))
    found = encoder.join([*parts, *restored.push(wave[6000:]), *restored.finish()])
    assert np.array_equal(found, encoder.extract(wave))
    old["identity"]["artifact"] = "0" * 64
    text = json.dumps(old).encode()
    body = MAGIC + len(text).to_bytes(4, "little") + text + zlib.decompress(now[stop:-4])
    with pytest.raises(RdError, match="taken with artifact"):
        encoder.stream().restore(body + zlib.crc32(body).to_bytes(4, "little"))


def test_arrays_that_unpack_to_too_much_are_refused(toys):
    """A small file must not make the reader allocate: neither by what it says nor by what it holds."""
    import zlib

    encoder = Encoder.load(toys.streaming)
    now = encoder.stream().snapshot()
    packed = zlib.compress(bytes(1 << 28), 9)
    for shape in ([1 << 27], None):
        head = header(now)
        if shape:
            head["arrays"][0][2] = shape
        text = json.dumps(head).encode()
        body = MAGIC + len(text).to_bytes(4, "little") + text + packed
        with pytest.raises(RdError, match=r"snapshot: .*bytes of arrays"):
            encoder.stream().restore(body + zlib.crc32(body).to_bytes(4, "little"))


def test_streams_move_to_every_target_that_the_runtime_runs() -> None:
    assert set(RUNNABLE_TARGETS) <= set(MOVABLE_TARGETS)
