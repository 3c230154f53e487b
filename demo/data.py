"""The demo's audio: what is trained on, what is kept apart for checks, as two manifests."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reuse_distill.runtime.audio.audio_files import AudioFile
from reuse_distill.runtime.audio.recordings import Recording, find_recordings
from reuse_distill.runtime.errors import RdError

SHIPPED = Path(__file__).parent / "speech" / "manifest.csv"
MOST_TRAINED, MOST_CHECKED = 400, 24  # recordings; a demo does not need more to show its point
CALIBRATION_SECONDS = 48.0  # of clips of at most 6 s; more would only take longer here
EVERY = 6  # where the data does not say what is for checks, every sixth speaker or recording is


@dataclass(frozen=True)
class Data:
    """Manifests and what is known about them; ``calibration`` is a part of ``train``."""

    name: str
    train: Path
    calibration: Path
    check: Path
    trained: int
    checked: int
    left_out: int
    train_seconds: float
    check_seconds: float
    held_out_by: str  # how checks were kept apart
    longest: Path  # recording of the checks that is streamed


def prepare(source: Path | None, folder: Path) -> Data:
    """Write ``train.csv``, ``calibration.csv`` and ``check.csv`` into ``folder`` for what the user gave.

    ``source``: a folder of audio, a manifest, or None for the shipped speech.

    Raises RdError where there are fewer than two recordings.
    """
    manifest = _manifest_of(source)
    train, check, how = split(manifest)
    kept_train, kept_check = _spread(train, MOST_TRAINED), _spread(check, MOST_CHECKED)
    folder.mkdir(parents=True, exist_ok=True)
    seconds = {one.path: _seconds(one.path) for one in [*kept_train, *kept_check]}
    write_manifest(folder / "train.csv", kept_train, "train")
    write_manifest(folder / "calibration.csv", enough(kept_train, seconds), "train")
    write_manifest(folder / "check.csv", kept_check, "test")
    return Data(
        name="the shipped synthetic speech" if source is None else str(source),
        train=folder / "train.csv",
        calibration=folder / "calibration.csv",
        check=folder / "check.csv",
        trained=len(kept_train),
        checked=len(kept_check),
        left_out=len(train) + len(check) - len(kept_train) - len(kept_check),
        train_seconds=sum(seconds[one.path] for one in kept_train),
        check_seconds=sum(seconds[one.path] for one in kept_check),
        held_out_by=how,
        longest=as_typed(max((one.path for one in kept_check), key=lambda path: min(seconds[path], 30.0))),
    )


def split(manifest: Path) -> tuple[list[Recording], list[Recording], str]:
    """Recordings to train on and to check with, and how they were distinguished: by split, speaker, or recording."""
    everything = find_recordings(manifest)
    if len(everything) < 2:
        raise RdError(f"{manifest}: one recording only", hint="give at least two, better minutes of several voices")
    if _has_split(manifest, "test"):
        held = find_recordings(manifest, split="test")
        if len(held) < len(everything):
            return _without(everything, held), held, f"the manifest's split, {_shared_speakers(everything, held)}"
    speakers = sorted({one.speaker for one in everything})
    if len(speakers) > 1 and all(speakers):
        kept = speakers[EVERY - 1 :: EVERY] or speakers[-1:]
        held = [one for one in everything if one.speaker in kept]
        return _without(everything, held), held, "speaker: none is in both"
    held = everything[EVERY - 1 :: EVERY] or everything[-1:]
    return _without(everything, held), held, "recording: speakers are unknown"


def _without(everything: Sequence[Recording], held: Sequence[Recording]) -> list[Recording]:
    paths = {one.path for one in held}
    return [one for one in everything if one.path not in paths]


def _shared_speakers(everything: Sequence[Recording], held: Sequence[Recording]) -> str:
    if not all(one.speaker for one in everything):
        return "speakers unknown"
    shared = {one.speaker for one in held} & {one.speaker for one in _without(everything, held)}
    return f"{len(shared)} speakers in both" if shared else "no speaker in both"


def enough(recordings: Sequence[Recording], seconds: dict[Path, float]) -> list[Recording]:
    """As few recordings, evenly over the list, as hold 48 s in clips of at most 6 s; all where they hold less."""
    for count in range(1, len(recordings)):
        chosen = _spread(recordings, count)
        if sum(min(6.0, seconds[one.path]) for one in chosen) >= CALIBRATION_SECONDS:
            return chosen
    return list(recordings)


def _manifest_of(source: Path | None) -> Path:
    if source is None:
        return SHIPPED
    return source / "manifest.csv" if (source / "manifest.csv").is_file() else source


def _has_split(manifest: Path, value: str) -> bool:
    if manifest.is_dir():
        return False
    with manifest.open(newline="", encoding="utf-8") as stream:
        return any(row.get("split") == value for row in csv.DictReader(stream))


def _spread(recordings: Sequence[Recording], most: int) -> list[Recording]:
    """At most ``most`` recordings, evenly over the list."""
    step = max(1.0, len(recordings) / most)
    return [recordings[int(i * step)] for i in range(min(most, len(recordings)))]


def _seconds(path: Path) -> float:
    """Length of a recording; 0 where it cannot be opened (the commands say why when they get to it)."""
    try:
        with AudioFile(path) as audio:
            return audio.promised_samples / audio.sample_rate_hz
    except RdError:
        return 0.0


def as_typed(path: Path) -> Path:
    """The path as a user in this folder would write it."""
    here, whole = Path.cwd(), path.resolve()
    return whole.relative_to(here) if whole.is_relative_to(here) else path


def write_manifest(path: Path, recordings: Sequence[Recording], split_name: str) -> None:
    """A manifest CSV of whole paths; every row gets the split ``split_name``."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("file", "speaker", "text_or_label", "split"))
        writer.writerows((one.path.resolve(), one.speaker, one.label, split_name) for one in recordings)
