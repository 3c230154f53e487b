"""Targets made once: a teacher's layers for a set of recordings, as float16 shards on disk, and how they are read.

DIR/targets.json          teacher, layers, shards with their SHA-256, where every utterance's frames lie
DIR/shard-00000.npy       (frames, N, C) float16: layers as the teacher has them, piece after piece
DIR/position_mean.npy     (N, P, C) float32: the mean of every layer at each position of the window (Whisper only)
DIR/final_norm.npy        (2, C) weight and bias of the teacher's norm after its last layer (Whisper only)

Whisper adds a position to every frame of its 30 s window, and its layers carry it on: of the same recording at two
positions they have little in common. A student that streams cannot know the position, so what the layers have at a
position on average over all windows is taken out, and the mean over all positions put in its place.

Shapes: N stored layers, F frames, C channels, P positions of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reuse_distill.distill.data.utterances import Utterance
from reuse_distill.distill.files import read_json
from reuse_distill.distill.teachers.protocol import TeacherInfo
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import from_dict

INDEX, MEAN, NORM, VERSION = "targets.json", "position_mean.npy", "final_norm.npy", 1
AGAIN = "make them again with rd-distill targets, into another folder"


@dataclass(frozen=True)
class StoredPiece:
    """``frames`` frames of an utterance from its frame ``start`` on: at ``row`` of ``shard``, once at ``position``."""

    frames: int
    position: int
    shard: int
    row: int
    start: int = 0


@dataclass(frozen=True)
class Shard:
    """A file of frames."""

    sha256: str
    frames: int


@dataclass(frozen=True)
class TargetIndex:
    """targets.json. ``utterances``: the pieces of each, one after the other, by ``utterance_key``."""

    version: int
    teacher: TeacherInfo
    layers: tuple[int, ...]
    data: dict[str, Any]
    complete: bool = False
    shards: tuple[Shard, ...] = ()
    utterances: dict[str, tuple[StoredPiece, ...]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # the other files and their sha256


def utterance_key(utterance: Utterance) -> str:
    """What identifies an utterance wherever its file lies: the file's contents, and which piece of it."""
    if utterance.shard:
        name = f"{utterance.shard.rpartition('/')[2]}/{utterance.path.name}"
    else:
        name = hashlib.sha256(utterance.path.read_bytes()).hexdigest()[:32]
    return name if utterance.whole else f"{name}:{utterance.start_s:.3f}:{utterance.seconds:.3f}"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.npy"


def read_index(folder: Path) -> TargetIndex:
    """targets.json of ``folder``. Raises RdError where it is missing, damaged or of another version."""
    path = folder / INDEX
    if not path.is_file():
        raise RdError(f"{folder} has no {INDEX}: there are no targets", hint="rd-distill targets makes them")
    data = read_json(path)
    if not isinstance(data, dict) or data.get("version") != VERSION:
        version = data.get("version") if isinstance(data, dict) else None
        raise RdError(f"{path} has version {version!r}, this program reads {VERSION}", hint=AGAIN)
    return from_dict(TargetIndex, data, where=str(path))


