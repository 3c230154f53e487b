"""Heads in artifacts, on recordings that they were not trained on: detections, units, words and labels.

    OMP_NUM_THREADS=1 python -m benchmarks.heads spot SPEECH FLOAT INT8 --head keywords --json RESULT.json
    OMP_NUM_THREADS=1 python -m benchmarks.heads agreement SPEECH FLOAT INT8 --json RESULT.json
    OMP_NUM_THREADS=1 python -m benchmarks.heads alignment SPEECH FLOAT INT8 --head letters --json RESULT.json

SPEECH: a folder with keywords_pv, libri_speakers, libri_transcribed, train_extra, ljtext_single and digits_fsdd. FLOAT,
INT8: streaming bundles of one student with the same heads; all others are compared with the first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import Utterance, find_utterances
from reuse_distill.distill.tasks.fit_spot import word_of
from reuse_distill.distill.tasks.spot_data import Heard, judge_spot, other_speech
from reuse_distill.export.parity.task_parity import Rows, measure_heads
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.runtime.tasks import TaskOutput, align

from benchmarks import command
from benchmarks.timing import machine

TRAINED_BESIDE = ("libri_speakers/manifest.csv", "libri_transcribed/manifest.csv", "train_extra/coffee_commands")
UNSEEN = ("ljtext_single/manifest.csv", "train_extra/libri_two", "train_extra/german_kerstin")
KEYWORDS, LETTERS = "keywords_pv/manifest.csv", "libri_transcribed/manifest.csv"
AGREEMENT_SETS = {
    "units": LETTERS,
    "classify": "digits_fsdd/manifest.csv",
    "spot": KEYWORDS,
    "ctc": LETTERS,
}  # kind -> recordings, of which the test split is taken


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("what", choices=("spot", "agreement", "alignment"))
    parser.add_argument("speech", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--head", help="of the bundles (default: agreement measures all)")
    parser.add_argument("--seed", type=int, default=0, help="that rd-distill head spot divided other speech by")
    parser.add_argument("--held-out-only", action="store_true", help="spot: of other speech only what was divided")
    parser.add_argument("--set", action="append", default=[], help="agreement: another set of SPEECH, for all heads")
    args = parser.parse_args()
    encoders = {folder.name: Encoder.load(folder, threads=1) for folder in args.bundles}
    measure = {"spot": spot, "agreement": agreement, "alignment": alignment}[args.what]
    result = {"measured": args.what, "machine": machine(1), "results": measure(args, encoders)}
    print(result["results"])
    command.write_json(result, args.json)
    return 0


def spot(args: argparse.Namespace, encoders: dict[str, Encoder]) -> dict[str, Any]:
    """Misses, false alarms by set and together, delays, cost; and detections of each bundle that the first has too."""
    said = [(read_utterance(u), u.label) for u in _test(args.speech / KEYWORDS)]
    held_out = other_speech([args.speech / name for name in TRAINED_BESIDE], seed=args.seed)[1]
    sets = {"divided by speaker for the head": held_out}
    unseen = () if args.held_out_only else UNSEEN
    sets |= {name: list(find_utterances(args.speech / name).utterances) for name in unseen}
    results: dict[str, Any] = {}
    every: dict[str, list[np.ndarray]] = {}
    for name, encoder in encoders.items():
        output = encoder.manifest.head(args.head)
        start = time.process_time()
        rows = [_rows(encoder, samples, args.head) for samples, _ in said]
        spoken = [
            Heard(r, output.labels.index(label), word_of(samples)[1])
            for r, (samples, label) in zip(rows, said, strict=True)
        ]
        others = {key: [_rows(encoder, read_utterance(u), args.head) for u in part] for key, part in sets.items()}
        spent = time.process_time() - start
        joined = [Heard(one) for part in others.values() for one in part]
        seconds = sum(len(one.rows) for one in (*spoken, *joined)) / output.rate_hz
        figures = judge_spot(output, spoken, joined)
        results[name] = {
            **figures,
            "by_set": {
                key: {
                    f: judge_spot(output, [], [Heard(r) for r in part])[f]
                    for f in ("false_alarms", "other_speech_hours")
                }
                for key, part in others.items()
            },
            "stream_delay_after_word_s": _stream_delays(encoder, args.head, said),
            "processor_seconds_per_second": round(spent / seconds, 4),
        }
        every[name] = [*rows, *(one.rows for one in joined)]
    first = next(iter(encoders))
    output = encoders[first].manifest.head(args.head)
    for name in list(encoders)[1:]:
        results[name]["against " + first] = _compared(output, every[name], every[first])
    return results


def agreement(args: argparse.Namespace, encoders: dict[str, Encoder]) -> dict[str, Any]:
    """Per head and bundle: the share of frames with the first bundle's decision, and what a user sees of the others."""
    first, *others = encoders
    results: dict[str, Any] = {}
    for output in encoders[first].manifest.heads:
        if args.head not in (None, output.name):
            continue
        names = args.set or [AGREEMENT_SETS[output.kind]]
        waves = [read_utterance(u) for name in names for u in _test(args.speech / name)]
        reference = [_rows(encoders[first], wave, output.name) for wave in waves]
        results[output.name] = {
            name: _compared(output, [_rows(encoders[name], wave, output.name) for wave in waves], reference)
            for name in others
        }
        if output.kind == "classify":
            labels = [u.label for name in names for u in _test(args.speech / name)]
            for name, encoder in encoders.items():
                last = [encoder.events(wave, output.name)[-1].label for wave in waves]
                right = sum(a == b for a, b in zip(last, labels, strict=True))
                results[output.name][f"right in {name}"] = {"right": right, "of": len(labels)}
    return results


