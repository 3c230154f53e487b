"""LibriSpeech, a folder of audio or a manifest -> a manifest with everything that is known, and lhotse Shar."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from reuse_distill.distill.data.remote import WEB, exists, is_remote, upload
from reuse_distill.distill.data.shar import INDEX, join
from reuse_distill.distill.data.utterances import Scan, Utterance, check_candidates, find_utterances
from reuse_distill.runtime.errors import RdError, install_hint

COLUMNS = ("file", "speaker", "text", "split", "seconds")


def find_corpus(source: Path, *, bad_limit: float = 0.05) -> Scan:
    """Utterances with speaker, text and split where the folder is LibriSpeech's; otherwise as ``find_utterances``."""
    transcripts = sorted(source.rglob("*.trans.txt")) if source.is_dir() else []
    if not transcripts:
        return find_utterances(source, bad_limit=bad_limit)
    return check_candidates(_librispeech(transcripts), source, bad_limit=bad_limit)


def write_manifest(scan: Scan, path: Path) -> Path:
    """The utterances as CSV, with paths relative to it where they are below its folder.

    Raises RdError for a full disk, and for utterances that are no whole files.
    """
    from reuse_distill.distill.files import check_writable, write_atomically

    if any(u.shard or not u.whole for u in scan.utterances):
        raise RdError(
            f"{path} cannot hold pieces of recordings or of shards: a manifest names files",
            hint="train on the cuts or shards themselves; --shar writes cuts as shards",
        )
    check_writable(path.parent)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    base = path.parent.resolve()
    for u in scan.utterances:
        file = u.path.resolve()
        listed = file.relative_to(base) if file.is_relative_to(base) else file
        writer.writerow([listed.as_posix(), u.speaker, u.label, u.split, f"{u.seconds:.3f}"])
    write_atomically(path, text.getvalue().encode())
    return path


def write_shar(scan: Scan, target: Path | str, *, shard_size: int = 1000) -> Path | str:
    """The utterances as lhotse Shar (FLAC, 16 bit) with an index, in a folder or in an object store.

    Raises RdError for a folder in use, a full disk and a store that refuses. The index comes last: what was broken off
    has none.
    """
    if shard_size < 1:
        raise RdError(f"--shard-size {shard_size}", hint="utterances per shard, 1 or more")
    if any(u.shard for u in scan.utterances):
        raise RdError("these are shards already", hint="copy them, or give the recordings that they were made of")
    if is_remote(target):
        return _write_to_store(scan, str(target), shard_size=shard_size)
    folder = Path(target)
    if folder.exists() and any(folder.iterdir()):
        raise RdError(f"{folder} is not empty", hint="name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_index(folder, _write_shards(_cuts(scan.utterances), folder, shard_size=shard_size))
    except OSError as error:
        raise RdError(f"{folder} was not written whole: {error.strerror or error}", hint="free disk space") from None
    return folder


def _write_to_store(scan: Scan, address: str, *, shard_size: int) -> str:
    """One shard at a time by way of TMPDIR."""
    if address.startswith(WEB):
        raise RdError(f"{address} cannot be written: http is only read", hint="name a folder or s3://…")
    if exists(join(address, INDEX)):
        raise RdError(f"{address} already holds shards", hint="name another folder")
    cuts, fields = _cuts(scan.utterances), dict[str, list[str]]()
    try:
        with tempfile.TemporaryDirectory(prefix="rd-shards-") as name:
            folder, number = Path(name), itertools.count()
            while group := list(itertools.islice(cuts, shard_size)):
                written = _write_shards(group, folder, shard_size=shard_size, first=next(number))
                for part, names in written.items():
                    for file in names:
                        upload(folder / file, join(address, file))
                        (folder / file).unlink()
                    fields.setdefault(part, []).extend(names)
            upload(_write_index(folder, fields), join(address, INDEX))
    except OSError as error:
        raise RdError(
            f"{address} was not written whole: {error.strerror or error}", hint="free space in TMPDIR"
        ) from None
    return address


def _write_shards(cuts: Iterable[Any], folder: Path, *, shard_size: int, first: int = 0) -> dict[str, list[str]]:
    """Shards from number ``first`` on; the names of their files."""
    try:
        from lhotse.shar import SharWriter
    except ImportError:
        raise RdError("lhotse is not installed", hint=install_hint("distill")) from None
    with SharWriter(str(folder), fields={"recording": "flac"}, shard_size=shard_size, shard_offset=first) as writer:
        for cut in cuts:
            writer.write(cut)
    return {part: [Path(path).name for path in paths] for part, paths in writer.output_paths.items()}


def _write_index(folder: Path, fields: dict[str, list[str]]) -> Path:
    path = folder / INDEX
    path.write_text(json.dumps({"fields": fields}, indent=1) + "\n", encoding="utf-8")
    return path


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
