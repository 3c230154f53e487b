"""Operations that move values and compute nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from reuse_distill.export.targets.coreml.evaluator.registry import Arguments, operation


@operation("identity")
def identity(a: Arguments) -> Any:
    return a["x"]


@operation("transpose")
def transpose(a: Arguments) -> Any:
    return np.transpose(a["x"], tuple(int(axis) for axis in a["perm"]))


@operation("reshape")
def reshape(a: Arguments) -> Any:
    """A size of 0 keeps the axis of the input that stands at the same place."""
    sizes = [int(s) or a["x"].shape[i] for i, s in enumerate(a["shape"])]
    return a["x"].reshape(sizes)


@operation("expand_dims")
def expand_dims(a: Arguments) -> Any:
    return np.expand_dims(a["x"], tuple(int(axis) for axis in a["axes"]))


@operation("squeeze")
def squeeze(a: Arguments) -> Any:
    return np.squeeze(a["x"], tuple(int(axis) for axis in a["axes"]) if "axes" in a else None)


@operation("concat")
def concat(a: Arguments) -> Any:
    if bool(a.get("interleave", False)):
        raise NotImplementedError("concat interleave")
    return np.concatenate([np.atleast_1d(value) for value in a["values"]], axis=int(a["axis"]))  # sizes are scalars


@operation("stack")
def stack(a: Arguments) -> Any:
    return np.stack(a["values"], axis=int(a["axis"]))


@operation("tile")
def tile(a: Arguments) -> Any:
    return np.tile(a["x"], tuple(int(count) for count in a["reps"]))


@operation("split")
def split(a: Arguments) -> Any:
    axis = int(a["axis"])
    if "split_sizes" in a:
        return tuple(np.split(a["x"], np.cumsum(a["split_sizes"])[:-1], axis=axis))
    return tuple(np.split(a["x"], int(a["num_splits"]), axis=axis))


@operation("slice_by_index")
def slice_by_index(a: Arguments) -> Any:
    rank = a["x"].ndim
    masks = {key: a.get(key, np.zeros(rank, bool)) for key in ("begin_mask", "end_mask", "squeeze_mask")}
    strides = a.get("stride", np.ones(rank, np.int32))
    index: list[Any] = []
    for axis in range(rank):
        first, last, step = int(a["begin"][axis]), int(a["end"][axis]), int(strides[axis])
        if masks["squeeze_mask"][axis]:
            index.append(first)
        else:
            first_or_none = None if masks["begin_mask"][axis] else first
            index.append(slice(first_or_none, None if masks["end_mask"][axis] else last, step))
    return a["x"][tuple(index)]


@operation("shape")
def shape(a: Arguments) -> Any:
    return np.array(a["x"].shape, np.int32)


@operation("gather")
def gather(a: Arguments) -> Any:
    if int(a.get("batch_dims", 0)):
        raise NotImplementedError("gather batch_dims")
    return np.take(a["x"], a["indices"].astype(np.int64), axis=int(a.get("axis", 0)))


@operation("range_1d")
def range_1d(a: Arguments) -> Any:
    return np.arange(int(a["start"]), int(a["end"]), int(a["step"]))


@operation("fill")
def fill(a: Arguments) -> Any:
    return np.full(tuple(int(size) for size in a["shape"]), a["value"])


@operation("fill_like")
def fill_like(a: Arguments) -> Any:
    return np.full_like(a["ref_tensor"], a["value"])
