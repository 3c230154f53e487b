"""Keywords from the probabilities of their parts: smoothing, a search for all parts in order, a refractory time.

After Chen, Parada and Heigold, "Small-footprint keyword spotting using deep neural networks" (ICASSP 2014, section
2.3): probabilities are smoothed, and the score of a keyword is the geometric mean of the largest smoothed probability
of each part within a window. Here the parts have to come in order, which few other words do.

Shapes: n new frames, S parts, K keywords, w frames of the search window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reuse_distill.runtime.tasks.contract import TaskEvent, TaskOutput, check_rows

FLOOR = 1e-6  # of a probability
BLOCK = 1024  # frames scored at once


@dataclass(frozen=True, eq=False)
class SpotState:
    """State: what the next frames' scores depend on."""

    recent: np.ndarray  # (<= smooth - 1, 1 + K S) newest probabilities
    smoothed: np.ndarray  # (<= w - 1, K, S) newest smoothed logarithms
    frames: int  # of the stream so far
    used: np.ndarray  # (K,) frames up to which a detection has used up the past of each keyword


class Spotter:
    """Decoder of ``spot``: an event per detection, at the frame where its score reaches the threshold."""

    def __init__(self, output: TaskOutput) -> None:
        self.output = output
        self.refractory = round(output.refractory_s * output.rate_hz)
        self.thresholds = np.asarray(output.thresholds)

    def start(self) -> SpotState:
        keywords, parts = self.output.size, self.output.parts
        columns = self.output.columns
        return SpotState(np.zeros((0, columns)), np.zeros((0, keywords, parts)), 0, np.zeros(keywords, np.int64))

    def step(self, state: SpotState, rows: np.ndarray) -> tuple[SpotState, list[TaskEvent]]:
        """``rows`` (n, 1 + K S) of probabilities."""
        rows = check_rows(self.output, rows)
        joined, new = self._smoothed(state, rows)
        window = np.concatenate([state.smoothed, new])
        before, used, events = len(state.smoothed), state.used.copy(), []
        missing = np.full((self.output.search_frames - 1 - before, *new.shape[1:]), np.log(FLOOR))
        highest = self._highest(np.concatenate([missing, window]), len(new))
        for i in np.flatnonzero((highest >= self.thresholds).any(1)).tolist():
            now = state.frames + i + 1  # frames heard
            end = before + i + 1
            part = window[max(0, end - self.output.search_frames) : end]
            scores, starts = self._scores(part, used, now - len(part))
            for keyword in np.flatnonzero(scores >= self.thresholds).tolist():
                events.append(self._event(keyword, float(scores[keyword]), int(starts[keyword]), now))
                used[keyword] = now + self.refractory
        keep = self.output.search_frames - 1
        recent = joined[len(joined) - min(len(joined), self.output.smooth_frames - 1) :]
        window = window[len(window) - min(len(window), keep) :]
        return SpotState(recent, window, state.frames + len(new), used), events

    def finish(self, state: SpotState) -> list[TaskEvent]:
        """Nothing: a detection is reported when it is made."""
        return []

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """The score of every keyword at every frame of a whole recording (F, 1 + K S): (F, K), no refractory time."""
        _, logs = self._smoothed(self.start(), check_rows(self.output, rows))
        before = np.full((self.output.search_frames - 1, *logs.shape[1:]), np.log(FLOOR))
        padded = np.concatenate([before, logs])
        return self._highest(padded, len(logs))

    def _highest(self, padded: np.ndarray, count: int) -> np.ndarray:
        """Scores (n, K) of the last ``count`` frames of ``padded`` (w - 1 + n, K, S), as if none were used up.

        A detection that uses frames up can only lower a score: below the threshold here is below it there.
        """
        scores = np.zeros((count, self.output.size))
        for first in range(0, count, BLOCK):
            size = min(BLOCK, count - first)
            part = padded[first : first + size + self.output.search_frames - 1]
            windows = np.lib.stride_tricks.sliding_window_view(part, self.output.search_frames, axis=0)  # (n, K, S, w)
            best = windows[..., 0, :]
            for number in range(1, self.output.parts):
                best = np.maximum.accumulate(best, axis=-1) + windows[..., number, :]
            scores[first : first + size] = np.exp(best.max(-1) / self.output.parts)
        return scores

    def _smoothed(self, state: SpotState, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities with those before, logarithms (n, K, S) of the smoothed new ones)."""
        joined = np.concatenate([state.recent, rows.astype(np.float64)])
        before, size = len(state.recent), self.output.smooth_frames
        means = [joined[max(0, end - size) : end].mean(0) for end in range(before + 1, before + len(rows) + 1)]
        smooth = np.stack(means)[:, 1:] if means else np.zeros((0, joined.shape[1] - 1))
        return joined, np.log(np.maximum(smooth, FLOOR)).reshape(-1, self.output.size, self.output.parts)

    def _scores(self, window: np.ndarray, used: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        """(score, frame where it begins) of each keyword, (K,) both; ``window`` (w, K, S) begins at frame ``first``.

        Frames that a detection has used up count as if the part were not there.
        """
        frames = np.arange(first, first + len(window))
        free = frames[:, None] >= used  # (w, K)
        best = np.where(free, window[..., 0], np.log(FLOOR))  # (w, K): of the parts so far, the last one here
        starts = np.broadcast_to(frames[:, None], best.shape)
        for part in range(1, self.output.parts):
            best, at = _running_maximum(best)
            starts = np.take_along_axis(starts, at, axis=0)
            best = best + np.where(free, window[..., part], np.log(FLOOR))
        at = best.argmax(0)
        columns = np.arange(best.shape[1])
        return np.exp(best[at, columns] / self.output.parts), starts[at, columns]

    def _event(self, keyword: int, score: float, first: int, now: int) -> TaskEvent:
        rate = self.output.rate_hz
        return TaskEvent(self.output.labels[keyword], first / rate, now / rate, score)


def _running_maximum(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the largest of each column so far, the row where it is), (w, K) both."""
    largest = np.maximum.accumulate(values, axis=0)
    new = np.concatenate([np.ones_like(values[:1], bool), values[1:] > largest[:-1]])
    rows = np.where(new, np.arange(len(values))[:, None], 0)
    return largest, np.maximum.accumulate(rows, axis=0)
