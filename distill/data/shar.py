"""lhotse Shar: cuts and audio in numbered shards, in a folder or on a server, for sets that do not fit one disk.

    cuts.000000.jsonl.gz       one cut per line: id, duration, supervision
    recording.000000.tar       its audio: ID.flac and ID.json, in the same order
    shar_index.json            the names of both, which a server cannot list

A shard at an address is fetched whole when its first utterance is read, into a file of TMPDIR that has no name: nothing
is left there, however a process ends. The least recently used ones are closed, and so removed.
Names inside the files are never taken for paths or commands.
"""

from __future__ import annotations

import errno
import gzip
import json
import re
import tarfile
import tempfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from reuse_distill.distill.data.remote import ShardError, fetch, is_remote, read_bytes
from reuse_distill.runtime.errors import RdError

INDEX = "shar_index.json"
KEPT_SHARDS = 16  # shards of a server that are on this disk at a time
_CUTS = re.compile(r"cuts\.([\w-]+)\.jsonl(\.gz)?")


def is_shar(source: Path | str) -> bool:
    """Whether ``source`` is an address or a folder of shards."""
    return is_remote(source) or (Path(source).is_dir() and any(_CUTS.fullmatch(p.name) for p in Path(source).iterdir()))


def shard_names(source: Path | str) -> list[tuple[str, str]]:
    """(cuts, audio) of every shard in order, as paths or addresses. Raises RdError where one of them has no partner."""
    names = _listed(source)
    pairs = []
    for name in sorted(names):
        match = _CUTS.fullmatch(name)
        if match is None:
            continue
        audio = f"recording.{match[1]}.tar"
        if audio not in names:
            raise RdError(f"{source}: {name} has no {audio}", hint="copy the shards again, with all their files")
        pairs.append((join(source, name), join(source, audio)))
    if not pairs:
        raise RdError(f"{source}: there is no shard", hint="rd-distill prepare DATA --shar FOLDER writes some")
    return pairs


def read_cuts(location: str) -> Iterator[dict[str, Any]]:
    """The cuts of one shard. Raises RdError for a damaged file."""
    try:
        data = read_bytes(location) if is_remote(location) else Path(location).read_bytes()
        text = (gzip.decompress(data) if location.endswith(".gz") else data).decode("utf-8")
        for line in text.splitlines():
            cut = json.loads(line)
            supervision = (cut.get("supervisions") or [{}])[0]
            yield {
                "id": str(cut["id"]),
                "seconds": float(cut["duration"]),
                "text": str(supervision.get("text") or ""),
                "speaker": str(supervision.get("speaker") or ""),
            }
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise RdError(f"{location}: not readable cuts of a shard: {error}", hint="copy it again") from None


class ShardStore:
    """Bytes of single utterances out of shards; several threads may read at once."""

    def __init__(self, *, keep: int = KEPT_SHARDS) -> None:
        self.keep = keep
        self._lock = threading.Lock()
        self._shards: OrderedDict[str, tuple[IO[bytes], dict[str, tuple[int, int]]]] = OrderedDict()
        self._failed: ShardError | None = None

    def read(self, shard: str, name: str) -> bytes:
        """The audio of the cut ``name`` in ``shard``. Raises RdError where there is none."""
        with self._lock:
            file, members = self._opened(shard)
            if name not in members:
                raise RdError(f"{shard} has no audio of {name}", hint="the shard and its cuts do not belong together")
            offset, size = members[name]
            file.seek(offset)
            return file.read(size)

    def _opened(self, shard: str) -> tuple[IO[bytes], dict[str, tuple[int, int]]]:
        if shard not in self._shards:
            file = self._fetched(shard) if is_remote(shard) else _file(shard)
            self._shards[shard] = file, _members(file, shard)
            while len(self._shards) > self.keep:
                self._shards.popitem(last=False)[1][0].close()
        self._shards.move_to_end(shard)
        return self._shards[shard]

    def _fetched(self, shard: str) -> IO[bytes]:
        if self._failed is not None:  # the run is ending: other threads do not wait for a server that is gone
            raise self._failed
        try:
            file = _nameless(shard)
            fetch(shard, file)
        except ShardError as error:
            self._failed = error
            raise
        return file


def _file(shard: str) -> IO[bytes]:
    try:
        return Path(shard).open("rb")
    except OSError as error:
        raise ShardError(
            f"{shard}: not a readable shard: {error.strerror}", hint=_hint(error, "copy it again")
        ) from None


def _nameless(shard: str) -> IO[bytes]:
    """A file that is gone when it is closed, or its process has ended."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise ShardError(
            f"{shard} cannot be kept: {error.strerror}", hint=_hint(error, "TMPDIR is a folder that can be written")
        ) from None


def _hint(error: OSError, otherwise: str) -> str:
    many = error.errno == errno.EMFILE
    return "lower data.mixed_shards: twice as many shards are open at a time" if many else otherwise


def _members(file: IO[bytes], shard: str) -> dict[str, tuple[int, int]]:
    """Cut id -> (offset, size) of its audio."""
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            files = [m for m in archive if m.isfile() and not m.name.endswith((".json", ".nometa", ".nodata"))]
    except (tarfile.TarError, OSError, EOFError) as error:
        file.close()
        raise ShardError(f"{shard}: not a readable shard: {error}", hint="copy it again") from None
    return {m.name.rpartition(".")[0]: (m.offset_data, m.size) for m in files}


def _listed(source: Path | str) -> set[str]:
    if not is_remote(source):
        return {path.name for path in Path(source).iterdir()}
    location = join(source, INDEX)
    data = read_bytes(location)
    try:
        index = json.loads(data)
        names = {str(name) for part in ("cuts", "recording") for name in index["fields"][part]}
    except (ValueError, KeyError, TypeError) as error:
        raise RdError(f"{location} is not an index of shards: {error}") from None
    strange = sorted(name for name in names if not re.fullmatch(r"[\w.-]+", name))
    if strange:
        raise RdError(f"{location}: {strange[0]!r} is not the name of a file beside it")
    return names


def join(source: Path | str, name: str) -> str:
    return f"{str(source).rstrip('/')}/{name}" if is_remote(source) else str(Path(source) / name)