def alignment(args: argparse.Namespace, encoders: dict[str, Encoder]) -> dict[str, Any]:
    """Two recordings joined, their texts aligned: how far the second text's first word is from its recording's sound.

    And how far words begin from where the first bundle has them.
    """
    utterances = _test(args.speech / LETTERS)
    starts: dict[str, list[float]] = {name: [] for name in encoders}
    offsets: dict[str, list[float]] = {name: [] for name in encoders}
    for one, two in pairwise(utterances):
        before, after = read_utterance(one), read_utterance(two)
        before = before[: len(before) // HOP_SAMPLES * HOP_SAMPLES]
        sound_s = (len(before) / HOP_SAMPLES + word_of(after)[0]) * HOP_SAMPLES / SAMPLE_RATE_HZ
        for name, encoder in encoders.items():
            rows = _rows(encoder, np.concatenate([before, after]), args.head)
            words = align(encoder.manifest.head(args.head), rows, f"{one.label} {two.label}".lower())
            starts[name] += [word.start_s for word in words]
            offsets[name].append(words[len(one.label.split())].start_s - sound_s)
    first = next(iter(encoders))
    return {
        name: {
            "pairs": len(offsets[name]),
            "second_text_begins_s": _percentiles(np.abs(offsets[name])),
            "words": len(starts[name]),
            "word_starts_from_first_bundle_s": _percentiles(np.abs(np.subtract(starts[name], starts[first]))),
        }
        for name in encoders
    }


def _stream_delays(encoder: Encoder, head: str, said: Sequence[tuple[np.ndarray, str]]) -> dict[str, float] | str:
    """From the end of a word to the moment at which a stream, fed every 20 ms, reports it; without time to compute."""
    delays = []
    for samples, label in said:
        end_s = word_of(samples)[1] * HOP_SAMPLES / SAMPLE_RATE_HZ
        heard = next((at for at, name in _reported(encoder, head, samples) if name == label), None)
        if heard is not None:
            delays.append(heard - end_s)
    return _percentiles(delays) if delays else "unmeasured"


def _reported(encoder: Encoder, head: str, samples: np.ndarray) -> Iterator[tuple[float, str]]:
    stream, words = encoder.stream(), encoder.task_stream(head)
    padded = np.concatenate([samples, np.zeros(SAMPLE_RATE_HZ, np.float32)])
    for first in range(0, len(padded), HOP_SAMPLES):
        for frames in stream.push(padded[first : first + HOP_SAMPLES]):
            for event in words.push(frames.heads[head]):
                yield (first + HOP_SAMPLES) / SAMPLE_RATE_HZ, event.label


def _compared(output: TaskOutput, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, Any]:
    sides: list[list[Rows]] = [[{output.name: rows} for rows in side] for side in (ours, theirs)]
    return measure_heads([output], *sides)[output.name]


def _rows(encoder: Encoder, samples: np.ndarray, head: str) -> np.ndarray:
    rows: np.ndarray = encoder.frames(samples).heads[head]
    return rows


def _test(manifest: Path) -> list[Utterance]:
    return [u for u in find_utterances(manifest).utterances if u.split == "test"]


def _percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return {"p10": round(float(p10), 3), "median": round(float(median), 3), "p90": round(float(p90), 3)}


if __name__ == "__main__":
    raise SystemExit(main())
