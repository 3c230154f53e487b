"""States in the requests of a stateful model of three operations: rows of a batch, several batches, snapshots."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest, State, Tensor
from reuse_distill.runtime.bundle_format.stepspec import step_spec
from reuse_distill.runtime.engines.engine_choice import open_backend
from reuse_distill.runtime.engines.openvino.held_states import RequestStatePool
from reuse_distill.runtime.engines.openvino.openvino_device import load_openvino
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.runtime.streaming.snapshot import Saved
from reuse_distill.runtime.streaming.state_pool import StatePool, open_pool

CHUNK, BATCH = 2, 2
SAMPLES = samples_for(CHUNK)


@pytest.fixture
def manifest() -> Manifest:
    """A step of two streams whose feature is the sum of all samples of the stream so far."""
    total = State("total", "total", "total_new", "float32", (BATCH, 1), "replace", 1, True, "position")
    return Manifest(
        kind="streaming",
        target="openvino",
        precision="fp32",
        status="built",
        artifact="model.xml",
        features="hidden",
        layers=(1,),
        feature_width=1,
        inputs=(Tensor("samples", "float32", (BATCH, SAMPLES)), Tensor("fresh", "float32", (BATCH, CHUNK))),
        outputs=(Tensor("features", "float32", (BATCH, 1, CHUNK, 1)),),
        states=(total,),
        geometry=Geometry(CHUNK),
        files={},
        source={},
        tools={},
        device={"inference_precision": "f32", "states": "engine"},
    )


@pytest.fixture
def backend(manifest: Manifest, tmp_path: Path) -> Any:
    try:
        openvino = load_openvino()
    except RdError as error:
        pytest.skip(str(error))
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    inputs = {
        name: ops.parameter(list(shape), np.float32, name=name)
        for name, shape in (("samples", (BATCH, SAMPLES)), ("fresh", (BATCH, CHUNK)), ("total", (BATCH, 1)))
    }
    for name, one in inputs.items():
        one.output(0).set_names({name})
    after = ops.add(inputs["total"], ops.reduce_sum(inputs["samples"], ops.constant(np.int64(1)), True))
    after.output(0).set_names({"total_new"})
    rows = ops.multiply(
        ops.unsqueeze(after, ops.constant(np.int64(2))), ops.unsqueeze(inputs["fresh"], ops.constant(np.int64(1)))
    )
    features = ops.unsqueeze(rows, ops.constant(np.int64(3)))
    features.output(0).set_names({"features"})
    model = openvino.Model([features, after], list(inputs.values()))
    apply_make_stateful_transformation(model, {"total": "total_new"})
    openvino.save_model(model, str(tmp_path / "model.xml"), compress_to_fp16=False)
    return open_backend(Bundle(tmp_path, manifest), provider="cpu", threads=1)


@pytest.fixture
def pool(backend: Any, manifest: Manifest) -> StatePool:
    """Five streams: three requests, of which the last has a row to spare."""
    pool = open_pool(step_spec(manifest), backend, 5)
    assert isinstance(pool, RequestStatePool) and pool.rows == 6
    pool.fresh[:] = 1
    return pool


def stepped(pool: StatePool, first: int, *values: float) -> list[float]:
    """One step of the batch from row ``first`` on, whose samples add up to ``values``; the features."""
    for row, value in enumerate(values, start=first):
        pool.samples[row] = 0
        pool.samples[row, 0] = value
    pool.run(first, first + BATCH)
    pool.absorb_range(first, first + BATCH)
    return [float(pool.buffers().row_outputs(row)["features"][0, -1, 0]) for row in range(first, first + BATCH)]


def test_every_batch_has_its_own_sums(pool: StatePool) -> None:
    assert stepped(pool, 0, 1, 2) == [1, 2]
    assert stepped(pool, 2, 10, 20) == [10, 20]
    assert stepped(pool, 0, 3, 4) == [4, 6]
    assert stepped(pool, 2, 1, 1) == [11, 21]
    assert [pool.starts_batch(row) for row in range(4)] == [True, False, True, False]


def test_one_row_begins_again(pool: StatePool) -> None:
    stepped(pool, 0, 1, 2)
    pool.reset(1)
    assert stepped(pool, 0, 1, 1) == [2, 1]


def test_a_row_steps_in_another_pool_and_comes_back(pool: StatePool, backend: Any, manifest: Manifest) -> None:
    """As the batcher does it where not all rows of a batch are ready."""
    stepped(pool, 0, 1, 2)
    scratch = open_pool(step_spec(manifest), backend, BATCH)
    scratch.fresh[:] = 1
    scratch.copy_states(0, pool, 1)
    assert stepped(scratch, 0, 5, 0)[0] == 7
    pool.absorb(1, scratch, 0)
    assert stepped(pool, 0, 1, 1) == [2, 8]
    assert stepped(scratch, 0, 0, 0)[0] == 7  # a copy


def test_rows_are_saved_and_loaded(pool: StatePool) -> None:
    stepped(pool, 0, 1, 2)
    saved = Saved()
    pool.save(1, saved)
    stepped(pool, 0, 1, 1)
    assert saved.arrays["state total"].tolist() == [2]
    pool.check(saved)
    pool.load(4, saved)
    assert stepped(pool, 4, 1, 0) == [3, 0]
    wrong = Saved({"cursor": 0}, {"state total": np.zeros(2, np.float32)})
    with pytest.raises(RdError, match="state total is float32"):
        pool.check(wrong)
    with pytest.raises(RdError, match="cursor is 1"):
        pool.check(Saved({"cursor": 1}, saved.arrays))


def test_a_variable_of_another_size_is_refused(backend: Any, manifest: Manifest) -> None:
    spec = step_spec(manifest)
    wider = dataclasses.replace(spec, states=(dataclasses.replace(spec.states[0], shape=(BATCH, 3)),))
    with pytest.raises(RdError, match=r"state total: the model's variable is \[2, 1\], the manifest says \[2, 3\]"):
        open_pool(wider, backend, 2)
    with pytest.raises(RdError, match="a fixed batch and steps of one size"):
        open_pool(dataclasses.replace(spec, batch=None), backend, 2)


def test_a_call_with_the_state_given_keeps_nothing(backend: Any) -> None:
    inputs = {
        "samples": np.ones((BATCH, SAMPLES), np.float32),
        "fresh": np.ones((BATCH, CHUNK), np.float32),
        "total": np.array([[1], [2]], np.float32),
    }
    for _ in range(2):
        found = backend.run(inputs)
        assert found["total_new"].reshape(-1).tolist() == [SAMPLES + 1, SAMPLES + 2]
