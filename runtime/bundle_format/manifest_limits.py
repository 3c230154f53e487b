"""What a manifest may say before anything is allocated or opened by it: sizes, names and types within sane bounds."""

from __future__ import annotations

import re
from collections.abc import Iterable

from reuse_distill.runtime.bundle_format.manifest import FileEntry, Manifest, State
from reuse_distill.runtime.errors import RdError

MOST_FRAMES = 16_384  # of chunk and contexts: five and a half minutes
MOST_STEP_FRAMES = 64
MOST_CHOICES = 64  # chunk sizes of one bundle
MOST_WIDTH = 65_536
MOST_LAYERS = 1_024
MOST_TENSORS = 4_096
MOST_AXES = 8
MOST_AXIS = 2**31 - 1
MOST_STATE_BYTES = 1 << 30  # of one stream
MOST_NAME_BYTES = 1_024
DTYPES = ("float32", "float16", "float64", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_manifest(manifest: Manifest) -> None:
    """Raise RdError for a value that no bundle has: geometry, widths, shapes, sizes, names and hashes of files."""
    g = manifest.geometry
    for name in ("chunk_frames", "lookahead_frames", "left_frames", "right_frames"):
        _within(f"geometry.{name}", getattr(g, name), 0, MOST_FRAMES)
    _within("geometry.step_frames", g.step_frames, 1, MOST_STEP_FRAMES)
    _check_choices(manifest)
    _within("feature_width", manifest.feature_width, 1 if manifest.layers else 0, MOST_WIDTH)
    _within("number of layers", len(manifest.layers), 0, MOST_LAYERS)
    for layer in manifest.layers:
        _within("layers", layer, 1, MOST_LAYERS)
    tensors = [*manifest.inputs, *manifest.outputs]
    _within("number of inputs, outputs and states", len(tensors) + len(manifest.states), 1, MOST_TENSORS)
    for tensor in tensors:
        _check_tensor(tensor.name, tensor.dtype, tensor.shape)
    for state in manifest.states:
        _check_state(state)
    _check_distinct("inputs", [*(t.name for t in manifest.inputs), *(s.input for s in manifest.states)])
    _check_distinct("outputs", [*(t.name for t in manifest.outputs), *(s.output for s in manifest.states)])
    _within("bytes of a stream's states", sum(state.row_bytes for state in manifest.states), 0, MOST_STATE_BYTES)
    for name, entry in manifest.files.items():
        _check_file(name, entry)
    for name in ("student", "finish"):
        value = manifest.source.get(name)
        if value is not None and not isinstance(value, dict if name == "student" else str):
            raise RdError(f"manifest: source.{name} is {type(value).__name__}")


def _check_choices(manifest: Manifest) -> None:
    choices, usual = manifest.chunk_choices, manifest.geometry.chunk_frames
    if not choices:
        return
    _within("number of chunk_choices", len(choices), 1, MOST_CHOICES)
    for chunk in choices:
        _within("chunk_choices", chunk, 1, MOST_FRAMES)
    if list(choices) != sorted(set(choices)) or usual not in choices or manifest.kind != "streaming":
        raise RdError(
            f"manifest: chunk_choices {list(choices)} of a {manifest.kind} bundle: a streaming bundle lists each size "
            f"once, smallest first, and its usual one ({usual}) among them"
        )


def _check_tensor(name: str, dtype: str, shape: tuple[int | str, ...]) -> None:
    if dtype not in DTYPES:
        raise RdError(f"manifest: {name} is of type {dtype!r}, known: {', '.join(DTYPES)}")
    if not 1 <= len(shape) <= MOST_AXES:
        raise RdError(f"manifest: {name} has {len(shape)} axes, 1 to {MOST_AXES} are possible")
    for axis in shape:
        if isinstance(axis, int):
            _within(f"an axis of {name}", axis, 1, MOST_AXIS)


def _check_state(state: State) -> None:
    _check_tensor(f"state {state.name}", state.dtype, state.shape)
    if state.dtype == "bfloat16":
        raise RdError(f"manifest: state {state.name} is bfloat16, which NumPy lacks")
    if not 1 <= state.axis < len(state.shape):
        raise RdError(f"manifest: state {state.name} of shape {state.shape} has no axis {state.axis} after the batch")
    if not all(isinstance(d, int) for d in state.shape[1:]):
        raise RdError(f"manifest: state {state.name} of shape {state.shape}: whole numbers above 0 after the batch")


def _check_file(name: str, entry: FileEntry) -> None:
    if not name or len(name.encode()) > MOST_NAME_BYTES or any(ord(c) < 32 or c == "\\" for c in name):
        raise RdError(f"manifest: {name[:80]!r} is not a file name")
    if not _SHA256.fullmatch(entry.sha256):
        raise RdError(f"manifest: sha256 of {name} is {entry.sha256[:80]!r}")
    _within(f"size_bytes of {name}", entry.size_bytes, 0, 2**50)


def _check_distinct(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RdError(f"manifest: two {what} are called {name!r}")
        seen.add(name)


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise RdError(f"manifest: {name} is {value}, outside {least} to {most}")
