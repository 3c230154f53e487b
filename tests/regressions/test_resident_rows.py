"""States in a device's memory: writing one stream's row touches no other, and setting up many is not quadratic."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from reuse_distill.runtime import load
from reuse_distill.runtime.bundle_format.stepspec import step_spec
from reuse_distill.runtime.engines.resident_pool import ResidentStatePool
from reuse_distill.runtime.streaming.steps import StepEngine


class HostMemory:
    """What a pool needs of a backend, with arrays as device memory; counts the bytes that are written."""

    def __init__(self, during_write=lambda: None):
        self.written, self.during_write = 0, during_write

    def allocate(self, array):
        return array.copy()

    def write_row(self, value, row, array):
        self.during_write()
        value[row] = array
        self.written += array.nbytes

    def read_row(self, value, row):
        return value[row].copy()

    def bind_resident(self, host, device, rows):
        (_, _), (before, after) = host, device

        def run():
            for old, new in zip(before.values(), after.values(), strict=True):
                new[rows] = old[rows] + 1

        return run


@pytest.fixture(scope="module")
def spec():
    import dataclasses

    manifest = load().manifest
    states = tuple(dataclasses.replace(state, update="replace") for state in manifest.states)
    return step_spec(dataclasses.replace(manifest, states=states))


def test_opening_many_streams_writes_nothing(spec) -> None:
    memory = HostMemory()
    pool = ResidentStatePool(spec, memory, 64)
    for row in range(64):
        StepEngine(pool, row, None)
    assert memory.written == 0


def test_resetting_a_stream_writes_its_own_row_only(spec) -> None:
    memory = HostMemory()
    pool = ResidentStatePool(spec, memory, 16)
    pool.run(0, 16)
    pool.absorb_range(0, 16)
    pool.reset(3)
    row_bytes = sum(int(np.prod(s.shape[1:])) * np.dtype(s.dtype).itemsize for s in spec.states)
    assert memory.written == row_bytes
    values = [float(pool.read_row(row)[0].max()) for row in range(16)]
    assert values == [1.0] * 3 + [0.0] + [1.0] * 12


def test_a_step_in_another_thread_is_not_lost(spec) -> None:
    """Row 1 is stepped while row 0 is written: its new state stays."""
    started, stepped = threading.Event(), threading.Event()

    def wait_once():
        if not started.is_set():
            started.set()
            stepped.wait(0.2)

    memory = HostMemory(wait_once)
    pool = ResidentStatePool(spec, memory, 2)
    pool.run(0, 1)
    pool.absorb_range(0, 1)

    def step():
        started.wait(5)
        pool.run(1, 2)
        pool.absorb_range(1, 2)
        stepped.set()

    other = threading.Thread(target=step)
    other.start()
    pool.reset(0)
    other.join(10)
    assert float(pool.read_row(1)[0].max()) == 1.0
    assert float(pool.read_row(0)[0].max()) == 0.0
