"""LibriSpeech, a folder of audio or a manifest -> a manifest with everything that is known, and lhotse Shar."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.data.shar import INDEX
from distill.data.utterances import Scan, Utterance, check_candidates, find_utterances
from runtime.errors import RdError

COLUMNS = ("file", "speaker", "text", "split", "seconds")


def find_corpus(source: Path, *, bad_limit: float = 0.05) -> Scan:
    """Utterances with speaker, text and split where the folder is LibriSpeech's; otherwise as ``find_utterances``."""
    transcripts = sorted(source.rglob("*.trans.txt")) if source.is_dir() else []
    if not transcripts:
        return find_utterances(source, bad_limit=bad_limit)
    return check_candidates(_librispeech(transcripts), source, bad_limit=bad_limit)


def write_manifest(scan: Scan, path: Path) -> Path:
    """The utterances as CSV, with paths relative to it where they are below its folder. RdError for a full disk."""
    from distill.training.state import write_atomically

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    base = path.parent.resolve()
    for u in scan.utterances:
        file = u.path.resolve()
        shown = file.relative_to(base) if file.is_relative_to(base) else file
        writer.writerow([shown.as_posix(), u.speaker, u.label, u.split, f"{u.seconds:.3f}"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())
    return path


def write_shar(scan: Scan, folder: Path, *, shard_size: int = 1000) -> Path:
    """The utterances as lhotse Shar (FLAC, 16 bit) with an index. RdError for a folder in use or a full disk."""
    try:
        from lhotse.shar import SharWriter
    except ImportError:
        raise RdError("lhotse is not installed", hint="pip install 'reuse-distill[distill]'") from None
    if shard_size < 1:
        raise RdError(f"--shard-size {shard_size}", hint="utterances per shard, 1 or more")
    if folder.exists() and any(folder.iterdir()):
        raise RdError(f"{folder} is not empty", hint="name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with SharWriter(str(folder), fields={"recording": "flac"}, shard_size=shard_size) as writer:
            for cut in _cuts(scan.utterances):
                writer.write(cut)
        names = sorted(path.name for path in folder.iterdir())
        fields = {part: [n for n in names if n.startswith(f"{part}.")] for part in ("cuts", "recording")}
        (folder / INDEX).write_text(json.dumps({"fields": fields}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise RdError(f"{folder} was not written whole: {error.strerror or error}", hint="free disk space") from None
    return folder


def _librispeech(transcripts: Sequence[Path]) -> Iterator[Utterance]:
    """SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt: lines of an utterance's name and its words."""
    for path in transcripts:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RdError(f"{path} is not a readable transcript: {error}") from None
        for line in lines:
            name, _, words = line.partition(" ")
            audio = path.parent / f"{name}.flac"
            yield Utterance(audio, 0.0, label=words, speaker=name.split("-")[0], split=path.parents[2].name)


def _cuts(utterances: Sequence[Utterance]) -> Iterator[Any]:
    from lhotse import Recording, SupervisionSegment

    width = len(str(len(utterances)))
    for number, u in enumerate(utterances):
        name = f"{number:0{width}d}-{u.path.stem}"
        recording = Recording.from_file(u.path, recording_id=name)
        cut = recording.to_cut().with_id(name)
        if not u.whole:
            cut = cut.truncate(offset=u.start_s, duration=u.seconds).with_id(name)
        segment = SupervisionSegment(
            id=name, recording_id=name, start=0, duration=cut.duration, text=u.label, speaker=u.speaker
        )
        cut.supervisions = [segment]
        yield cut
