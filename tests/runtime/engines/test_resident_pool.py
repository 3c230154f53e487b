"""runtime/engines/resident_pool.py: states that stay where the provider computes give what states on the host give.

Real ONNX Runtime on the CPU runs the very code that a GPU would run; a recorder of the binding checks what a GPU would
be told.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.stepspec import step_spec
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.engines.ort_backend import OrtBackend
from reuse_distill.runtime.engines.resident_pool import ResidentStatePool
from reuse_distill.runtime.streaming.state_pool import StatePool
from reuse_distill.runtime.streaming.whole_states import appended_states


@pytest.fixture(scope="module")
def whole(toys):
    return toys.build("streaming", toys.Toy(whole=True))


def resident(path):
    """An encoder whose pools keep their states in the engine's memory."""
    encoder = Encoder.load(path, provider="cpu")
    encoder.backend.state_pool = lambda spec, rows: ResidentStatePool(spec, encoder.backend, rows)
    return encoder


def test_a_stream_is_exact(toys, whole):
    wave, encoder = toys.speech(320 * 37 + 200), resident(whole)
    stream = encoder.stream()
    assert isinstance(stream.engine.pool, ResidentStatePool)
    found = encoder.join([*stream.push(wave), *stream.finish()])
    assert np.abs(found - toys.streaming_reference(toys.Toy(), wave)).max() < 2e-5


def test_streams_that_are_not_in_step(toys, whole):
    """Neighbours of which one had been used and reset, and that start at different times: rows change sides."""
    waves = [toys.speech(320 * n + 80, seed=n) for n in (30, 17, 23)]
    encoder = resident(whole)
    streams = encoder.streams(3)
    parts = [[], [], []]
    streams[1].feed(waves[0][:4000])
    encoder.step([streams[1]])
    streams[1].reset()
    for stream, wave in zip(streams, waves, strict=True):
        stream.feed(wave)
        stream.end()
    for group in [streams[:1], streams[:2], *([streams] * 30)]:
        for stream, frames in zip(group, encoder.step(group), strict=True):
            if frames is not None:
                parts[streams.index(stream)].append(frames)
    for wave, mine in zip(waves, parts, strict=True):
        assert np.abs(encoder.join(mine) - toys.streaming_reference(toys.Toy(), wave)).max() < 2e-5


def test_streams_of_their_own_are_gathered(toys, whole):
    """Streams in pools of their own are stepped as one batch: their states travel by way of the host."""
    waves = [toys.speech(320 * 21 + 80, seed=n) for n in (1, 2)]
    encoder = resident(whole)
    streams = [encoder.stream(), encoder.stream()]
    parts = [[], []]
    for stream, wave in zip(streams, waves, strict=True):
        stream.feed(wave)
        stream.end()
    for _ in range(20):
        for mine, frames in zip(parts, encoder.step(streams), strict=True):
            mine += [] if frames is None else [frames]
    for wave, mine in zip(waves, parts, strict=True):
        assert np.abs(encoder.join(mine) - toys.streaming_reference(toys.Toy(), wave)).max() < 2e-5


def test_snapshots_go_to_a_stream_on_the_host_and_back(toys, whole):
    wave = toys.speech(320 * 40 + 80)
    here, there = resident(whole), Encoder.load(whole, provider="cpu")
    first, second, third = here.stream(), there.stream(), here.stream()
    parts = [*first.push(wave[:5000])]
    second.restore(first.snapshot())
    parts += second.push(wave[5000:9000])
    third.restore(second.snapshot())
    parts += [*third.push(wave[9000:]), *third.finish()]
    assert np.abs(here.join(parts) - toys.streaming_reference(toys.Toy(), wave)).max() < 2e-5


def test_only_whole_states_may_stay(toys, whole):
    encoders = [Encoder.load(path, provider="cpu") for path in (toys.streaming, whole)]
    specs = [step_spec(encoder.manifest) for encoder in encoders]
    assert [bool(appended_states(spec)) for spec in specs] == [True, False]
    for encoder, spec, kind in zip(encoders, specs, (StatePool, ResidentStatePool), strict=True):
        backend = SimpleNamespace(memory="cuda", allocate=lambda array: array)
        assert type(OrtBackend.state_pool(backend, spec, 1)) is kind
        assert type(encoder.backend.state_pool(spec, 1)) is StatePool, "the CPU's memory is the host's"


class Recorder:
    """The surface of ONNX Runtime's IOBinding that a step uses, and a session that has one."""

    def __init__(self):
        self.calls = []

    def io_binding(self):
        return self

    def bind_input(self, *words):
        self.calls.append(("in", *words))

    def bind_output(self, *words):
        self.calls.append(("out", *words))

    def synchronize_inputs(self):
        self.calls.append("inputs ready")

    def run_with_iobinding(self, binding):
        assert binding is self
        self.calls.append("run")

    def synchronize_outputs(self):
        self.calls.append("outputs ready")


def test_what_a_gpu_is_told(whole):
    """States are bound by device addresses, which swap from step to step; samples and features by host addresses."""
    encoder = Encoder.load(whole, provider="cpu")
    backend, recorder = encoder.backend, Recorder()
    pool = ResidentStatePool(step_spec(encoder.manifest), backend, 3)
    backend._session, backend.memory = recorder, "cuda"
    bound = []
    for _ in range(2):
        recorder.calls.clear()
        pool.run(1, 3)
        pool.absorb_range(1, 3)
        assert recorder.calls[-3:] == ["inputs ready", "run", "outputs ready"]
        bound.append({call[:2]: call[2:] for call in recorder.calls[:-3]})
    for side, name in (("in", "samples"), ("in", "fresh"), ("out", "features")):
        assert bound[0][side, name][:2] == ("cpu", 0)
    *told, address = bound[0]["in", "keys"]
    assert told == ["cuda", 0, np.float32, [2, 1, 13, 6]]
    assert address in {value.data_ptr() + 13 * 6 * 4 for sides in pool._sides for value in sides}, "from row 1 on"
    assert bound[1]["in", "keys"][-1] == bound[0]["out", "keys_out"][-1]
    assert bound[1]["out", "keys_out"][-1] == bound[0]["in", "keys"][-1]
    recorder.calls.clear()
    pool.run(1, 3)
    assert recorder.calls == ["inputs ready", "run", "outputs ready"], "the third step uses what the first bound"
