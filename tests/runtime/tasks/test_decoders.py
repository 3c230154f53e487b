"""Decoders: results do not depend on how rows are cut, and are what the definitions say."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput, TaskStream, align, decode, decoder_of
from reuse_distill.runtime.tasks.ctc_decode import best_path
from reuse_distill.runtime.tasks.running_label import RunningLabel
from reuse_distill.runtime.tasks.spotting import Spotter

UNITS = TaskOutput("units", "units", 5)
LETTERS = TaskOutput("letters", "ctc", 4, ("<pad>", "|", "a", "b"), blank=0, delimiter="|")
TOKENS = TaskOutput("phones", "ctc", 3, ("-", "p", "q"), blank=0)
WHOLE = TaskOutput("mood", "classify", 3, ("calm", "glad", "sad"))
NEWEST = TaskOutput("mood", "classify", 3, ("calm", "glad", "sad"), window_s=0.3)
SPOT = TaskOutput(
    "keywords", "spot", 2, ("alexa", "jarvis"), parts=3, thresholds=(0.6, 0.6), smooth_frames=3, search_frames=20,
    refractory_s=0.4,
)  # fmt: skip
ALL = [UNITS, LETTERS, TOKENS, WHOLE, NEWEST, SPOT]


def rows_of(output: TaskOutput, frames: int, seed: int) -> np.ndarray:
    """Rows that stay alike for a few frames, as speech does."""
    random = np.random.default_rng(seed)
    if output.kind == "units":
        return np.repeat(random.integers(0, output.size, frames), random.integers(1, 5, frames))[:frames, None].astype(
            np.int32
        )
    logits = 4 * np.repeat(random.standard_normal((frames, output.columns)), 4, axis=0)[:frames]
    logits -= np.log(np.exp(logits).sum(1, keepdims=True)) if output.kind != "classify" else 0
    return (np.exp(logits) if output.kind == "spot" else logits).astype(np.float32)


@pytest.mark.parametrize("output", ALL, ids=lambda o: f"{o.name}-{o.kind}")
@settings(max_examples=25)
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(0, 13), min_size=1, max_size=30))
def test_streamed_is_offline_for_every_cut(output: TaskOutput, seed: int, sizes: list[int]) -> None:
    rows = rows_of(output, 90, seed)
    stream, events, at = TaskStream(decoder_of(output)), [], 0
    for size in itertools.islice(itertools.cycle([*sizes, 1]), 200):
        events += stream.push(rows[at : at + size])
        at += size
    events += [*stream.push(rows[at:]), *stream.finish()]
    assert events == decode(decoder_of(output), rows)


@pytest.mark.parametrize("output", ALL, ids=lambda o: f"{o.name}-{o.kind}")
def test_nothing_comes_of_nothing_and_a_state_is_not_changed_in_place(output: TaskOutput) -> None:
    decoder = decoder_of(output)
    assert decode(decoder, rows_of(output, 0, 0)) == []
    state, _ = decoder.step(decoder.start(), rows_of(output, 40, 1))
    first = decoder.step(state, rows_of(output, 40, 2))[1]
    assert decoder.step(state, rows_of(output, 40, 2))[1] == first
    with pytest.raises(RdError, match="rows of shape"):
        decoder.step(state, np.zeros((3, output.columns + 1), np.float32))


def test_units_come_once_with_their_durations() -> None:
    events = decode(decoder_of(UNITS), np.array([[3], [3], [0], [4], [4], [4]], np.int32))
    assert [(e.label, e.start_s, e.end_s) for e in events] == [("3", 0.0, 0.04), ("0", 0.04, 0.06), ("4", 0.06, 0.12)]


def spelled(text: str, output: TaskOutput) -> np.ndarray:
    """Log-probabilities whose best labels are ``text``, ``.`` for blank."""
    rows = np.full((len(text), output.size), np.log(0.02))
    for row, letter in zip(rows, text, strict=True):
        row[output.blank if letter == "." else output.labels.index(letter)] = np.log(0.9)
    return rows.astype(np.float32)


def test_ctc_merges_repeats_drops_blanks_and_ends_words() -> None:
    events = decode(decoder_of(LETTERS), spelled("..aa.ab..||b.b", LETTERS))
    assert [(e.label, e.start_s, e.end_s) for e in events] == [("aab", 0.04, 0.14), ("bb", 0.22, 0.28)]
    assert events[0].score == pytest.approx(0.9, abs=1e-3)
    assert [e.label for e in decode(decoder_of(TOKENS), spelled("p.pqq.", TOKENS))] == ["p", "p", "q"]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6), st.lists(st.integers(1, 2), min_size=1, max_size=3))
def test_the_aligner_finds_the_best_of_all_paths(seed: int, more: int, labels: list[int]) -> None:
    """Against every path there is, by brute force."""
    random = np.random.default_rng(seed)
    frames = len(labels) + sum(a == b for a, b in itertools.pairwise(labels)) + more
    frames = min(frames, 7)
    logits = random.standard_normal((frames, 3))
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))

    def collapsed(path: tuple[int, ...]) -> list[int]:
        return [k for k, _ in itertools.groupby(path) if k]

    scores = [
        sum(logits[t, k] for t, k in enumerate(path))
        for path in itertools.product(range(3), repeat=frames)
        if collapsed(path) == labels
    ]
    if not scores:
        with pytest.raises(RdError, match="labels need"):
            best_path(logits, labels, 0)
        return
    path, score = best_path(logits, labels, 0)
    extended = [0, *itertools.chain.from_iterable((label, 0) for label in labels)]
    assert score == pytest.approx(max(scores)) and collapsed(tuple(extended[s] for s in path)) == labels


def test_words_are_aligned_where_they_are_spoken() -> None:
    rows = spelled("..aa.b..|.bb.a", LETTERS)
    events = align(LETTERS, rows, "ab ba")
    assert [(e.label, e.start_s, e.end_s) for e in events] == [("ab", 0.04, 0.12), ("ba", 0.2, 0.28)]
    assert [e.label for e in align(TOKENS, spelled("p.q", TOKENS), "pq")] == ["p", "q"]
    with pytest.raises(RdError, match="'z' is not a label"):
        align(LETTERS, rows, "az")
    with pytest.raises(RdError, match="10 labels need 19 frames"):
        align(LETTERS, rows, "a" * 10)
    with pytest.raises(RdError, match="no text to align"):
        align(LETTERS, rows, "  ")


def test_the_running_label_is_the_mean_of_all_and_the_windowed_one_of_the_newest() -> None:
    logits = np.zeros((100, 3), np.float32)
    logits[:60, 1], logits[60:, 2] = 2, 2
    events = decode(decoder_of(WHOLE), logits)
    assert [e.label for e in events] == ["glad", "glad"], "60 frames against 40: the whole stays glad"
    assert events[0].end_s == 0.5 and events[-1].end_s == 2.0
    newest = decode(decoder_of(NEWEST), logits)
    assert [e.label for e in newest] == ["glad", "sad", "sad"]
    assert newest[1].end_s == pytest.approx((60 + 8) / 50) and newest[-1].start_s == pytest.approx(2.0 - 0.3)
    state, _ = RunningLabel(WHOLE).step(RunningLabel(WHOLE).start(), logits[:7])
    assert RunningLabel(WHOLE).mean(state) == pytest.approx(logits[:7].mean(0))


def parts(order: list[int], frames: int = 40) -> np.ndarray:
    """Probabilities: everything else, but for three frames of each part in ``order`` from frame 10 on."""
    rows = np.full((frames, SPOT.columns), 0.01)
    rows[:, 0] = 1 - 0.01 * (SPOT.columns - 1)
    for number, part in enumerate(order):
        at = slice(10 + 3 * number, 13 + 3 * number)
        rows[at, 0], rows[at, 1 + part] = 0.04, 0.92
    return rows.astype(np.float32)


def test_a_keyword_is_detected_once_and_only_with_its_parts_in_order() -> None:
    events = decode(decoder_of(SPOT), parts([0, 1, 2]))
    assert [e.label for e in events] == ["alexa"] and 0.6 <= events[0].score <= 1
    assert events[0].end_s <= 19 / 50 and events[0].start_s >= 0.2
    assert [e.label for e in decode(decoder_of(SPOT), parts([3, 4, 5]))] == ["jarvis"]
    assert decode(decoder_of(SPOT), parts([2, 1, 0])) == [] and decode(decoder_of(SPOT), parts([0, 4, 2])) == []


def test_refractory_time_and_the_next_detection() -> None:
    soon = np.concatenate([parts([0, 1, 2])[:20], parts([0, 1, 2])[10:]])
    assert len(decode(decoder_of(SPOT), soon)) == 1, "a second one within 0.4 s"
    later = np.concatenate([parts([0, 1, 2]), parts([0, 1, 2])])
    assert len(decode(decoder_of(SPOT), later)) == 2
    rows = rows_of(SPOT, 300, 7)
    eager = Spotter(dataclasses.replace(SPOT, thresholds=(0.0, 0.0), refractory_s=0.0))
    state, events = eager.start(), []
    for row in rows:  # a threshold of 0 detects at every frame, and uses the past up
        state = dataclasses.replace(state, used=np.zeros(2, np.int64))
        state, now = eager.step(state, row[None])
        events += now
    scores = Spotter(SPOT).scores(rows)
    assert scores == pytest.approx(np.array([e.score for e in events]).reshape(300, 2))
    peak = Spotter(SPOT).scores(parts([0, 1, 2]))
    assert peak.shape == (40, 2) and peak[:, 0].max() > 0.6 > peak[:, 1].max()


def test_a_projection_has_no_events() -> None:
    with pytest.raises(RdError, match="it has no events"):
        decoder_of(TaskOutput("vectors", "projection", 8))


def test_frames_that_a_spotter_leaves_out_could_not_have_detected() -> None:
    """Only frames near the threshold are looked at one by one: the detections are those of looking at all."""
    output = TaskOutput(
        "k", "spot", 2, ("one", "two"), parts=3, thresholds=(0.4, 0.3), smooth_frames=3, search_frames=12
    )
    spotter, random = Spotter(output), np.random.default_rng(0)
    rows = random.dirichlet(np.full(7, 0.3), size=400).astype(np.float32)
    state, events = spotter.start(), []
    for part in np.split(rows, [1, 5, 130, 131, 260]):
        state, new = spotter.step(state, part)
        events += new
    everywhere = Spotter(output)
    everywhere._highest = lambda padded, count: np.full((count, 2), np.inf)  # type: ignore[method-assign]
    _, expected = everywhere.step(everywhere.start(), rows)
    assert events == expected and len(events) > 5
