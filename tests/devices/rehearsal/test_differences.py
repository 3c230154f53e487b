"""Sampled features and kernels of two sides: what is sent, what is refused, what counts as a difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reuse_distill.devices.rehearsal.differences import kernel_difference, output_differences
from reuse_distill.devices.rehearsal.probe import MAX_VALUES, NodeTime, RecordingResult, SideProbe, decoded, sample
from reuse_distill.devices.rehearsal.probe_run import read_profile
from reuse_distill.runtime.errors import RdError

RNG = np.random.default_rng(0)


def probe(array, *, output="features"):
    return SideProbe("cpu", True, "passed", (RecordingResult("speech", (sample(output, array),)),), ())


def test_a_sample_comes_back_bit_for_bit():
    for array in (RNG.standard_normal((300, 8)).astype(np.float32), RNG.integers(0, 99, (40, 1)).astype(np.int64)):
        assert np.array_equal(decoded(sample("x", array), where="here"), array)


def test_a_long_output_is_sampled_evenly_and_hashed_whole():
    array = np.arange(2 * 1000 * 200, dtype=np.float32).reshape(2, 1000, 200)
    one = sample("x", array)
    assert one.frames == 1000 and one.shape == (2, MAX_VALUES // 400, 200)
    part = decoded(one, where="here")
    assert np.array_equal(part[:, 0], array[:, 0]) and np.array_equal(part[:, -1], array[:, -1])
    changed = array.copy()
    changed[0, 1, 0] += 1.0  # a frame that is not in the sample
    assert sample("x", changed).sha256 != one.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "object"}, "not one that is sent"),
        ({"shape": (4, 9)}, "needs 144"),
        ({"shape": (10**6, 10**6)}, "too much data"),
        ({"shape": (-4, -8)}, "not one that is sent"),
        ({"data": ("A" * 4000,) * 9}, "too much data"),
        ({"data": ("!!!!",)}, "not base64"),
    ],
)
def test_damaged_samples_are_refused(change, message):
    one = replace(sample("x", np.ones((4, 8), np.float32)), **change)
    with pytest.raises(RdError, match=message):
        decoded(one, where="a device")


def test_features_are_identical_near_or_unusable():
    array = RNG.standard_normal((50, 8)).astype(np.float32)
    (same,) = output_differences(probe(array), probe(array))
    assert same.identical and same.relative == 0
    (near,) = output_differences(probe(array), probe(array * np.float32(1.03)))
    assert not near.identical and near.relative == pytest.approx(0.03, rel=1e-3) and near.mean_cosine > 0.9999
    broken = array.copy()
    broken[3, 3] = np.nan
    (unusable,) = output_differences(probe(array), probe(broken))
    assert unusable.relative == np.inf and "not finite" in unusable.defect
    (shorter,) = output_differences(probe(array), probe(array[:49]))
    assert shorter.relative == np.inf and "of 49 frames after" in shorter.defect
    (gone,) = output_differences(probe(array), probe(array, output="other"))
    assert gone.relative == np.inf and "missing after" in gone.defect


def test_units_differ_by_the_share_that_changed():
    units = np.arange(100, dtype=np.int64)[:, None]
    changed = units.copy()
    changed[:7] += 1
    (one,) = output_differences(probe(units), probe(changed))
    assert one.relative == pytest.approx(0.07)


def event(name, operator, types, us, provider="CPUExecutionProvider"):
    inputs = [{kind: [1]} for kind in types]
    args = {"op_name": operator, "provider": provider, "input_type_shape": inputs}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": args}


def test_a_profile_of_onnxruntime_is_read_without_its_warm_up():
    events = [{"cat": "Session", "name": "model_run"}, {"cat": "Node", "name": "a_fence_after", "args": {}}]
    for us in (900, 900, 900, 10, 12, 11):
        events += [event("a", "MatMul", ["float"], us), event("b", "QLinearConv", ["uint8", "float", "int8"], us)]
    first, second = read_profile(events)
    assert first == NodeTime("a", "MatMul", "cpu", "float32", 11.0)
    assert (second.types, second.microseconds) == ("uint8 float32 int8", 11.0)


def test_a_precision_that_fell_back_is_seen_by_operator_and_by_node():
    before = [
        NodeTime("m", "QLinearMatMul", "cpu", "uint8 int8 float32", 5.0),
        NodeTime("s", "Softmax", "cpu", "float32", 1),
    ]
    after = [NodeTime("m", "MatMul", "cpu", "float32", 20.0), NodeTime("s", "Softmax", "cuda", "float32", 1)]
    kernels = kernel_difference(before, after)
    assert kernels.precision_from == {"int8": 1} and kernels.precision_to == {"float32": 1}
    assert kernels.placement_to == {"cpu": 1, "cuda": 1}
    assert kernels.moved == (
        "m: QLinearMatMul in int8 on cpu, now MatMul in float32 on cpu",
        "s: Softmax in float32 on cpu, now Softmax in float32 on cuda",
    )
    assert [(one.operator, one.count_from, one.count_to) for one in kernels.operators[:2]] == [
        ("MatMul", 0, 1),
        ("QLinearMatMul", 1, 0),
    ]
