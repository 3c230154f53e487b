"""Does quantisation-aware fine-tuning make int8 lose less than calibration alone? With a control of equal steps.

    OMP_NUM_THREADS=1 python -m benchmarks.qat ../shared/speech --student STUDENT --teacher TEACHER

A student of the recipe `tiny` as it is; fine-tuned with the recipe `tiny-int8`; and fine-tuned just as long in float.
Each is exported to int8 with the same calibration. AUDIO as in benchmarks.quality.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill.evaluation.evaluate import Probe, probe_sources
from reuse_distill.distill.evaluation.features import Features, of_student
from reuse_distill.distill.files import write_json
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.student import load_checkpoint
from torch import Tensor

from benchmarks.quality import SETS
from benchmarks.quality_table import differences, summary
from benchmarks.timing import machine
from demo.data import write_manifest
from demo.make_weights import HALF, manifests

OUT = Path(__file__).parent / "results" / "qat.json"
PROBED = ("keywords_pv", "digits_fsdd")
PLAIN, AWARE, CONTROL = "calibration alone", "quantisation-aware", "fine-tuned in float"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("audio", type=Path, metavar="AUDIO")
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--student", type=Path, required=True)
    p.add_argument("--teacher", type=Path, required=True, help="what taught it")
    p.add_argument("--work", type=Path, default=Path("runs/qat"), metavar="DIR")
    p.add_argument("--output", type=Path, default=OUT, metavar="JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune, export and probe what is missing in --work; write JSON and print it."""
    args = parser().parse_args(argv)
    manifests([args.audio / name for name in SETS], args.work)
    unseen = find_recordings(args.audio / "libri_transcribed" / "manifest.csv", split="test")
    write_manifest(args.work / "unseen.csv", unseen, "test")
    checkpoints = {
        PLAIN: args.student,
        AWARE: tuned(args, "aware", "training.fake_quant=true"),
        CONTROL: tuned(args, "control", "training.fake_quant=false"),
    }
    bundles = {name: exported(args, name, checkpoint) for name, checkpoint in checkpoints.items()}
    probes = [Probe("label", args.audio / name / "manifest.csv") for name in PROBED]
    probed = [
        probe_sources(probe, sources(checkpoints, bundles), report=partial(print, file=sys.stderr)) for probe in probes
    ]
    results: dict[str, Any] = {
        "steps": args.steps,
        "machine": machine(torch.get_num_threads()),
        "int8": {name: kept_of(bundle) for name, bundle in bundles.items()},
        "probes": [summary(one) for one in probed],
        "int8_minus_float": [
            {"data": one.facts["data"], **{name: differences(one, f"{name}, int8", name) for name in checkpoints}}
            for one in probed
        ],
    }
    write_json(args.output, results)
    for name, kept in results["int8"].items():
        print(name, kept)
    for one in results["probes"]:
        print(one["data"], *(f"{row['source']} {row['value']:.3f}" for row in one["results"]), sep="\n  ")
    return 0


def tuned(args: argparse.Namespace, name: str, setting: str) -> Path:
    """The student after more steps of the recipe ``tiny-int8``."""
    output = args.work / name
    if not (output / "student" / "config.json").is_file():
        words = [sys.executable, "-m", "reuse_distill.distill.cli", "run", "tiny-int8", "--teacher", args.teacher]
        words += ["--init", args.student, "--data", args.work / "train.csv", "--output", output]
        subprocess.run([*map(str, words), "--steps", str(args.steps), *HALF[1:], setting], check=True)
    return Path(output / "student")


def exported(args: argparse.Namespace, name: str, checkpoint: Path) -> Path:
    """The offline int8 bundle with all layers, compared on speakers that nothing was trained on."""
    output = args.work / f"{name.replace(' ', '-')}-int8"
    if not (output / "manifest.json").is_file():
        words = [Path(sys.executable).with_name("rd-export"), checkpoint, "--precision", "int8", "--layers", "all"]
        words += ["--calibration", args.work / "calibration.csv", "--check", args.work / "unseen.csv"]
        subprocess.run([*map(str, words), "--output", str(output)], check=True)
    return Path(output)


def kept_of(bundle: Path) -> dict[str, Any]:
    """What int8 keeps of the float features: of the bundle, and of front ends that were tried before it."""
    manifest = Encoder.load(bundle).manifest
    found = {manifest.quantisation["front_end"]: manifest.parity["measured"]}
    for tried in manifest.quantisation.get("tried_before", []):
        found[tried["candidate"]] = {key: value for key, value in tried.items() if key != "candidate"}
    return {f"front end in {name}": measured for name, measured in found.items()}


def sources(checkpoints: dict[str, Path], bundles: dict[str, Path]) -> Iterator[Features]:
    """Every student in float and as int8."""
    for name, checkpoint in checkpoints.items():
        yield of_student(name, load_checkpoint(checkpoint))
        yield of_bundle(f"{name}, int8", Encoder.load(bundles[name]))


def of_bundle(name: str, encoder: Encoder) -> Features:
    """All layers of an offline bundle."""

    def extract(samples: Tensor) -> Tensor:
        return torch.from_numpy(encoder.extract(samples.numpy(), 16_000))

    return Features(name, 0, extract)


if __name__ == "__main__":
    sys.exit(main())
