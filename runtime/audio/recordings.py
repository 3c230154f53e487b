"""Lists of recordings: one file, a folder of audio, or a manifest CSV with a column ``file``."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reuse_distill.runtime.errors import RdError, nearest

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".au", ".caf", ".w64", ".sph")
MANIFEST_SUFFIXES = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Recording:
    """One audio file and what is known about it; empty strings where nothing is."""

    path: Path
    label: str = ""
    speaker: str = ""
    split: str = ""


def find_recordings(source: Path | str, *, split: str | None = None) -> list[Recording]:
    """Recordings of a folder (all audio below it, by name), a manifest CSV (in its order) or one audio file.

    ``split`` keeps the manifest rows whose column ``split`` equals it. Nothing is opened. Raises RdError when the
    source does not exist, the manifest cannot be read, or nothing is found.
    """
    path = Path(source)
    if not path.exists():
        raise RdError(f"there is no audio at {path}", hint="give an audio file, a folder of audio or a manifest CSV")
    if path.is_dir():
        recordings = list(_in_folder(path))
    elif path.suffix.lower() in MANIFEST_SUFFIXES:
        recordings = list(_in_manifest(path, split))
    else:
        recordings = [Recording(path)]
    if not recordings:
        if path.is_file():  # a manifest
            rows = "rows" if split is None else f"rows with {split!r} in the column 'split'"
            raise RdError(f"{path} has no {rows}", hint="every row names a file in the column 'file'")
        raise RdError(f"no audio in {path}", hint=f"known formats: {', '.join(SUFFIXES)}")
    return recordings


def _in_folder(folder: Path) -> Iterator[Recording]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield Recording(path)


def _in_manifest(path: Path, split: str | None) -> Iterator[Recording]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets put a mark before the first column
            reader = csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            columns, rows = list(reader.fieldnames or ()), [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RdError(f"{path} is not a readable manifest: {error}") from None
    if "file" not in columns:
        raise RdError(
            f"{path} has no column 'file' (columns: {', '.join(columns) or 'none'})",
            hint=_about_columns(columns),
        )
    for line, row in rows:
        if not row["file"]:
            raise RdError(f"{path}: line {line} names no file", hint="fill its column 'file', or remove the line")
        if split is None or row.get("split") == split:
            label = row.get("text_or_label") or row.get("label") or row.get("text") or ""
            place = _resolve(path.parent, row["file"])
            yield Recording(place, label, row.get("speaker") or "", row.get("split") or "")


def _about_columns(columns: list[str]) -> str:
    if not columns:
        return "the first line names the columns"
    if len(columns) == 1 and (";" in columns[0] or "\t" in columns[0]):
        return "columns are separated by commas in .csv, by tabs in .tsv"
    return nearest("file", columns)


def _resolve(folder: Path, name: str) -> Path:
    """``name`` beside the manifest, or beside the manifest's folder."""
    beside, above = folder / name, folder.parent / name
    return above if not beside.exists() and above.exists() else beside
