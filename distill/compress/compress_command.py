"""``rd-distill compress``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from reuse_distill.runtime.cli.progress import to_stderr
from reuse_distill.runtime.errors import RdError

USAGE = "rd-distill compress METHOD STUDENT --ratio R --output DIR [--data PATH] [options] [key=value ...]"
HELP = "Compress a student: heads, rows, weights, low rank, several joined by +. key=value changes the recovery recipe."


def add_compress_parser(commands: Any) -> None:
    """The command's options."""
    one = commands.add_parser(
        "compress", help="prune or factor a student, with recovery", description=HELP, usage=USAGE
    )
    one.add_argument(
        "method",
        help="heads, heads-data, heads-diagonal, heads-random, rows, weights, 2:4, low-rank, low-rank-data; gates, "
        "pinch (trained); or several: heads+rows",
    )
    one.add_argument("student", type=Path, help="checkpoint folder, transformers folder, or a file of an encoder")
    one.add_argument("--ratio", required=True, metavar="R[,R]", help="share to remove; one per method, or one for all")
    one.add_argument("--schedule", default="1", metavar="N|study", help="steps on the way there (default: 1)")
    one.add_argument("--data", help="audio to recover on and to score with")
    one.add_argument(
        "--recover", type=int, default=0, metavar="STEPS", help="optimiser steps after each step's removal"
    )
    one.add_argument("--gate-steps", type=int, default=0, metavar="STEPS", help="optimiser steps that train gates")
    one.add_argument("--rounds", type=int, default=1, help="most rounds of --recover per step")
    one.add_argument("--settle", type=float, metavar="SHARE", help="next step once a round lowers the loss by no more")
    one.add_argument("--recipe", default="recover", help="of the recovery: a shipped recipe or a YAML file")
    one.add_argument("--teacher", help="what recovery learns from (default: the student itself, uncompressed)")
    one.add_argument("--targets", type=Path, metavar="DIR", help="a teacher's layers as rd-distill targets wrote them")
    one.add_argument("--output", type=Path, required=True, help="the student goes to OUTPUT/student")
    one.add_argument("--resume", action="store_true", help="continue the compression in OUTPUT")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run_compress(args: argparse.Namespace) -> int:
    """Compress as the options say; prints the folder of the student."""
    from reuse_distill.distill.compress.compress_run import Places, compress
    from reuse_distill.distill.recipe import load_recipe

    plan = plan_of(args)
    overrides = args.overrides
    if overrides and not (plan.recover or plan.trained):
        raise RdError(f"{overrides[0]} is a setting of the recovery", hint="add --recover STEPS")
    recipe = load_recipe(args.recipe, overrides) if plan.recover or plan.trained else None
    places = Places(
        args.student, args.data, args.output, args.teacher, args.targets, resume=args.resume, device=args.device
    )
    print(compress(plan, places, recipe, report=to_stderr))
    return 0


def plan_of(args: argparse.Namespace) -> Any:
    """The compression that the options describe. Raises RdError for any that is not possible."""
    from reuse_distill.distill.compress.compress_run import Compression
    from reuse_distill.distill.compress.methods import TRAINED, split_names
    from reuse_distill.distill.compress.schedule import levels_together

    names = split_names(args.method)
    try:
        ratios = [float(word) for word in args.ratio.split(",")]
    except ValueError:
        raise RdError(f"--ratio {args.ratio} is no number", hint="such as 0.5, or 0.25,0.5 for two methods") from None
    if len(ratios) not in (1, len(names)):
        raise RdError(f"--ratio has {len(ratios)} numbers for {len(names)} methods", hint="one for all, or one each")
    for name, value, least in (("recover", args.recover, 0), ("rounds", args.rounds, 1), ("seed", args.seed, 0)):
        if value < least:
            raise RdError(f"--{name} {value} is below {least}")
    if args.settle is not None and (not 0 <= args.settle < 1 or args.rounds < 2 or not args.recover):
        raise RdError(
            f"--settle {args.settle:g} with --rounds {args.rounds} and --recover {args.recover}",
            hint="a share of the loss within 0..1; settling needs two rounds of --recover at least",
        )
    if set(names) & set(TRAINED):
        if args.gate_steps < 1 or args.schedule != "1":
            raise RdError(
                f"{names[0]} with --gate-steps {args.gate_steps} and --schedule {args.schedule}",
                hint="gates are trained for some hundred steps, in which their target grows: no schedule",
            )
    elif args.gate_steps:
        raise RdError(f"--gate-steps {args.gate_steps} with {args.method}", hint=f"it is of {' and '.join(TRAINED)}")
    steps = levels_together(ratios, args.schedule, methods=len(names))
    return Compression(names, steps, args.recover, args.rounds, args.settle, args.seed, args.gate_steps)
