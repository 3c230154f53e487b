"""``make demo``: a teacher, two students, four artifacts, a stream, a certificate, latencies, one table, one report."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from reuse_distill.runtime.errors import RdError, cli

from demo import demo_steps
from demo.data import Data, as_typed, prepare
from demo.demo_results import print_table, read_losses, read_results
from demo.demo_steps import Runner
from demo.pictures import read_pair
from demo.report import Story, demo_report

MARK = ".made-by-the-demo"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__)
    p.add_argument("--data", type=Path, metavar="AUDIO", help="folder of audio or manifest CSV (default: demo/speech)")
    p.add_argument(
        "--teacher",
        type=Path,
        default=demo_steps.TEACHER,
        metavar="FOLDER",
        help="any teacher (default: the shipped student)",
    )
    p.add_argument("--output", type=Path, default=Path("demo/out"), metavar="DIR", help="emptied first (demo/out)")
    return p


@cli
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where a latency budget or a certificate failed; 2 where a step did."""
    args = parser().parse_args(argv)
    out: Path = args.output
    empty(out)
    data = prepare(args.data, out)
    print(describe(data))
    runner = Runner(demo_steps.count())
    teacher = as_typed(args.teacher)
    demo_steps.distil(runner, data, out, teacher=teacher)
    demo_steps.export(runner, data, out)
    demo_steps.stream(runner, data, out)
    for artifact in demo_steps.ARTIFACTS:
        demo_steps.latency(runner, out, artifact)
    return conclude(runner, data, out, teacher)


def empty(out: Path) -> None:
    """Make ``out`` an empty folder; only one that an earlier demo made is emptied."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise RdError(f"{out}: is not empty and was not made by the demo", hint="choose another --output")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def describe(data: Data) -> str:
    """What is trained and checked on."""
    more = f"; {data.left_out} recordings left out, a demo needs no more" if data.left_out else ""
    return (
        f"audio: {data.name}\n"
        f"  trained on {data.trained} recordings ({data.train_seconds:.0f} s), checked with {data.checked} others "
        f"({data.check_seconds:.0f} s), split by {data.held_out_by}{more}\n"
        f"commands run with OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '1')}: "
        "more threads slow models this small"
    )


def conclude(runner: Runner, data: Data, out: Path, teacher: Path) -> int:
    """Table, report and exit status."""
    results = read_results(out)
    losses = [read_losses(out, student) for student in ("tiny", "tiny-stream")]
    pair = read_pair(out / "tiny" / "student", data.longest)
    story = Story(data, results, losses, pair, runner.steps, runner.seconds, teacher)
    (out / "report.html").write_text(demo_report(story), encoding="utf-8")
    print_table(results)
    for one in losses:
        print(f"loss of {one.student}: {one.first_tenth:.3f} -> {one.last_tenth:.3f} (means of first and last tenth)")
    print(f"\n{runner.seconds:.0f} s in all. The report: {out / 'report.html'}")
    failed = [step.title for step in runner.steps if step.status]
    for title in failed:
        print(f"failed: {title}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(None))
