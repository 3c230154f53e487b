"""Who is trained on and who is tested: speaker-disjoint wherever the speaker is not the label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from reuse_distill.distill.data.utterances import Utterance
from reuse_distill.runtime.errors import RdError

UNKNOWN = ("", "-", "unknown")
TEST_SHARE = 0.25


def by_speaker(utterances: Sequence[Utterance], *, seed: int) -> tuple[list[int], list[int]]:
    """(train, test) indices with no speaker in both; utterances of unknown speakers are drawn one by one.

    Raises RdError where there is one known speaker only.
    """
    known = sorted({u.speaker for u in utterances if u.speaker not in UNKNOWN})
    generator = np.random.default_rng(seed)
    if len(known) == 1:
        raise RdError(f"all audio is of speaker {known[0]!r}: no speaker-disjoint split is possible")
    held_out = set(generator.permutation(known)[: max(1, round(TEST_SHARE * len(known)))].tolist()) if known else set()
    train: list[int] = []
    test: list[int] = []
    for index, utterance in enumerate(utterances):
        alone = utterance.speaker in UNKNOWN
        out = generator.random() < TEST_SHARE if alone else utterance.speaker in held_out
        (test if out else train).append(index)
    return train, test


def by_utterance(labels: Sequence[str], *, seed: int) -> tuple[list[int], list[int]]:
    """(train, test) indices: of every label with two utterances or more a quarter, at least one, is tested."""
    generator = np.random.default_rng(seed)
    train: list[int] = []
    test: list[int] = []
    for label in sorted(set(labels)):
        mine = generator.permutation([i for i, other in enumerate(labels) if other == label]).tolist()
        held = max(1, round(TEST_SHARE * len(mine))) if len(mine) > 1 else 0
        test += mine[:held]
        train += mine[held:]
    return sorted(train), sorted(test)


def given(utterances: Sequence[Utterance], *, disjoint: bool = True) -> tuple[list[int], list[int]] | None:
    """The manifest's own split, where it has rows of both ``train`` and ``test``.

    Raises RdError where ``disjoint`` and a speaker is in both.
    """
    train = [i for i, u in enumerate(utterances) if u.split == "train"]
    test = [i for i, u in enumerate(utterances) if u.split == "test"]
    if not train or not test:
        return None
    shared = {utterances[i].speaker for i in train} & {utterances[i].speaker for i in test}
    shared -= set(UNKNOWN)
    if shared and disjoint:
        raise RdError(
            f"{len(shared)} speakers are in both train and test, for example {sorted(shared)[0]!r}",
            hint="correct the column 'split', or remove it for a split drawn by speaker",
        )
    return train, test
