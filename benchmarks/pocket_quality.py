"""Probes of a student through torch and, where a bundle is given, of its artifact through the runtime; other levels.

    OMP_NUM_THREADS=1 python -m benchmarks.pocket_quality STUDENT SPEECH --bundle BUNDLE --output RESULT.json

SPEECH: a folder with digits_fsdd, keywords_pv, libri_transcribed and libri_speakers, each with a manifest.csv. The
probes are those of rd-distill evaluate. Levels: frame cosine of the features of held-out recordings at a gain to those
without. The teacher's own probes with --targets DIR, where DIR/SET holds what rd-distill targets made of each set: one
window of 30 s for each digit would take hours, recordings that share windows take minutes. Its features are then what
students learn: normed layers without what a position of the window adds. Then also the mean squared error of each layer
of each student to the teacher's, on the speakers of libri_transcribed that nothing was trained on.

    for SET in digits_fsdd keywords_pv libri_transcribed; do rd-distill targets --teacher T \
        --data SPEECH/$SET/manifest.csv --position-mean TARGETS --output DIR/$SET; done
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.evaluation.evaluate import Probe, evaluate, table
from reuse_distill.distill.evaluation.features import Features, of_bundle, of_log_mel, of_student, of_teacher
from reuse_distill.distill.files import write_json
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.stored import TargetStore, utterance_key
from reuse_distill.runtime import Encoder
from reuse_distill.student import load_checkpoint
from torch import Tensor

from benchmarks.pocket_choices import held_out

PROBES = {
    "digits": ("label", "digits_fsdd"),
    "keywords": ("label", "keywords_pv"),
    "letters": ("ctc", "libri_transcribed"),
}
GAINS_DB = (-20, 6)
RECORDINGS, SECONDS = 20, 5  # of each gain


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--bundle", type=Path, help="its artifact")
    parser.add_argument("--also", type=Path, action="append", default=[], help="other students")
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--targets", type=Path, metavar="DIR", help="the teacher's layers of each set, made before")
    parser.add_argument("--no-levels", action="store_true")
    parser.add_argument("--log-mel", action="store_true")
    parser.add_argument("--quiet", action="store_true", help="the student's probes 20 dB quieter too")
    parser.add_argument("--probes", default=",".join(PROBES))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    student = of_student("student", load_checkpoint(args.student))
    sources = [student]
    if args.bundle:
        sources.append(of_bundle("artifact", Encoder.load(args.bundle, threads=1)))
    if args.quiet:
        sources.append(at_gain(student, GAINS_DB[0]))
    sources += [of_student(path.name, load_checkpoint(path)) for path in args.also]
    if args.log_mel:
        sources.append(of_log_mel())
    if args.teacher:
        sources.append(of_teacher("teacher", open_teacher(args.teacher)))
    sets = [PROBES[probe] for probe in args.probes.split(",")]
    probes = [Probe(kind, args.speech / name / "manifest.csv") for kind, name in sets]
    if args.targets:
        sources.append(of_targets("teacher", {probe.data: args.targets / probe.data.parent.name for probe in probes}))
    gains = () if args.no_levels else GAINS_DB
    levels = {f"{gain} dB": cosines(student, args.speech, gain) for gain in gains}
    print(levels, file=sys.stderr, flush=True)
    results: dict[str, Any] = {"levels": levels, "threads": torch.get_num_threads()}
    if args.targets:
        results["error_on_unseen_speakers"] = errors([args.student, *args.also], args.targets, args.speech)
        print(results["error_on_unseen_speakers"], file=sys.stderr, flush=True)
    results |= evaluate(sources, probes, report=lambda line: print(line, file=sys.stderr, flush=True))
    print(table(results))
    if args.output:
        write_json(args.output, results)
    return 0


def errors(students: Sequence[Path], targets: Path, speech: Path) -> dict[str, list[float]]:
    """Of every layer, in the student's own context: {student: errors}."""
    name = PROBES["letters"][1]
    store, manifest = TargetStore(targets / name, target_norm="layer"), speech / name / "manifest.csv"
    return {str(path): held_out(load_checkpoint(path).eval(), store, manifest) for path in students}


def of_targets(name: str, folders: dict[Path, Path]) -> Features:
    """The teacher's layers as students learn them, of the recordings of manifests: {manifest: its targets}."""
    stored: dict[str, tuple[TargetStore, str]] = {}
    for manifest, folder in folders.items():
        store = TargetStore(folder, target_norm="layer")
        for utterance in find_utterances(manifest).utterances:
            stored[_content(torch.from_numpy(read_utterance(utterance)))] = store, utterance_key(utterance)

    def extract(samples: Tensor) -> Tensor:
        store, key = stored[_content(samples)]
        return torch.from_numpy(store.frames(key, 0, store.count(key)))

    parameters = {store.info.parameters for store, _ in stored.values()}
    return Features(name, max(parameters), extract)


def _content(samples: Tensor) -> str:
    return hashlib.sha256(samples.numpy().tobytes()).hexdigest()


def at_gain(source: Features, gain_db: float) -> Features:
    """The source of everything at another level."""
    factor = 10 ** (gain_db / 20)
    return Features(
        f"{source.name} at {gain_db} dB", source.parameters, lambda samples: source.extract(samples * factor)
    )


def cosines(source: Features, speech: Path, gain_db: float) -> dict[str, float]:
    """Mean frame cosine of all layers and of the last, and its 5 % quantile, of held-out speakers."""
    utterances = find_utterances(speech / "libri_speakers" / "manifest.csv", split="test").utterances[:RECORDINGS]
    rows = []
    for utterance in utterances:
        wave: NDArray[np.float32] = read_utterance(utterance)[: SECONDS * 16_000]
        pair = source(wave), source((wave * 10 ** (gain_db / 20)).astype(np.float32))
        rows.append(torch.nn.functional.cosine_similarity(*pair, dim=-1))
    every = torch.cat(rows, dim=1)  # (N, F)
    return {
        "mean": float(every.mean()),
        "last_layer": float(every[-1].mean()),
        "last_layer_5_percent": float(every[-1].quantile(0.05)),
    }


if __name__ == "__main__":
    sys.exit(main())
