"""Make the targets of a set of recordings: ``rd-distill targets``. Resumable, hashed, its size stated beforehand."""

from __future__ import annotations

import dataclasses
import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import Scan, Utterance, fingerprint
from reuse_distill.distill.files import FolderLock, check_writable, write_atomically, write_json
from reuse_distill.distill.teachers.protocol import Teacher
from reuse_distill.distill.teachers.stored import (
    INDEX,
    MEAN,
    NORM,
    VERSION,
    Shard,
    StoredPiece,
    TargetIndex,
    read_index,
    shard_name,
    utterance_key,
)
from reuse_distill.distill.teachers.whisper_teacher import PlacedMel, WhisperTeacher
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.runtime.untrusted_input import to_dict

GAP_FRAMES = 25  # half a second of silence after a recording that shares a window
PIECE_FRAMES = 1500  # the longest piece of a recording that a teacher hears at once
SHARD_WINDOWS = 16
BYTES = 2  # of a float16
SPARE_BYTES = 1 << 28  # left free on the disk

Report = Callable[[str], None]


@dataclass(frozen=True)
class Piece:
    """``frames`` frames of an utterance from its frame ``start`` on, at ``position`` of the window."""

    utterance: int
    start: int
    frames: int
    position: int


def plan_windows(frames: Sequence[int], *, packed: bool) -> list[list[Piece]]:
    """Windows of at most 1500 frames: whole utterances with gaps where ``packed``, else a piece of one in each.

    Each goes into the first window that has room for it. One that is longer than a window is cut.
    """
    windows: list[list[Piece]] = []
    free: list[int] = []
    for number, count in enumerate(frames):
        for start in range(0, count, PIECE_FRAMES):
            length = min(PIECE_FRAMES, count - start)
            fits = (w for w, room in enumerate(free) if packed and length <= room)
            window = next(fits, len(windows))
            if window == len(windows):
                windows.append([])
                free.append(PIECE_FRAMES)
            windows[window].append(Piece(number, start, length, PIECE_FRAMES - free[window]))
            free[window] = max(0, free[window] - length - GAP_FRAMES)
    return windows


def make_targets(
    teacher: Teacher,
    scan: Scan,
    folder: Path,
    *,
    layers: Sequence[int] | None = None,
    position_mean_of: Path | None = None,
    report: Report = print,
) -> Path:
    """Write the targets of ``scan`` into ``folder``, or continue there; returns the folder.

    position_mean_of: targets of a larger set, whose mean at each position of a window is taken out of these too. A few
    windows have none of their own: at each of their positions it would be the few recordings that lie there.

    Raises RdError for layers that the teacher does not have, a folder of other targets, a disk that is or becomes full
    (what was written stays, and the next call continues) and damaged audio.
    """
    chosen = tuple(layers) if layers is not None else tuple(range(1, teacher.info.layers + 1))
    _check_layers(chosen, teacher)
    mean = None if position_mean_of is None else mean_of(position_mean_of, teacher, chosen)
    utterances, frames = scan.utterances, [frames_for(_samples(u)) for u in scan.utterances]
    windows = plan_windows(frames, packed=isinstance(teacher, WhisperTeacher))
    shards = [windows[i : i + SHARD_WINDOWS] for i in range(0, len(windows), SHARD_WINDOWS)]
    check_writable(folder)
    with FolderLock(folder) as lock:
        lock.take()
        index = _started(folder, TargetIndex(VERSION, teacher.info, chosen, fingerprint(scan)))
        if index.complete:
            report(f"{folder} is complete")
            return folder
        size = BYTES * teacher.info.width * len(chosen)
        left = size * sum(piece.frames for shard in shards[len(index.shards) :] for w in shard for piece in w)
        _check_disk(folder, left)
        report(
            f"{len(utterances)} utterances, {scan.seconds / 3600:.2f} h, {len(windows)} windows, layers {list(chosen)} "
            f"of {teacher.info.name}: {left / 1e9:.2f} GB to write in {len(shards) - len(index.shards)} shards"
        )
        keys = [utterance_key(utterance) for utterance in utterances]
        last = index
        for last in _written(teacher, utterances, keys, shards, index, folder, report):
            write_json(folder / INDEX, to_dict(last))
        _finish(teacher, last, folder, mean)
    return folder


def mean_of(folder: Path, teacher: Teacher, layers: Sequence[int]) -> NDArray[np.float32]:
    """(N, P, C): the position mean of the targets in ``folder``; RdError where they are no match or have none."""
    index = read_index(folder)
    missing = [layer for layer in layers if layer not in index.layers]
    if index.teacher.sha256 != teacher.info.sha256 or missing:
        other = f"layers {list(index.layers)}" if missing else f"{index.teacher.name} ({index.teacher.sha256[:12]})"
        raise RdError(
            f"{folder} holds targets of {other}, not of {teacher.info.name} with layers {list(layers)}",
            hint="--position-mean is of targets of the same teacher and layers",
        )
    if not index.complete or MEAN not in index.files or file_sha256(folder / MEAN) != index.files[MEAN]:
        raise RdError(f"{folder} has no whole {MEAN}", hint="only complete targets of a Whisper teacher have one")
    mean = np.load(folder / MEAN, allow_pickle=False)
    return np.ascontiguousarray(mean[[index.layers.index(layer) for layer in layers]], np.float32)


def _check_layers(layers: Sequence[int], teacher: Teacher) -> None:
    if not layers or list(layers) != sorted({*layers}) or not 1 <= layers[0] <= layers[-1] <= teacher.info.layers:
        raise RdError(
            f"--layers {','.join(map(str, layers))}, but {teacher.info.name} has layers 1 to {teacher.info.layers}",
            hint="name them in order, such as 2,4,6",
        )


