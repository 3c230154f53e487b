"""Audio files of every kind that libsndfile reads, as blocks of mono float32 or whole.

libsndfile reads some truncated files short without an error, so sizes that the container states are checked first.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.audio.samples import mono, sample_rate_of
from reuse_distill.runtime.errors import RdError

BLOCK_SAMPLES = 16_384
# MPEG files state their length with the encoder's padding, or guess it: a small difference is not an error.
MPEG_SLACK_S = 0.2
CONVERT = "ffmpeg -i {name} -ar 16000 -ac 1 converted.wav"
# Writers that cannot seek (a pipe) put a size near 2 or 4 GiB where the true one belongs.
UNKNOWN_SIZES = range(0x7F00_0000, 0x1_0000_0000)
# As libsndfile logs the chunk of sound of WAV, RF64, W64, AIFF and AU: promised bytes, and those there if it noticed.
SOUND_CHUNK = re.compile(
    r"^\s*(?:data|SSND|data size)\s*: (\d+)(?: \(should be (\d+)\))?", re.MULTILINE | re.IGNORECASE
)
OGG_PAGE_BYTES = 65_307  # the largest
OGG_LAST_PAGE = 4  # flag in the sixth byte of a page


@dataclass(frozen=True)
class Audio:
    """A whole recording: ``samples`` (T,) float32, mono, at ``sample_rate_hz``."""

    samples: np.ndarray
    sample_rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate_hz


def read_audio(path: str | os.PathLike[str]) -> Audio:
    """Read a whole file as mono float32. Raises RdError as ``AudioFile`` does."""
    with AudioFile(path) as audio:
        blocks = [np.zeros(0, np.float32), *audio.blocks()]
        return Audio(np.concatenate(blocks), audio.sample_rate_hz)


class AudioFile:
    """An audio file that is read block by block: ``with AudioFile(path) as audio: for block in audio.blocks()``.

    Raises RdError for a missing, empty, foreign, truncated or corrupt file and for NaN or infinite samples, with the
    position where there is one. Silence and files shorter than a frame are as good as any other.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        try:
            self.sample_rate_hz = sample_rate_of(self._file.samplerate)
        except RdError as error:
            self._file.close()
            raise RdError(f"{self.path}: {error.message}", hint=error.hint) from None
        self.channels = int(self._file.channels)
        self.promised_samples = int(self._file.frames)

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """Mono float32 blocks (T,), T <= ``block_samples``, to the end of the file."""
        read = 0
        while len(block := self._read(block_samples, read)):
            try:
                samples = mono(block, first_sample=read, source=str(self.path))
            except RdError as error:
                raise RdError(f"{self.path}: {error.message}", hint=error.hint) from None
            yield samples
            read += len(block)
        self._check_length(read)

    def _read(self, count: int, read: int) -> np.ndarray:
        from soundfile import SoundFileError

        try:
            return self._file.read(count, dtype="float32", always_2d=True)
        except SoundFileError as error:
            raise RdError(
                f"{self.path}: damaged after sample {read} ({read / self.sample_rate_hz:.2f} s of "
                f"{self.promised_samples / self.sample_rate_hz:.2f} s): {_reason(error)}",
                hint=f"copy it again; {CONVERT.format(name=self.path.name)} keeps what can be decoded",
            ) from None

    def _check_length(self, read: int) -> None:
        text = f"{self.path}: promises {self.promised_samples} samples and holds {read}"
        missing_s = (self.promised_samples - read) / self.sample_rate_hz
        if "MPEG" in self._file.subtype:
            if missing_s > MPEG_SLACK_S:
                warnings.warn(f"{text}; probably truncated", RuntimeWarning, stacklevel=4)
        elif missing_s > 0:
            raise RdError(f"{text}: truncated", hint="copy it again")


def _open(path: Path) -> Any:
    import soundfile

    if not path.exists():
        raise RdError(f"{path}: no such file", hint="check the path; `-` reads raw PCM from standard input")
    if path.is_dir():
        raise RdError(f"{path}: is a folder, not an audio file")
    if path.is_file() and path.stat().st_size == 0:
        raise RdError(f"{path}: is empty (0 bytes)")
    try:
        file = soundfile.SoundFile(str(path))
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: `.raw` without a format
        raise _not_readable(path, error) from None
    try:
        check_complete(path, file)
    except RdError:
        file.close()
        raise
    return file


def _not_readable(path: Path, error: Exception) -> RdError:
    with path.open("rb") as stream:
        head = stream.read(512)
    if b"\0" not in head and sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head) > 0.95 * len(head):
        return RdError(f"{path}: is not audio, it holds text", hint="check the path")
    return RdError(
        f"{path}: cannot be read as audio: {_reason(error)}",
        hint=f"if it is audio (AAC and WMA are not read), convert it: {CONVERT.format(name=path.name)}",
    )


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", None) or error)
    return text.removeprefix("Error : ").strip().rstrip(".")


def check_complete(path: Path, file: Any) -> None:
    """Raise RdError where the header of an open ``soundfile.SoundFile`` promises more bytes of sound than there are."""
    size_bytes = path.stat().st_size
    for promised, held in SOUND_CHUNK.findall(file.extra_info):
        there = int(held) if held else size_bytes
        if there < int(promised) and int(promised) not in UNKNOWN_SIZES:
            raise RdError(
                f"{path}: truncated: its header promises {promised} bytes of sound, {there} are there",
                hint=f"copy it again; {CONVERT.format(name=path.name)} keeps what there is",
            )
    if file.format == "OGG" and not _ogg_ends(path):
        if file.frames == 0:
            raise RdError(f"{path}: truncated before its first page of sound", hint="copy it again")
        warnings.warn(f"{path}: has no last page; probably truncated", RuntimeWarning, stacklevel=4)


def _ogg_ends(path: Path) -> bool:
    """Whether the last page of an Ogg file says that it is the last."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - OGG_PAGE_BYTES))
        tail = stream.read()
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & OGG_LAST_PAGE)
