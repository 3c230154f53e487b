"""Which loss and which reuse make the better small student? Distil several with several seeds, and probe them all.

    OMP_NUM_THREADS=1 python -m benchmarks.quality ../shared/speech --teacher TEACHER

TEACHER has to know masks, such as a HuBERT (the figures of the page are of a toy that is no longer shipped).
AUDIO holds the sets libri_speakers, libri_transcribed and ljtext_single, whose rows of the split `train` are trained on
(with demo/speech), and digits_fsdd and keywords_pv, which are for probes alone. Students are equal in steps, data and
parameters. No test speaker was heard by teacher or students. Runs that are already in --work are not made again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.evaluation.evaluate import Probe, probe_sources
from reuse_distill.distill.evaluation.features import Features, of_log_mel, of_student, of_teacher
from reuse_distill.distill.files import write_json
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.student import Student, load_checkpoint

from benchmarks.quality_table import markdown, summary
from benchmarks.timing import machine
from demo.make_weights import HALF, STUDENTS, WEIGHTS, manifests

SETS = ("libri_speakers", "libri_transcribed", "ljtext_single")
PIECE_S = 2.0  # of the speaker probe
OUT = Path(__file__).parent / "results" / "quality.json"


@dataclass(frozen=True)
class Variant:
    """A recipe and what is changed in it."""

    name: str
    recipe: str
    changes: tuple[str, ...] = ()


VARIANTS = (
    Variant("masking", "tiny"),
    Variant("hint", "tiny-hint"),
    Variant("renormalised", "tiny", ("student.changes.reuse_mode=renormalised",)),
    Variant("star", "tiny-star", ("student.changes.head_width=null",)),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("audio", type=Path, metavar="AUDIO")
    p.add_argument("--teacher", type=Path, required=True)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--work", type=Path, default=Path("runs/quality"), metavar="DIR")
    p.add_argument("--output", type=Path, default=OUT, metavar="JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, probe, write JSON, print the table."""
    args = parser().parse_args(argv)
    work: Path = args.work
    manifests([args.audio / name for name in SETS], work)
    students = {variant.name: [distil(variant, seed, args, work) for seed in range(args.seeds)] for variant in VARIANTS}
    speakers = pieces(args.audio / "libri_speakers" / "manifest.csv", work / "speakers")
    probes = [
        Probe("label", args.audio / "digits_fsdd" / "manifest.csv"),
        Probe("label", args.audio / "keywords_pv" / "manifest.csv"),
        Probe("speaker", speakers),
        Probe("ctc", args.audio / "libri_transcribed" / "manifest.csv"),
    ]
    probed = [probe_sources(probe, sources(students, args), report=partial(print, file=sys.stderr)) for probe in probes]
    results = {
        "note": "probes on the data named here; not SUPERB",
        "steps": args.steps,
        "seeds": args.seeds,
        "machine": machine(torch.get_num_threads()),
        "probes": [summary(one) for one in probed],
    }
    write_json(args.output, results)
    print(markdown(results))
    return 0


def distil(variant: Variant, seed: int, args: argparse.Namespace, work: Path) -> Path:
    """The student of one run, made unless it is there."""
    output = work / f"{variant.name}-{seed}"
    if not (output / "student" / "config.json").is_file():
        words = [
            sys.executable,
            "-m",
            "reuse_distill.distill.cli",
            "run",
            variant.recipe,
            "--teacher",
            args.teacher,
            "--data",
        ]
        words += [work / "train.csv", "--output", output, "--steps", str(args.steps), "--seed", str(seed)]
        subprocess.run([*map(str, words), *HALF, *variant.changes], check=True)
    return output / "student"


def pieces(manifest: Path, folder: Path) -> Path:
    """A manifest of 2 s pieces of the speakers of ``test``: the first half of each recording trains, the rest tests."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,speaker,split"]
    size = round(PIECE_S * SAMPLE_RATE_HZ)
    for utterance in find_utterances(manifest, split="test").utterances:
        samples = read_utterance(utterance)
        count = len(samples) // size
        for number in range(count):
            name = f"{utterance.speaker}-{number}.flac"
            soundfile.write(folder / name, samples[number * size : (number + 1) * size], SAMPLE_RATE_HZ)
            lines.append(f"{name},{utterance.speaker},{'train' if number < count // 2 else 'test'}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "manifest.csv"


def sources(students: dict[str, list[Path]], args: argparse.Namespace) -> Iterator[Features]:
    """Log-mel, the teacher, untrained students, those distilled here (``variant/seed``), and those that are shipped."""
    yield of_log_mel()
    yield of_teacher("teacher", open_teacher(args.teacher))
    config = load_checkpoint(students["masking"][0]).config
    for seed in range(args.seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield of_student(f"untrained/{seed}", Student(config))
    for name, checkpoints in students.items():
        for seed, checkpoint in enumerate(checkpoints):
            yield of_student(f"{name}/{seed}", load_checkpoint(checkpoint))
    for name in STUDENTS:
        yield of_student(f"{name} as shipped", load_checkpoint(WEIGHTS / name))


if __name__ == "__main__":
    sys.exit(main())
