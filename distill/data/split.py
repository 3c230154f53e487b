"""Hold utterances out of the training data, so that the loss on them tells whether the student learns or memorises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from reuse_distill.distill.data.plan import HOLD_OUT
from reuse_distill.distill.data.utterances import Utterance
from reuse_distill.runtime.errors import RdError


@dataclass(frozen=True)
class HeldOut:
    """``training`` and ``held`` share no ``by`` (speakers, or files where not every utterance names a speaker)."""

    training: tuple[Utterance, ...]
    held: tuple[Utterance, ...]
    by: str


def hold_out(utterances: Sequence[Utterance], share: float, *, seed: int) -> HeldOut:
    """Whole speakers, drawn until they have ``share`` of the seconds; whole files where speakers are not known.

    Raises RdError for a share outside 0..1 and where there is only one speaker or file.
    """
    if not 0 < share < 1:
        raise RdError(f"a share of {share:g} cannot be held out", hint="give a share between 0 and 1, such as 0.05")
    by, groups = _groups(utterances)
    if len(groups) < 2:  # of one speaker, files are held out
        raise RdError(
            f"there is one file only ({next(iter(groups), 'none')}), so none can be held out",
            hint="give other audio to --validation",
        )
    drawn = np.random.default_rng([HOLD_OUT, seed]).permutation(len(groups))
    names, held_out_s, seconds = list(groups), share * sum(u.seconds for u in utterances), 0.0
    held: set[int] = set()
    for number in drawn[:-1]:  # one stays, whatever the share
        if seconds >= held_out_s:
            break
        held.update(groups[names[number]])
        seconds += sum(utterances[i].seconds for i in groups[names[number]])
    kept = tuple(u for i, u in enumerate(utterances) if i not in held)
    return HeldOut(kept, tuple(utterances[i] for i in sorted(held)), by)


def check_disjoint(training: Sequence[Utterance], held: Sequence[Utterance]) -> str:
    """``speakers`` or ``files``: what both sides certainly do not share. Raises RdError where they do share."""
    for by, ours, theirs in (
        ("files", {_place(u) for u in training}, {_place(u) for u in held}),
        ("speakers", {u.speaker for u in training} - {""}, {u.speaker for u in held} - {""}),
    ):
        if shared := sorted(ours & theirs):
            raise RdError(
                f"training and validation share {len(shared)} {by}: {', '.join(shared[:3])}",
                hint="give other audio to --validation, or a share such as 0.05",
            )
    return "speakers" if all(u.speaker for u in (*training, *held)) else "files"


def _place(utterance: Utterance) -> str:
    return f"{utterance.shard}/{utterance.path.name}" if utterance.shard else str(utterance.path.absolute())


def _groups(utterances: Sequence[Utterance]) -> tuple[str, dict[str, list[int]]]:
    """What is held out together: utterances of a speaker, where there are several and all are known, or of a file."""
    speakers = {u.speaker for u in utterances}
    by_speaker = "" not in speakers and len(speakers) > 1
    groups: dict[str, list[int]] = {}
    for number, utterance in enumerate(utterances):
        groups.setdefault(utterance.speaker if by_speaker else str(utterance.path), []).append(number)
    return ("speakers" if by_speaker else "files"), groups
