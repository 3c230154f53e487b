"""CTC: labels of a stream, and where each label of a known text is.

Greedy in a stream: the best label of every frame, repeats merged, blanks dropped (Graves 2006, section 3.2).

Alignment is the best CTC path through a text, exactly, by Viterbi. The states of a text of L labels are blank, l1,
blank, l2, …, blank: 2 L + 1 (Graves 2006, section 4.1). A path stays, goes to the next state, or skips a blank between
two different labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks.contract import TaskEvent, TaskOutput, check_rows

MOST_CELLS = 200_000_000  # frames x states: the path's memory, a byte each


@dataclass(frozen=True)
class OpenWord:
    """State: the run of one label that has not ended, and the word that it belongs to."""

    label: int = -1  # of the run; -1 before the first frame
    first: int = 0  # frame where the run began
    best: float = 0.0  # its largest probability
    frames: int = 0  # of the stream so far
    word: tuple[str, ...] = ()
    word_first: int = 0
    word_last: int = 0  # frame after the last label of the word
    word_scores: tuple[float, ...] = ()


class GreedyCtc:
    """Decoder of ``ctc``: words where the contract names a delimiter, else every label by itself.

    A label's time is its run of frames, its score the run's largest probability; a word's score is the mean of its
    labels'.
    """

    def __init__(self, output: TaskOutput) -> None:
        self.output = output

    def start(self) -> OpenWord:
        return OpenWord()

    def step(self, state: OpenWord, rows: np.ndarray) -> tuple[OpenWord, list[TaskEvent]]:
        """``rows`` (n, K) of log-probabilities."""
        check_rows(self.output, rows)
        events: list[TaskEvent] = []
        labels, scores = rows.argmax(1).tolist(), np.exp(rows.max(1, initial=-np.inf).astype(np.float64)).tolist()
        for label, score in zip(labels, scores, strict=True):
            if label == state.label:
                state = replace(state, best=max(state.best, score), frames=state.frames + 1)
                continue
            state, ended = self._end_run(state)
            events += ended
            state = replace(state, label=label, first=state.frames, best=score, frames=state.frames + 1)
        return state, events

    def finish(self, state: OpenWord) -> list[TaskEvent]:
        state, events = self._end_run(state)
        return [*events, *self._end_word(state)[1]]

    def _end_run(self, state: OpenWord) -> tuple[OpenWord, list[TaskEvent]]:
        """The run becomes part of the word, or ends it."""
        if state.label in (-1, self.output.blank):
            return state, []
        label = self.output.labels[state.label]
        if not self.output.delimiter:
            return state, [self._event(label, state.first, state.frames, [state.best])]
        if label == self.output.delimiter:
            return self._end_word(state)
        return replace(
            state,
            word=(*state.word, label),
            word_first=state.word_first if state.word else state.first,
            word_last=state.frames,
            word_scores=(*state.word_scores, state.best),
        ), []

    def _end_word(self, state: OpenWord) -> tuple[OpenWord, list[TaskEvent]]:
        if not state.word:
            return state, []
        event = self._event("".join(state.word), state.word_first, state.word_last, state.word_scores)
        return replace(state, word=(), word_scores=()), [event]

    def _event(self, text: str, first: int, last: int, scores: tuple[float, ...] | list[float]) -> TaskEvent:
        rate = self.output.rate_hz
        return TaskEvent(text, first / rate, last / rate, sum(scores) / len(scores))


def best_path(log_probabilities: np.ndarray, labels: Sequence[int], blank: int) -> tuple[np.ndarray, float]:
    """The state (F,) of every frame, 0 .. 2 L, and the path's log-probability; ``log_probabilities`` (F, K).

    Raises RdError where the text does not fit into the frames.
    """
    frames, count = len(log_probabilities), len(labels)
    repeats = sum(a == b for a, b in pairwise(labels))
    if frames < max(count + repeats, 1):
        raise RdError(
            f"{count} labels need {count + repeats} frames, there are {frames}", hint="is it the text of this audio?"
        )
    states = 2 * count + 1
    if frames * states > MOST_CELLS:
        raise RdError(f"{frames} frames and {count} labels are too many at once", hint="align shorter pieces")
    extended = np.full(states, blank, np.int64)
    extended[1::2] = labels
    may_skip = np.zeros(states, bool)
    may_skip[3::2] = extended[3::2] != extended[1:-2:2]
    emitted = log_probabilities.astype(np.float64)[:, extended]  # (F, 2 L + 1)
    score = np.full(states, -np.inf)
    score[:2] = emitted[0, :2]
    back = np.zeros((frames, states), np.int8)
    for t in range(1, frames):
        one = np.concatenate([[-np.inf], score[:-1]])
        two = np.where(may_skip, np.concatenate([[-np.inf, -np.inf], score[:-2]])[:states], -np.inf)
        choices = np.stack([score, one, two])
        back[t] = choices.argmax(0)
        score = choices.max(0) + emitted[t]
    last = states - 1 if states == 1 or score[-1] >= score[-2] else states - 2
    path = np.empty(frames, np.int64)
    path[-1] = last
    for t in range(frames - 1, 0, -1):
        path[t - 1] = path[t] - back[t, path[t]]
    return path, float(score[last])


def align(output: TaskOutput, log_probabilities: np.ndarray, text: str) -> list[TaskEvent]:
    """The words of ``text`` with their times (its labels, where the contract has no delimiter between words).

    Labels are letters (one character each). A word's score is the mean probability of its letters at their frames.
    Raises RdError for a character that is no label and for a text that does not fit.
    """
    check_rows(output, log_probabilities)
    words = text.split() if output.delimiter else [text]
    letters = [list(word) for word in words]
    known = {label: number for number, label in enumerate(output.labels)}
    missing = [letter for word in letters for letter in word if letter not in known]
    if missing:
        raise RdError(
            f"{missing[0]!r} is not a label of head {output.name!r}", hint=f"it has {' '.join(output.labels[:40])}"
        )
    if not any(letters):
        raise RdError("there is no text to align")
    sequence: list[str] = []
    owner: list[int] = []  # word of each label; -1: delimiter
    for number, word in enumerate(letters):
        if number:
            sequence.append(output.delimiter)
            owner.append(-1)
        sequence += word
        owner += [number] * len(word)
    assert output.blank is not None  # noqa: S101  (the contract has seen to it)
    numbers = [known[label] for label in sequence]
    path, _ = best_path(log_probabilities, numbers, output.blank)
    groups = owner if output.delimiter else list(range(len(sequence)))
    names = words if output.delimiter else sequence
    return [
        _event(output, log_probabilities, path, numbers, [i for i, g in enumerate(groups) if g == group], name)
        for group, name in enumerate(names)
    ]


def _event(
    output: TaskOutput,
    log_probabilities: np.ndarray,
    path: np.ndarray,
    numbers: list[int],
    members: list[int],
    name: str,
) -> TaskEvent:
    frames = [np.flatnonzero(path == 2 * i + 1) for i in members]
    scores = [
        float(np.exp(log_probabilities[f, numbers[i]].astype(np.float64)).mean())
        for i, f in zip(members, frames, strict=True)
    ]
    first, last = int(frames[0][0]), int(frames[-1][-1]) + 1
    return TaskEvent(name, first / output.rate_hz, last / output.rate_hz, sum(scores) / len(scores))


def edit_distance(ours: Sequence[object], theirs: Sequence[object]) -> int:
    """Levenshtein distance between two sequences."""
    row = list(range(len(theirs) + 1))
    for i, one in enumerate(ours, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(theirs, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (one != other))
    return row[-1]
