"""What the words of ``rd-stream INPUT … [BUNDLE]`` name: recordings, standard input, and the bundle.

Raw PCM from a pipe has no header, so rate, format and channels are the caller's to state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.audio.samples import FORMAT_LEAST_BYTES, check_format, mono, pcm_dtype
from reuse_distill.runtime.bundle_format.bundle import MANIFEST
from reuse_distill.runtime.errors import RdError

STDIN = "-"
BLOCK_SAMPLES = 1_600
HEADERS = {
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"FORM": "AIFF",
    b"ID3\x03": "MP3",
    b"ID3\x04": "MP3",
}


@dataclass(frozen=True)
class StreamInputs:
    """``recordings`` by the names that their results get; empty for standard input."""

    recordings: dict[str, Path]
    bundle: str | None  # None: the shipped one
    several: bool  # more than one recording was requested, or a folder or manifest of them


def read_inputs(words: Sequence[str], bundle: str | None) -> StreamInputs:
    """Tell inputs from the bundle, which comes last or with ``--bundle``.

    Raises RdError where there is no input, a bundle stands among them, or nothing is found.
    """
    inputs = list(words)
    if bundle is None and len(inputs) > 1 and _names_a_bundle(inputs[-1]):
        bundle = inputs.pop()
    if not inputs:
        raise RdError("no input: an audio file, a folder of audio, or - for standard input", hint="rd-stream --help")
    for word in inputs:
        if (Path(word) / MANIFEST).is_file():
            hint = f"rd-stream INPUT {word}"
            if len(inputs) == 1 and bundle is None:
                raise RdError(f"{word} is a bundle, and no audio was named", hint=hint)
            raise RdError(f"{word} is a bundle: it comes last, after the inputs", hint=hint)
    if STDIN in inputs:
        if len(inputs) > 1:
            raise RdError("- (standard input) together with files", hint="stream it in a run of its own")
        return StreamInputs({}, bundle, several=False)
    if len(inputs) == 1 and not Path(inputs[0]).is_dir() and Path(inputs[0]).suffix.lower() not in (".csv", ".tsv"):
        return StreamInputs({Path(inputs[0]).name: Path(inputs[0])}, bundle, several=False)
    return StreamInputs(_named(inputs), bundle, several=True)


def _names_a_bundle(word: str) -> bool:
    """Whether the last of several words is meant as the bundle: it is one, or it is nothing that could be audio."""
    path = Path(word)
    return (path / MANIFEST).is_file() or (word != STDIN and not path.suffix and not path.is_dir()) or _is_empty(path)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _named(inputs: Sequence[str]) -> dict[str, Path]:
    """Recordings by their path below the folder that was named; files by their own name."""
    named: dict[str, Path] = {}
    for word in inputs:
        for recording in find_recordings(word):
            inside = Path(word).is_dir() and recording.path.is_relative_to(word)
            name = (recording.path.relative_to(word) if inside else PurePath(recording.path.name)).as_posix()
            if name in named:
                raise RdError(
                    f"{named[name]} and {recording.path} would have the same result {name}",
                    hint="stream their folders one by one, or name the folder above them",
                )
            named[name] = recording.path
    return named


def pcm_blocks(
    stream: BinaryIO, *, format: str, channels: int = 1, block_samples: int = BLOCK_SAMPLES
) -> Iterator[np.ndarray]:
    """Mono float32 blocks (T,), T <= ``block_samples``, as soon as the pipe gives them.

    Raises RdError for an unknown format, samples that are plainly of the other one, NaN or infinite samples, and an
    end in the middle of a sample.
    """
    dtype = pcm_dtype(format, channels)
    sample_bytes = dtype.itemsize * channels
    read_some = getattr(stream, "read1", stream.read)  # read1 does not wait for a whole block
    rest, read = b"", 0
    start, decided = b"", False  # until a stretch that is not silent has told int16 from float32
    while data := read_some(block_samples * sample_bytes - len(rest)):
        if not read:
            _check_raw(rest + data)
        if not decided:
            start += data
            if len(start) >= FORMAT_LEAST_BYTES:
                decided = check_format(start, format)
                start = start[len(start) // 4 * 4 :]
        data = rest + data
        whole = len(data) // sample_bytes
        rest = data[whole * sample_bytes :]
        if whole:
            samples = np.frombuffer(data, dtype, whole * channels).reshape(whole, channels)  # (T, channels)
            yield mono(samples.astype(dtype.newbyteorder("=")), first_sample=read)
            read += whole
    if rest:
        raise RdError(
            f"standard input ends with {len(rest)} of the {sample_bytes} bytes of sample {read}",
            hint=f"is it really {format} with {channels} channel{'s' * (channels > 1)}?",
        )


def _check_raw(start: bytes) -> None:
    """Refuse a file with a header: its first bytes would be heard as noise, and its rate be ignored."""
    kind = HEADERS.get(start[:4])
    if kind is not None:
        raise RdError(
            f"standard input is a {kind} file, raw PCM is expected",
            hint="give the file's name instead of -, or decode it: ffmpeg -i - -f s16le -ar 16000 -ac 1 -",
        )
