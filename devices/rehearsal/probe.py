"""What one side of a rehearsal reports beside its latencies: features of fixed recordings and the nodes that ran.

Everything here comes back from a device and is untrusted: arrays are bounded before they are decoded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import from_dict

MAX_VALUES = 120_000  # of one array, so that a report stays far below what is read of a device
MAX_ARRAYS, MAX_NODES, MAX_DIMENSIONS = 64, 20_000, 4
LINE_BYTES = 1500  # of raw data; as base64 just within the texts that are read of a device
DTYPES = ("float32", "int32", "int64")


@dataclass(frozen=True)
class SampledArray:
    """Evenly spaced frames of an output, (..., F, W) with F cut down to what fits, and the hash of all of it."""

    output: str
    dtype: str
    shape: tuple[int, ...]  # of the sample
    frames: int  # of the whole output
    sha256: str  # of the whole output
    data: tuple[str, ...]  # base64, little-endian, C order


@dataclass(frozen=True)
class RecordingResult:
    """What the bundle made of one recording."""

    recording: str
    outputs: tuple[SampledArray, ...]


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph as the engine ran it after its own optimisations."""

    name: str
    operator: str
    provider: str
    types: str  # of its inputs, as in `float32 int8`
    microseconds: float  # median of the profiled steps


@dataclass(frozen=True)
class SideProbe:
    """One side."""

    provider: str
    selftest_passed: bool | None  # None: the bundle states no bound
    selftest: str
    results: tuple[RecordingResult, ...]
    nodes: tuple[NodeTime, ...]
    nodes_unmeasured: str = ""  # why there are none


def sample(output: str, array: np.ndarray) -> SampledArray:
    """The part of ``array`` (..., F, W) that is compared. Raises RdError for an array wider than can be sent."""
    kind = array.dtype.name if array.dtype.name in DTYPES else "float32"
    whole = np.ascontiguousarray(array.astype(kind, copy=False))
    frames = whole.shape[-2]
    width = int(np.prod(whole.shape[:-2], dtype=np.int64)) * whole.shape[-1]
    kept = min(frames, MAX_VALUES // max(1, width))
    if frames and not kept:
        raise RdError(f"output {output}: {width} values a frame, at most {MAX_VALUES} are compared")
    index = np.linspace(0, frames - 1, kept).round().astype(np.int64) if kept else np.zeros(0, np.int64)
    part = np.ascontiguousarray(whole[..., index, :])
    raw = part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes()
    lines = tuple(base64.b64encode(raw[at : at + LINE_BYTES]).decode() for at in range(0, len(raw), LINE_BYTES))
    digest = hashlib.sha256(whole.tobytes()).hexdigest()
    return SampledArray(output, kind, tuple(part.shape), frames, digest, lines)


def decoded(one: SampledArray, *, where: str) -> np.ndarray:
    """The array of a sample. Raises RdError where shape, type and data do not fit."""
    if one.dtype not in DTYPES or not 2 <= len(one.shape) <= MAX_DIMENSIONS or min(one.shape) < 0:
        raise RdError(f"{where}: output {one.output} is {one.dtype} {one.shape}, not one that is sent")
    dtype = np.dtype(one.dtype).newbyteorder("<")
    size_bytes = math.prod(one.shape) * dtype.itemsize
    if math.prod(one.shape) > MAX_VALUES or sum(map(len, one.data)) > 2 * size_bytes + 8:
        raise RdError(f"{where}: output {one.output} of shape {one.shape} with too much data")
    try:
        raw = b"".join(base64.b64decode(line, validate=True) for line in one.data)
    except (binascii.Error, ValueError):
        raise RdError(f"{where}: output {one.output} is not base64") from None
    if len(raw) != size_bytes:
        raise RdError(f"{where}: output {one.output} has {len(raw)} bytes, shape {one.shape} needs {size_bytes}")
    return np.frombuffer(raw, dtype).reshape(one.shape).astype(one.dtype)


def probe_from(details: dict[str, Any], *, where: str) -> SideProbe:
    """The probe in the details of a measurement. Raises RdError where there is none or it is not usable."""
    if "probe" not in details:
        raise RdError(f"{where}: the answer holds no probe", hint="is this version of rd-latency on both sides?")
    probe = from_dict(SideProbe, details["probe"], where=f"{where}: probe")
    arrays = sum(len(result.outputs) for result in probe.results)
    if arrays > MAX_ARRAYS or len(probe.nodes) > MAX_NODES:
        raise RdError(f"{where}: {arrays} outputs and {len(probe.nodes)} nodes, more than any bundle has")
    return probe
