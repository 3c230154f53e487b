"""Whether an audio file holds what its container promises: libsndfile reads some truncated files short, in silence."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError

CONVERT = "ffmpeg -i {name} -ar 16000 -ac 1 converted.wav"
# Writers that cannot seek (a pipe) put a size near 2 or 4 GiB where the true one belongs.
UNKNOWN_SIZES = range(0x7F00_0000, 0x1_0000_0000)
# As libsndfile logs the chunk of sound of WAV, RF64, W64, AIFF and AU: promised bytes, and those there if it noticed.
SOUND_CHUNK = re.compile(
    r"^\s*(?:data|SSND|data size)\s*: (\d+)(?: \(should be (\d+)\))?", re.MULTILINE | re.IGNORECASE
)
OGG_PAGE_BYTES = 65_307  # the largest
OGG_LAST_PAGE = 4  # flag in the sixth byte of a page


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