class TargetStore:
    """Targets of a folder, verified when opened: ``frames`` of an utterance, as the losses compare them.

    layers: the teacher's layers to give, from 1; all that are stored where None.
    Raises RdError for targets that are incomplete, damaged, or lack a layer.
    """

    def __init__(self, folder: Path, *, layers: Sequence[int] | None = None, target_norm: str = "none") -> None:
        self.folder, self.index, self.target_norm = folder, read_index(folder), target_norm
        if not self.index.complete:
            raise RdError(
                f"{folder} is incomplete: {len(self.index.shards)} shards are written",
                hint="run the same rd-distill targets command again: it continues where it stopped",
            )
        self.info = self.index.teacher
        self.layers = tuple(self.index.layers if layers is None else layers)
        missing = [layer for layer in self.layers if layer not in self.index.layers]
        if missing:
            raise RdError(
                f"{folder} holds layers {list(self.index.layers)} of {self.info.name}, the student needs {missing} too",
                hint="make targets with --layers that has them, or leave --layers out",
            )
        self._rows = [self.index.layers.index(layer) for layer in self.layers]
        self._verify()
        self._shards = [self._open(number, shard) for number, shard in enumerate(self.index.shards)]
        mean, self._norm = self._load(MEAN), self._load(NORM)
        self._position = None if mean is None else (mean - mean.mean(1, keepdims=True))[self._rows]
        self._check_pieces()

    def keys(self, utterances: Sequence[Utterance]) -> list[str]:
        """The key of each; raises RdError for those that there are no targets of."""
        keys = [utterance_key(utterance) for utterance in utterances]
        unknown = [u for u, key in zip(utterances, keys, strict=True) if key not in self.index.utterances]
        if unknown:
            names = ", ".join(str(u.path) for u in unknown[:3])
            raise RdError(
                f"{self.folder} has no targets of {len(unknown)} of {len(keys)} utterances: {names}",
                hint="the data changed since the targets were made, or is other data: " + AGAIN,
            )
        return keys

    def count(self, key: str) -> int:
        """Frames of an utterance."""
        return sum(piece.frames for piece in self.index.utterances[key])

    def frames(self, key: str, start: int, count: int) -> NDArray[np.float32]:
        """(N, count, C) from frame ``start`` of an utterance on: position taken out, the last layer normed."""
        parts = []
        for piece in sorted(self.index.utterances[key], key=lambda piece: piece.start):
            first, last = max(start - piece.start, 0), min(start + count - piece.start, piece.frames)
            if first < last:
                parts.append(self._part(piece, first, last))
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def as_stored(self, key: str) -> NDArray[np.float32]:
        """(all stored layers, F, C) of an utterance as the shards hold them."""
        pieces = sorted(self.index.utterances[key], key=lambda piece: piece.start)
        rows = [self._shards[piece.shard][piece.row : piece.row + piece.frames] for piece in pieces]
        return np.concatenate(rows).transpose(1, 0, 2).astype(np.float32)

    def _part(self, piece: StoredPiece, first: int, last: int) -> NDArray[np.float32]:
        rows = self._shards[piece.shard][piece.row + first : piece.row + last]
        layers = rows.transpose(1, 0, 2)[self._rows].astype(np.float32)
        if self._position is not None:
            layers -= self._position[:, piece.position + first : piece.position + last]
        final = self._norm is not None and self.layers[-1] == self.info.layers
        if self.target_norm == "layer":
            plain = slice(len(layers) - 1 if final else None)
            layers[plain] = layer_norm(layers[plain])
        if final and self._norm is not None:
            layers[-1] = layer_norm(layers[-1]) * self._norm[0] + self._norm[1]
        return layers

    def _open(self, number: int, shard: Shard) -> NDArray[np.float16]:
        path = self.folder / shard_name(number)
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RdError(f"{path} cannot be read: {error}", hint=AGAIN) from None
        expected = (shard.frames, len(self.index.layers), self.info.width)
        if rows.shape != expected or rows.dtype != np.float16:
            raise RdError(f"{path} holds {rows.dtype} {list(rows.shape)}, not float16 {list(expected)}", hint=AGAIN)
        return rows

    def _load(self, name: str) -> NDArray[np.float32] | None:
        if name not in self.index.files:
            return None
        try:
            return np.load(self.folder / name, allow_pickle=False).astype(np.float32)
        except (OSError, ValueError) as error:
            raise RdError(f"{self.folder / name} cannot be read: {error}", hint=AGAIN) from None

    def _verify(self) -> None:
        expected = {shard_name(n): shard.sha256 for n, shard in enumerate(self.index.shards)} | self.index.files
        for name, sha256 in expected.items():
            path = self.folder / name
            if not path.is_file():
                raise RdError(f"{path} is missing", hint=AGAIN)
            if file_sha256(path) != sha256:
                raise RdError(f"{path} is damaged: its SHA-256 is not the one in {INDEX}", hint=AGAIN)

    def _check_pieces(self) -> None:
        positions = None if self._position is None else self._position.shape[1]
        for key, pieces in self.index.utterances.items():
            for piece in pieces:
                known = 0 <= piece.shard < len(self.index.shards)
                if not known or not 0 <= piece.row <= self.index.shards[piece.shard].frames - piece.frames:
                    raise RdError(f"{self.folder / INDEX}: utterance {key} is outside its shard", hint=AGAIN)
                if positions is not None and not 0 <= piece.position <= positions - piece.frames:
                    raise RdError(f"{self.folder / INDEX}: utterance {key} is outside its window", hint=AGAIN)


def layer_norm(x: NDArray[np.float32], eps: float = 1e-5) -> NDArray[np.float32]:
    """Zero mean and unit variance over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(eps))
