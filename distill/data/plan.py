"""Which utterances make which batch: a pure function of the durations, the seed and the epoch.

Utterances of similar length go together (duration bucketing), so that little of a batch is padding; the order of the
utterances in a bucket and of the batches in an epoch is drawn anew for every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# First number of every seed sequence: what the draw is for. Two draws never share a stream.
ORDER, CROP, MASK, CONTEXT, DROPOUT, LAYERS, AUGMENT, SPEED, HOLD_OUT, SHARDS, NOISE, ROOM, OWN, VIEW = range(14)


def plan_epoch(
    seconds: Sequence[float],
    *,
    batch_size: int,
    batch_seconds: float,
    buckets: int,
    seed: int,
    epoch: int,
    part: int | None = None,
) -> list[list[int]]:
    """Batches of indices into ``seconds``: each index once. ``part``: number of the part of an epoch that this is.

    A batch has at most ``batch_size`` utterances and ``batch_seconds`` seconds with padding; an utterance longer
    than ``batch_seconds`` is a batch of its own.
    """
    generator = np.random.default_rng([ORDER, seed, epoch] if part is None else [ORDER, seed, epoch, part])
    order = np.argsort(np.asarray(seconds), kind="stable")
    batches: list[list[int]] = []
    for bucket in np.array_split(order, min(buckets, len(order))):
        batches += _pack(generator.permutation(bucket).tolist(), seconds, batch_size, batch_seconds)
    return [batches[i] for i in generator.permutation(len(batches))]


def plan_shards(shards: Sequence[str], seconds: Sequence[float], *, mixed: int, **how: int | float) -> list[list[int]]:
    """As ``plan_epoch`` (whose settings ``how`` has), for utterances that lie in ``shards``: mixed within some of them.

    The shards are shuffled and taken ``mixed`` at a time, so that reading needs no more of them at once.
    """
    members: dict[str, list[int]] = {}
    for index, shard in enumerate(shards):
        members.setdefault(shard, []).append(index)
    names = list(members)
    order = np.random.default_rng([SHARDS, int(how["seed"]), int(how["epoch"])]).permutation(len(names))
    batches: list[list[int]] = []
    for part, first in enumerate(range(0, len(order), mixed)):
        indices = [index for number in order[first : first + mixed] for index in members[names[number]]]
        planned = plan_epoch([seconds[i] for i in indices], **how, part=part)  # type: ignore[arg-type]
        batches += [[indices[i] for i in batch] for batch in planned]
    return batches


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