def _samples(utterance: Utterance) -> int:
    return round(utterance.seconds * SAMPLE_RATE_HZ)


def _started(folder: Path, fresh: TargetIndex) -> TargetIndex:
    """What was written before; raises RdError for targets of another teacher, other data or layers."""
    if not (folder / INDEX).exists():
        return fresh
    before = read_index(folder)
    for what, old, new in (
        ("teacher", before.teacher.sha256, fresh.teacher.sha256),
        ("data", before.data.get("sha256"), fresh.data["sha256"]),
        ("layers", list(before.layers), list(fresh.layers)),
    ):
        if old != new:
            raise RdError(f"{folder} holds targets of other {what}: {old}, now {new}", hint="name another folder")
    return before


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise RdError(
            f"the targets need {needed / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free",
            hint="free disk space, or store fewer layers with --layers",
        )


def _written(
    teacher: Teacher,
    utterances: Sequence[Utterance],
    keys: Sequence[str],
    shards: Sequence[list[list[Piece]]],
    index: TargetIndex,
    folder: Path,
    report: Report,
) -> Iterator[TargetIndex]:
    """The index after each further shard."""
    began, first = time.monotonic(), len(index.shards)
    for number in range(first, len(shards)):
        rows, stored = [], {key: list(pieces) for key, pieces in index.utterances.items()}
        row = 0
        for window in shards[number]:
            for piece, values in zip(window, _layers(teacher, utterances, window, index.layers), strict=True):
                rows.append(values.astype(np.float16))
                stored.setdefault(keys[piece.utterance], []).append(
                    StoredPiece(piece.frames, piece.position, number, row, piece.start)
                )
                row += piece.frames
        data = np.concatenate(rows)
        if not np.isfinite(data).all():
            raise RdError(f"layers of {teacher.info.name} overflow float16", hint="store other --layers")
        _write_array(folder / shard_name(number), data)
        shard = Shard(file_sha256(folder / shard_name(number)), row)
        index = dataclasses.replace(
            index,
            shards=(*index.shards, shard),
            utterances={key: tuple(pieces) for key, pieces in stored.items()},
        )
        done = number + 1 - first
        left_s = (time.monotonic() - began) / done * (len(shards) - number - 1)
        report(f"shard {number + 1}/{len(shards)}, {left_s / 60:.1f} minutes left")
        yield index


@torch.no_grad()
def _layers(
    teacher: Teacher, utterances: Sequence[Utterance], window: Sequence[Piece], layers: Sequence[int]
) -> list[NDArray[np.float32]]:
    """(frames, N, C) of every piece of a window."""
    rows = [layer - 1 for layer in layers]
    waves = [torch.from_numpy(_piece(utterances[piece.utterance], piece)) for piece in window]
    if isinstance(teacher, WhisperTeacher):
        heard = [teacher.mel(wave) for wave in waves]
        placed = [PlacedMel(mel, floor, piece.position) for (mel, floor), piece in zip(heard, window, strict=True)]
        stream = teacher.window(placed)[1][rows].float().cpu()
        parts = [stream[:, piece.position : piece.position + piece.frames] for piece in window]
    else:
        parts = [teacher.hidden_states(wave[None])[rows, 0].float().cpu() for wave in waves]
    return [part.transpose(0, 1).numpy() for part in parts]


def _piece(utterance: Utterance, piece: Piece) -> NDArray[np.float32]:
    samples = read_utterance(utterance)
    first, end = piece.start * HOP_SAMPLES, (piece.start + piece.frames) * HOP_SAMPLES
    part = samples[first:]  # the last piece with what is too short for a frame: a teacher may hear it
    if frames_for(len(part)) > piece.frames:
        part = samples[first : end - HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES]
    if frames_for(len(part)) != piece.frames:
        raise RdError(
            f"{utterance.path}: {len(samples)} samples, fewer than its {utterance.seconds:.3f} s",
            hint="the file is cut short: repair or remove it",
        )
    return part


def _finish(teacher: Teacher, index: TargetIndex, folder: Path, mean: NDArray[np.float32] | None) -> None:
    """The mean at each position, the last norm, and that all is there."""
    files: dict[str, NDArray[np.float32]] = {}
    if isinstance(teacher, WhisperTeacher):
        files[MEAN] = position_mean(index, folder) if mean is None else mean
        norm = teacher.model.layer_norm
        files[NORM] = torch.stack([norm.weight, norm.bias]).float().cpu().numpy()
    for name, values in files.items():
        _write_array(folder / name, values)
    hashes = {name: file_sha256(folder / name) for name in files}
    write_json(folder / INDEX, to_dict(dataclasses.replace(index, complete=True, files=hashes)))


def position_mean(index: TargetIndex, folder: Path) -> NDArray[np.float32]:
    """(N, P, C): the mean of what was stored at each position of the window; the mean of all where nothing was."""
    sums = np.zeros((PIECE_FRAMES, len(index.layers), index.teacher.width))
    counts = np.zeros(PIECE_FRAMES)
    for number in range(len(index.shards)):
        rows = np.load(folder / shard_name(number), mmap_mode="r", allow_pickle=False)
        for pieces in index.utterances.values():
            for piece in (p for p in pieces if p.shard == number):
                where = slice(piece.position, piece.position + piece.frames)
                sums[where] += rows[piece.row : piece.row + piece.frames]
                counts[where] += 1
    means = sums / np.maximum(counts, 1)[:, None, None]
    means[counts == 0] = sums.sum(0) / max(counts.sum(), 1)
    return np.ascontiguousarray(means.transpose(1, 0, 2), dtype=np.float32)


def _write_array(path: Path, values: NDArray[np.generic]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
