"""lhotse Shar: cuts and audio in numbered shards, in a folder or on a server, for sets that do not fit one disk.

    cuts.000000.jsonl.gz       one cut per line: id, duration, supervision
    recording.000000.tar       its audio: ID.flac and ID.json, in the same order
    shar_index.json            the names of both, which a server cannot list

A shard on a server is fetched whole when its first utterance is read; the least recently used ones are removed again.
Names inside the files are never taken for paths or commands.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import tempfile
import threading
import urllib.request
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from runtime.errors import RdError

INDEX = "shar_index.json"
KEPT_SHARDS = 16  # shards of a server that are on this disk at a time
_CUTS = re.compile(r"cuts\.([\w-]+)\.jsonl(\.gz)?")
_WEB = ("http://", "https://")


class ShardError(RdError):
    """A shard that cannot be had: the run stops, where damaged audio would only be skipped."""


def is_remote(source: object) -> bool:
    """Whether ``source`` is an address such as https://… or s3://…"""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(source)) is not None


def is_shar(source: Path | str) -> bool:
    """Whether ``source`` is an address or a folder of shards."""
    return is_remote(source) or (Path(source).is_dir() and any(_CUTS.fullmatch(p.name) for p in Path(source).iterdir()))


def shard_names(source: Path | str) -> list[tuple[str, str]]:
    """(cuts, audio) of every shard in order, as paths or addresses. Raises RdError where one of them has no partner."""
    names = _listed(source)
    found = []
    for name in sorted(names):
        match = _CUTS.fullmatch(name)
        if match is None:
            continue
        audio = f"recording.{match[1]}.tar"
        if audio not in names:
            raise RdError(f"{source}: {name} has no {audio}", hint="copy the shards again, with all their files")
        found.append((_join(source, name), _join(source, audio)))
    if not found:
        raise RdError(f"{source}: there is no shard", hint="rd-distill prepare DATA --shar FOLDER writes some")
    return found


def read_cuts(location: str) -> Iterator[dict[str, Any]]:
    """The cuts of one shard. Raises RdError for a damaged file."""
    try:
        with open_location(location) as stream:
            data = stream.read()
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


def open_location(location: str) -> IO[bytes]:
    """A path or an address for reading bytes. Raises RdError where it cannot be opened."""
    try:
        if location.startswith(_WEB):
            return urllib.request.urlopen(location, timeout=60)  # noqa: S310  (http or https, as just checked)
        if not is_remote(location):
            return Path(location).open("rb")
        from lhotse.serialization import open_best

        return open_best(location, "rb")
    except Exception as error:  # every store has errors of its own
        raise ShardError(
            f"{location} cannot be opened: {error}",
            hint="object stores need pip install 'smart_open[s3]' (or [gcs], [azure]) and their credentials",
        ) from None


class ShardStore:
    """Bytes of single utterances out of shards; several threads may read at once."""

    def __init__(self, *, keep: int = KEPT_SHARDS) -> None:
        self.keep = keep
        self._lock = threading.Lock()
        self._shards: OrderedDict[str, tuple[Path, dict[str, tuple[int, int]]]] = OrderedDict()
        self._folder: Path | None = None

    def read(self, shard: str, name: str) -> bytes:
        """The audio of the cut ``name`` in ``shard``. Raises RdError where there is none."""
        with self._lock:
            path, members = self._opened(shard)
            if name not in members:
                raise RdError(f"{shard} has no audio of {name}", hint="the shard and its cuts do not belong together")
            offset, size = members[name]
            with path.open("rb") as stream:
                stream.seek(offset)
                return stream.read(size)

    def _opened(self, shard: str) -> tuple[Path, dict[str, tuple[int, int]]]:
        if shard not in self._shards:
            path = self._fetched(shard) if is_remote(shard) else Path(shard)
            self._shards[shard] = path, _members(path, shard)
            while len(self._shards) > self.keep:
                old, (gone, _) = self._shards.popitem(last=False)
                if is_remote(old):
                    gone.unlink(missing_ok=True)
        self._shards.move_to_end(shard)
        return self._shards[shard]

    def _fetched(self, shard: str) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rd-shards-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{hashlib.sha256(shard.encode()).hexdigest()}.tar"
        try:
            with open_location(shard) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except OSError as error:
            raise ShardError(
                f"{shard} was not fetched: {error.strerror or error}",
                hint="look at the network and at the space in TMPDIR, then continue with --resume",
            ) from None
        return path


def _members(path: Path, shard: str) -> dict[str, tuple[int, int]]:
    """Cut id -> (offset, size) of its audio."""
    try:
        with tarfile.open(path, "r:") as archive:
            files = [m for m in archive if m.isfile() and not m.name.endswith((".json", ".nometa", ".nodata"))]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ShardError(f"{shard}: not a readable shard: {error}", hint="copy it again") from None
    return {m.name.rpartition(".")[0]: (m.offset_data, m.size) for m in files}


def _listed(source: Path | str) -> set[str]:
    if not is_remote(source):
        return {path.name for path in Path(source).iterdir()}
    location = _join(source, INDEX)
    with open_location(location) as stream:
        try:
            index = json.load(io.TextIOWrapper(stream, "utf-8"))
            names = {str(name) for part in ("cuts", "recording") for name in index["fields"][part]}
        except (ValueError, KeyError, TypeError) as error:
            raise RdError(f"{location} is not an index of shards: {error}") from None
    strange = sorted(name for name in names if not re.fullmatch(r"[\w.-]+", name))
    if strange:
        raise RdError(f"{location}: {strange[0]!r} is not the name of a file beside it")
    return names


def _join(source: Path | str, name: str) -> str:
    return f"{str(source).rstrip('/')}/{name}" if is_remote(source) else str(Path(source) / name)
