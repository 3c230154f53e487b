"""Many streams stepped as one batch: a push that feeds all of them and is done when each has its frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.stream_driver import Push, cut
from reuse_distill.runtime.geometry import HOP_SAMPLES


def batch_pusher(encoder: Any, streams: list[Any], audio: npt.NDArray[np.float32], chunk_samples: int) -> Push:
    """A push for ``streams`` of ``encoder``: the samples given go to the first stream, others hear other parts of
    ``audio``. Returns the number of frames of all streams."""
    others: list[Iterator[npt.NDArray[np.float32]]] = []
    for index in range(1, len(streams)):
        start = int(len(audio) * index / len(streams)) // HOP_SAMPLES * HOP_SAMPLES
        others.append(cut(audio, chunk_samples, start=start))

    def push(samples: npt.NDArray[np.float32]) -> int:
        for stream, chunk in zip(streams, (samples, *map(next, others)), strict=True):
            stream.feed(chunk)
        frames = 0
        while any(stream.ready for stream in streams):
            frames += sum(len(one) for one in encoder.step(streams) if one is not None)
        return frames

    return push
