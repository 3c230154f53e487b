"""``rd-distill analyse``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError

HELP = "Analyse a student: heads by diagonality, entropy and importance, layers by likeness, cost by part and length."
MOST_UTTERANCES = 64


def add_analyse_parser(commands: Any) -> None:
    """The command's options."""
    one = commands.add_parser("analyse", help="write a page of what a student's parts do and cost", description=HELP)
    one.add_argument("student", type=Path, help="checkpoint folder, transformers folder, or a file of an encoder")
    one.add_argument("--data", required=True, help="folder of audio, manifest CSV, lhotse cuts or lhotse Shar")
    one.add_argument("--split", help="value of the manifest's column 'split' to keep")
    one.add_argument(
        "--utterances", type=int, default=16, metavar="N", help="how many recordings to use, drawn by the seed"
    )
    one.add_argument("--output", type=Path, required=True, metavar="HTML", help="the page")
    one.add_argument("--json", type=Path, help="the figures of the page")
    one.add_argument(
        "--bundle",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="exported bundle of any engine to time on utterances of 2, 5 and 10 s; repeatable",
    )
    one.add_argument("--seed", type=int, default=0)


def run_analyse(args: argparse.Namespace) -> int:
    """Analyse as the options say; prints the page."""
    import torch
    from reuse_distill.distill.analysis.analysis_page import analysis_page
    from reuse_distill.distill.analysis.student_analysis import analyse, timed_bundles
    from reuse_distill.distill.compress.compress_run import drawn_waves, open_student
    from reuse_distill.distill.files import check_writable, write_atomically, write_json
    from reuse_distill.runtime.bundle_format.bundle import read_bundle

    if not 1 <= args.utterances <= MOST_UTTERANCES or args.seed < 0:
        raise RdError(
            f"--utterances {args.utterances} --seed {args.seed}",
            hint=f"1..{MOST_UTTERANCES} recordings, a seed of 0 or above",
        )
    for path in (args.output, args.json):
        if path is not None and path.is_dir():
            raise RdError(f"{path} is a folder", hint="name a file, such as analysis.html")
        if path is not None:
            check_writable(path.parent)
    for bundle in args.bundle:
        read_bundle(bundle)  # before minutes of analysis
    student = open_student(args.student)
    waves = drawn_waves(args.data, args.seed, count=args.utterances, split=args.split)
    analysis = analyse(student, waves, seed=args.seed)
    resolved = args.student.resolve()
    name = resolved.parent.name if resolved.name == "student" else resolved.name
    measured = timed_bundles(args.bundle, torch.cat(waves).numpy()) if args.bundle else None
    text = analysis_page(analysis, name=name, data="/".join(Path(args.data).parts[-2:]), measured=measured)
    write_atomically(args.output, text.encode())
    if args.json is not None:
        rows = [dataclasses.asdict(row) for row in analysis.heads]
        figures = {"heads": rows, "likeness": analysis.likeness, "macs_per_second": analysis.macs_per_second}
        times = None if measured is None else dataclasses.asdict(measured)
        write_json(args.json, {**figures, "diagonal_and_important": analysis.diagonal_and_important, "measured": times})
    print(args.output)
    return 0
