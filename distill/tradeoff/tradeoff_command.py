"""``rd-distill tradeoff`` and ``rd-distill search``: a grid of compressed students on one page, the fastest of many."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from reuse_distill.runtime.cli.progress import to_stderr

USAGE = "rd-distill tradeoff GRID --output DIR --probe KIND=MANIFEST [--data AUDIO] [options] [key=value ...]"
HELP = (
    "Compress a student in many ways and write one page of what each way costs and loses: every artifact is "
    "counted, exported, probed and timed on this machine. key=value changes the grid, for example recover=100."
)
EXIT_SOME_FAILED = 1
SEARCH_USAGE = "rd-distill search STUDENT --output DIR --probe KIND=MANIFEST [--limit L] [options]"
SEARCH_HELP = (
    "Find the fastest artifact of a student whose error is at most --limit above the student's own. Methods, ratios "
    "and precisions are searched together; artifacts within the limit are timed in turns, with --device by rd-latency "
    "on that device."
)


def add_tradeoff_parser(commands: Any) -> None:
    """The command's options."""
    one = commands.add_parser(
        "tradeoff", help="compress a student in many ways, compared on one page", description=HELP, usage=USAGE
    )
    one.add_argument("grid", help="name of a shipped grid (cpu, toy) or a YAML file")
    add_data_options(one)
    one.add_argument(
        "--points", metavar="NAME[,NAME]", help="run only these points, without the page; continue with --resume"
    )
    one.add_argument(
        "--page", action="store_true", help="with --points: write the page too; other points count as not run"
    )


def add_search_parser(commands: Any) -> None:
    """The command's options."""
    one = commands.add_parser(
        "search", help="find the fastest artifact within a limit of loss", description=SEARCH_HELP, usage=SEARCH_USAGE
    )
    one.add_argument("student", help="a shipped student, a checkpoint folder, or an encoder of another library")
    add_data_options(one)
    one.add_argument(
        "--limit", type=float, default=0.05, help="largest rise of the error that is accepted (default: 0.05)"
    )
    one.add_argument("--methods", default="heads,rows,low-rank,heads+rows", metavar="NAME[,NAME]", help="to try")
    one.add_argument(
        "--precisions", default="int8-dynamic,fp32", metavar="NAME[,NAME]", help="to try; the first is the baseline's"
    )
    one.add_argument("--trials", type=int, default=3, help="ratios to try for each method (default: 3)")
    one.add_argument("--recover", type=int, default=0, metavar="STEPS", help="optimiser steps after each compression")
    one.add_argument("--train-share", type=float, default=1.0, help="share of each probe's items to train on")
    one.add_argument("--test-share", type=float, default=1.0, help="share of each probe's items to test with")
    one.add_argument("--repeats", type=int, default=20, help="how often each artifact is timed")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--device", metavar="NAME[=ADDRESS]", help="choose by time on this device (rd-latency --device)")
    one.add_argument("--device-seconds", type=float, default=20.0, metavar="S", help="seconds of audio per run there")
    one.add_argument("--device-rounds", type=int, default=3, metavar="N", help="runs per artifact there")


def add_data_options(one: argparse.ArgumentParser) -> None:
    """What trade-offs and searches are given alike."""
    one.add_argument("--output", type=Path, required=True, help="folder of students, artifacts, figures and the page")
    one.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="KIND=MANIFEST",
        help="quality is measured on this: label=, speaker= or ctc= and a manifest CSV; repeatable",
    )
    one.add_argument("--data", help="audio for recovery, scores and calibration; not that of the probes")
    one.add_argument("--resume", action="store_true", help="continue in OUTPUT and retry failed points")


def run_tradeoff_command(args: argparse.Namespace) -> int:
    """Run the grid; prints the page's path. Status 1 where a point failed."""
    import torch
    from reuse_distill.distill.tradeoff.grid import load_grid, with_data
    from reuse_distill.distill.tradeoff.tradeoff_run import PAGE, run_tradeoff

    torch.set_num_threads(1)
    grid = with_data(load_grid(args.grid, args.overrides), args.data, args.probe)
    only = args.points.split(",") if args.points else ()
    results = run_tradeoff(grid, args.output, resume=args.resume, only=only, page=args.page, report=to_stderr)
    if results is None:
        return 0
    for line in summary_lines(results):
        to_stderr(line)
    print(args.output / PAGE)
    return EXIT_SOME_FAILED if any(row["status"] == "failed" for row in results["points"]) else 0


def run_search_command(args: argparse.Namespace) -> int:
    """Search; prints the folder of the artifact that was chosen."""
    import torch
    from reuse_distill.distill.tradeoff.device_times import DeviceRuns
    from reuse_distill.distill.tradeoff.latency_search import SearchPlan, search, search_grid
    from reuse_distill.distill.tradeoff.tradeoff_run import PAGE

    torch.set_num_threads(1)
    plan = SearchPlan(tuple(args.methods.split(",")), tuple(args.precisions.split(",")), args.trials)
    names = ("limit", "recover", "train_share", "test_share", "repeats", "seed")
    settings = {name: getattr(args, name) for name in names}
    grid = search_grid(args.student, plan, data=args.data, probes=tuple(args.probe), **settings)
    device = DeviceRuns(args.device, args.device_seconds, args.device_rounds) if args.device else None
    results = search(grid, plan, args.output, resume=args.resume, device=device, report=to_stderr)
    to_stderr(results["search"]["reason"])
    to_stderr(f"page: {args.output / PAGE}")
    print(args.output / "points" / results["search"]["chosen"] / "bundle")
    return 0


def summary_lines(results: dict[str, Any]) -> list[str]:
    """What came out, for the terminal: failures, and the winner of each metric."""
    lines = [f"{row['name']} failed: {row['reason']}" for row in results["points"] if row["status"] == "failed"]
    for metric, name in results["winners"].items():
        lines.append(f"cheapest by {metric} within a loss of {results['limit']:g}: {name or 'unmeasured'}")
    return lines
