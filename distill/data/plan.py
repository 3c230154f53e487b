"""Which utterances make which batch: a pure function of the durations, the seed and the epoch.

Utterances of similar length go together (duration bucketing), so that little of a batch is padding; the order of the
utterances in a bucket and of the batches in an epoch is drawn anew for every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# First number of every seed sequence: what the draw is for. Two draws never share a stream.
ORDER, CROP, MASK, CONTEXT, DROPOUT, LAYERS, AUGMENT, SPEED, HOLD_OUT = range(9)


def plan_epoch(
    seconds: Sequence[float],
    *,
    batch_size: int,
    batch_seconds: float,
    buckets: int,
    seed: int,
    epoch: int,
) -> list[list[int]]:
    """Batches of indices into ``seconds``: each index once.

    A batch has at most ``batch_size`` utterances and ``batch_seconds`` seconds with padding; an utterance longer
    than ``batch_seconds`` is a batch of its own.
    """
    generator = np.random.default_rng([ORDER, seed, epoch])
    order = np.argsort(np.asarray(seconds), kind="stable")
    batches: list[list[int]] = []
    for bucket in np.array_split(order, min(buckets, len(order))):
        batches += _pack(generator.permutation(bucket).tolist(), seconds, batch_size, batch_seconds)
    return [batches[i] for i in generator.permutation(len(batches))]


def _pack(indices: list[int], seconds: Sequence[float], batch_size: int, batch_seconds: float) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = 0.0
    for index in indices:
        longest = max(longest, seconds[index])
        fits = batches and len(batches[-1]) < batch_size and longest * (len(batches[-1]) + 1) <= batch_seconds
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = seconds[index]
    return batches
