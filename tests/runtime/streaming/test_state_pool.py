"""runtime/streaming/state_pool.py: rings and shifting rows against lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reuse_distill.runtime.bundle_format.stepspec import step_spec
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.engines.backend import Backend
from reuse_distill.runtime.streaming.state_pool import StatePool, shift_in, write_ring


@given(st.integers(1, 20), st.integers(1, 25), st.integers(1, 12))
def test_a_ring_holds_the_newest_rows(slots, step, turns):
    ring, cursor, history = np.zeros((1, slots)), 0, [0.0] * slots
    for turn in range(turns):
        news = np.arange(step, dtype=float)[None] + 100 * (turn + 1)
        write_ring(ring, news, cursor)
        cursor = (cursor + step) % slots
        history += news[0].tolist()
        assert sorted(ring[0].tolist()) == sorted(history[-slots:])
    if step < slots:
        assert np.roll(ring[0], -cursor).tolist() == history[-slots:]  # the oldest stands at the cursor


@given(st.integers(1, 20), st.integers(1, 25), st.integers(1, 12), st.integers(1, 3))
def test_shifting_keeps_the_order(rows, step, turns, batch):
    state, history = np.zeros((batch, rows, 2)), [0.0] * rows
    for turn in range(turns):
        news = np.arange(step, dtype=float) + 100 * (turn + 1)
        shift_in(state, np.broadcast_to(news[None, :, None], (batch, step, 2)))
        history += news.tolist()
        assert (state == np.array(history[-rows:])[None, :, None]).all()


def test_no_output_shares_memory_with_an_input(toys):
    """In-place updates are only right if a step never writes what it still reads."""
    encoder = Encoder.load(toys.streaming)
    pool = StatePool(step_spec(encoder.manifest), encoder.backend, 3)
    outputs = [pool.outputs["features"], *pool.buffers().news]
    for source in (pool.samples, pool.fresh, *pool.states):
        assert not any(np.shares_memory(source, target) for target in outputs)


def test_bound_buffers_are_the_pool(toys):
    """Running twice with other samples in the same place gives other features in the same place."""
    encoder = Encoder.load(toys.streaming)
    pool = StatePool(step_spec(encoder.manifest), encoder.backend, 2)
    pool.fresh[:] = 1
    pool.samples[:] = toys.speech(pool.samples.size).reshape(pool.samples.shape)
    pool.run(0, 2)
    first = pool.outputs["features"].copy()
    pool.samples[1] = 0
    pool.run(0, 2)
    assert np.array_equal(pool.outputs["features"][0], first[0])
    assert not np.array_equal(pool.outputs["features"][1], first[1])


def test_reset_touches_one_row(toys):
    encoder = Encoder.load(toys.streaming)
    pool = StatePool(step_spec(encoder.manifest), encoder.backend, 3)
    for state in pool.states:
        state[:] = 1
    pool.cursor[:] = 2
    pool.reset(1)
    assert all((state[1] == 0).all() and (state[[0, 2]] == 1).all() for state in pool.states)
    assert pool.cursor.tolist() == [2, 0, 2]


@pytest.mark.parametrize("name", ["run", "bind", "inputs", "outputs", "provider", "placement", "versions"])
def test_the_backend_keeps_its_protocol(toys, name):
    assert hasattr(Backend, name)
    assert hasattr(Encoder.load(toys.offline).backend, name)
