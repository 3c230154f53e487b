"""Make the shipped weights of `tiny` again, taught by `pocket-stream`, and the bundle of rd-stream.

The bundle is of `pocket-stream`, whose own card says how that student was taught.

    python -m demo.make_weights ../shared/speech/libri_speakers ../shared/speech/libri_transcribed \\
        ../shared/speech/ljtext_single

AUDIO: manifests, or folders with a manifest.csv (columns file, speaker, text_or_label, split). Rows with the split
`test` are left out; of demo/speech too, whose other rows are added.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.audio.recordings import Recording, find_recordings
from reuse_distill.runtime.bundle_format.bundle import REPORT, list_files, read_bundle
from reuse_distill.runtime.bundle_format.bundle import write_manifest as write_manifest_of_bundle
from reuse_distill.runtime.errors import RdError, cli

from demo.data import SHIPPED, write_manifest
from demo.demo_steps import Runner

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "student" / "weights"
BUNDLE = ROOT / "runtime" / "bundles" / "pocket-stream"
STUDENTS = ("tiny",)
HEADS = ("keywords", "units")
PARTS = ("config.json", "model.safetensors", "training.json")
STUDENT_STEPS = 1200
NARROW, NARROW_HZ = 3, 8000  # every third recording
HALF = ("training.precision=bf16-mixed", "training.teacher_precision=bfloat16")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m demo.make_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("audio", nargs="+", type=Path, metavar="AUDIO", help="manifest CSV, or a folder with manifest.csv")
    p.add_argument(
        "--work", type=Path, default=Path("runs/weights"), metavar="DIR", help="training runs (runs/weights)"
    )
    p.add_argument(
        "--weights", type=Path, default=WEIGHTS, metavar="DIR", help="where checkpoints go (student/weights)"
    )
    p.add_argument("--bundle", type=Path, default=BUNDLE, metavar="DIR", help="where the streaming bundle goes")
    p.add_argument("--student-steps", type=int, default=STUDENT_STEPS, help=f"default {STUDENT_STEPS}")
    return p


@cli
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 where a step failed. Model cards beside the weights stay as they are."""
    args = parser().parse_args(argv)
    work: Path = args.work
    manifests(args.audio, work)
    runner = Runner(1 + len(STUDENTS))
    for name in STUDENTS:
        distil(runner, name, work, args.weights, steps=args.student_steps)
    export(runner, work, args.weights, args.bundle)
    return 0


def manifests(audio: Sequence[Path], work: Path) -> None:
    """``wide.csv``, ``train.csv`` (with telephone copies) and ``check.csv`` (synthetic speech)."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [row for source in [*audio, SHIPPED] for row in trained(source)]
    write_manifest(work / "wide.csv", rows, "train")
    write_manifest(work / "train.csv", [*rows, *narrow(rows[::NARROW], work / "narrow")], "train")
    write_manifest(work / "check.csv", find_recordings(SHIPPED, split="test"), "test")


def trained(source: Path) -> list[Recording]:
    """Rows that are not for tests; a label of one word is no transcript and is dropped. RdError where none is left."""
    manifest = source / "manifest.csv" if source.is_dir() else source
    rows = [row for row in find_recordings(manifest) if row.split != "test"]
    if not rows:
        raise RdError(f"{manifest}: every row is for tests", hint="the column 'split' says which rows are `test`")
    return [row if " " in row.label else dataclasses.replace(row, label="") for row in rows]


def narrow(rows: Sequence[Recording], folder: Path) -> list[Recording]:
    """Copies at 8 kHz, as telephones and Bluetooth give them; whatever reads them makes 16 kHz of them again."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for number, row in enumerate(rows):
        audio = read_audio(row.path)
        path = folder / f"{number:04d}.flac"
        samples = soxr.resample(audio.samples, audio.sample_rate_hz, NARROW_HZ)
        soundfile.write(path, np.clip(samples, -1, 1), NARROW_HZ, subtype="PCM_16")
        copies.append(dataclasses.replace(row, path=path))
    return copies


def distil(runner: Runner, name: str, work: Path, weights: Path, *, steps: int) -> None:
    """One student of the shipped one, stored in half precision."""
    words: list[str | Path] = ["rd-distill", "run", name, "--teacher", weights / "pocket-stream"]
    words += ["--data", work / "train.csv", "--steps", str(steps), "--output", work / name, "loss.kind=hint", *HALF]
    runner.run(f"distil {name}", words)
    take(halved(work / name / "student", work / name / "half"), weights / name, PARTS)


def halved(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with weights in float16, which loading turns into float32 again."""
    from reuse_distill.student import load_checkpoint, save_checkpoint
    from reuse_distill.student.checkpoints.checkpoint import read_provenance

    training = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
    del training["losses"]  # the curve; its first and last tenth stay
    provenance = {**read_provenance(checkpoint), "stored": "float16"}
    return save_checkpoint(folder, load_checkpoint(checkpoint).half(), provenance=provenance, training=training)


def take(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Copy files that are shipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, folder / name)


def export(runner: Runner, work: Path, weights: Path, bundle: Path) -> None:
    """Streaming int8-dynamic with both heads, without the page for people; its self-test is synthetic speech."""
    words: list[str | Path] = ["rd-export", weights / "pocket-stream", "--mode", "streaming"]
    words += ["--precision", "int8-dynamic", "--check", work / "check.csv", "--output", bundle, "--overwrite"]
    for name in HEADS:
        words += ["--head", weights / "pocket-stream-heads" / name]
    runner.run("export the bundle of rd-stream", words)
    slim(bundle)


def slim(bundle: Path) -> None:
    """Drop the bundle's report, and its entry in the manifest."""
    manifest = read_bundle(bundle).manifest
    (bundle / REPORT).unlink()
    write_manifest_of_bundle(bundle, dataclasses.replace(manifest, files=list_files(bundle)))


if __name__ == "__main__":
    sys.exit(main(None))
