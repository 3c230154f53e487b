"""Greedy CTC in a stream: the best label of every frame, repeats merged, blanks dropped (Graves 2006, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from reuse_distill.runtime.tasks.contract import TaskOutput
from reuse_distill.runtime.tasks.task_event import TaskEvent, check_rows


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
