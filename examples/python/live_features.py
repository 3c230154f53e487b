"""Features as the audio arrives, here from a file in pieces of 10 ms: `python live_features.py TALK.flac`.

Replace ``pieces`` with whatever delivers samples: a sound card, a socket, a phone call at 8 kHz. Pieces may have any
length, int16 or float32; the features do not depend on how the audio was cut.
"""

import sys
from collections.abc import Iterator

import numpy as np
import soundfile

import reuse_distill as rd


def pieces(path: str, samples: int) -> Iterator[np.ndarray]:
    """int16 blocks of at most ``samples`` samples."""
    yield from soundfile.blocks(path, blocksize=samples, dtype="int16")


def main(path: str) -> None:
    """Prints when each group of frames became known, and its mean level."""
    rate_hz = soundfile.info(path).samplerate
    encoder = rd.load()
    pushed = 0
    with encoder.stream(sample_rate=rate_hz) as stream:
        for pcm in pieces(path, rate_hz // 100):
            pushed += len(pcm)
            for frames in stream.push(pcm):
                print(f"heard {pushed / rate_hz:.2f} s: {len(frames.features)} frames from {frames.start_s:.2f} s on")
        for frames in stream.finish():  # the last frames: exact, and once
            print(f"end: {len(frames.features)} frames from {frames.start_s:.2f} s on")


if __name__ == "__main__":
    main(sys.argv[1])
