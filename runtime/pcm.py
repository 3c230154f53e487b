"""Raw PCM from a pipe: no header, so rate, format and channels are the caller's to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.samples import FORMAT_LEAST_BYTES, check_format, mono, pcm_dtype

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
