"""``rd-distill evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reuse_distill.runtime.cli.progress import to_stderr
from reuse_distill.runtime.errors import RdError

if TYPE_CHECKING:
    from reuse_distill.distill.evaluation.evaluate import Keep, Probe


def add_evaluate_parser(commands: Any) -> None:
    """Its options."""
    judge = commands.add_parser(
        "evaluate", help="compare a student's features with log-mel, an untrained student and the teacher"
    )
    judge.add_argument("student", type=Path, help="checkpoint folder")
    judge.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="KIND=MANIFEST",
        help="a probe: label=, speaker= or ctc= and a manifest CSV; repeatable",
    )
    judge.add_argument("--teacher", type=Path, help="the teacher, for comparison")
    judge.add_argument(
        "--also", type=Path, action="append", default=[], metavar="CHECKPOINT", help="other students, for comparison"
    )
    judge.add_argument("--features", choices=("auto", "heads", "hidden"), default="auto")
    judge.add_argument("--output", type=Path, help="results as JSON")
    judge.add_argument("--keep", type=Path, metavar="DIR", help="save the student's probes as heads for rd-export")
    judge.add_argument("--pictures", type=Path, metavar="DIR", help="layer similarity (CKA) and attention maps as SVG")
    judge.add_argument("--seed", type=int, default=0)
    judge.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device that computes features"
    )


def run_evaluate(args: argparse.Namespace) -> int:
    """Probe the student and what it is compared with; the exit status."""
    from reuse_distill.distill.evaluation.evaluate import evaluate, probe_of, table
    from reuse_distill.distill.evaluation.features import draw, sources_of
    from reuse_distill.distill.files import check_writable, write_json
    from reuse_distill.distill.training.launch import device_named

    if args.output is not None:  # not to find out after an hour
        check_writable(args.output.parent)
        if args.output.is_dir():
            raise RdError(f"--output {args.output} is a folder", hint="name a file, such as results.json")
    if args.pictures is not None:
        check_writable(args.pictures)
    how = {"also": args.also, "teacher": args.teacher, "features": args.features, "seed": args.seed}
    sources = sources_of(args.student, **how, device=device_named(args.device))
    probes = [probe_of(text) for text in args.data]
    results = evaluate(sources, probes, seed=args.seed, report=to_stderr, keep=_kept(args, probes))
    print(table(results))
    if args.output is not None:
        write_json(args.output, results)
    if args.pictures is not None:
        for path in draw(args.student, args.teacher, probes[0].data, args.pictures):
            print(path)
    return 0


def _kept(args: argparse.Namespace, probes: list[Probe]) -> Keep | None:
    """What keeps the student's probes as heads, where ``--keep`` asks for it."""
    if args.keep is None:
        return None
    from reuse_distill.distill.files import check_writable
    from reuse_distill.distill.tasks.made_head import check_free, keep_in, open_student
    from reuse_distill.student.checkpoints.checkpoint import read_config

    check_writable(args.keep)
    check_free(args.keep, probes)
    takes = args.features
    if takes == "auto":
        takes = "hidden" if read_config(args.student).head_width is None else "heads"
    return keep_in(args.keep, open_student(args.student, layers="all", takes=takes), seed=args.seed, report=to_stderr)
