"""The command lines of ``rd-latency``: measuring, ``devices`` and ``estimate``. Light: imports no NumPy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reuse_distill.devices.judging.confidence import PERCENTILES
from reuse_distill.devices.measuring.measurement import (
    BACK_TO_BACK,
    BATCH,
    MULTI_STREAMS,
    PACED,
    SCENARIOS,
    SOAK_S,
    Request,
    duration_s,
)
from reuse_distill.devices.rehearsal.rehearse_options import rehearse_parser
from reuse_distill.report.quantities import parse_quantity
from reuse_distill.runtime.cli.command_line import Command, CommandParser, bundle_or_shipped
from reuse_distill.runtime.errors import RdError

if TYPE_CHECKING:
    from reuse_distill.devices.transports.fleet import Access

ABOUT = "Measure a bundle on devices and judge it by a budget and a baseline."
EXAMPLES = """
examples:
  rd-latency
  rd-latency bundle/ --device raspberry-pi-5=pi@10.0.0.7 --budget budget.toml --junit latency.xml
  rd-latency estimate bundle/ --device jetson-orin-nano
  rd-latency devices jetson-orin-nano
  rd-latency rehearse bundle/ --from onnxruntime==1.23.2 --to onnxruntime==1.31.1 --report page.html

exit status: 0 within budget, 1 over budget or regressed, 2 usage, 3 device unreachable, 4 not measured
"""
MODE_HELP = {
    "paced": "feed chunks at the pace of a microphone (default)",
    "back-to-back": "feed each chunk as soon as the previous one is done",
}
REPORTS = {
    "junit": "JUnit XML for a CI server",
    "json": "every figure and sample",
    "report": "a page with plots",
    "markdown": "a table for a pull request",
}
ACCEPTABLE = ("bimodal", "busy", "temperature")
AA_RUNS, MAX_RUNS = 5, 100
BUNDLE_HELP = "folder written by rd-export (default: a small bundle that comes with the package)"


AUTO_STREAMS = "auto"  # --streams: search how many


@dataclass(frozen=True)
class Options:
    """One call, checked."""

    bundle: Path
    devices: tuple[str, ...]
    hosts: tuple[str, ...]
    fleet: Path | None
    access: Access
    request: Request
    budget: Path | None
    baseline: Path | None
    save_baseline: Path | None
    junit: Path | None
    json: Path | None
    report: Path | None
    markdown: Path | None
    runs: int = 1
    print_visible: bool = False
    accepted: tuple[str, ...] = ()
    detect: float = 0.05


def devices_parser() -> CommandParser:
    """``rd-latency devices``."""
    parser = CommandParser(prog="rd-latency devices", description="Device profiles and the sources of their numbers.")
    parser.add_argument("name", nargs="?", help="one profile in full, with sources")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def estimate_parser() -> CommandParser:
    """``rd-latency estimate``."""
    parser = CommandParser(prog="rd-latency estimate", description="A roofline estimate, without the device.")
    parser.add_argument("bundle", type=Path, nargs="?", help=BUNDLE_HELP)
    parser.add_argument("--device", required=True, metavar="NAME", help="a device profile (rd-latency devices)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="cores that the estimate assumes (1)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


COMMANDS = {
    "devices": Command("device profiles and the sources of their numbers", devices_parser),
    "estimate": Command("a roofline estimate, without the device", estimate_parser),
    "rehearse": Command("the same bundle under two versions of the software", rehearse_parser),
}


def measure_parser() -> CommandParser:
    """``rd-latency BUNDLE``."""
    parser = CommandParser(
        prog="rd-latency",
        usage="rd-latency [BUNDLE] [--device NAME] [options]\n       rd-latency {devices,estimate,rehearse} ...",
        description=ABOUT,
        epilog=EXAMPLES,
        commands=COMMANDS,
    )
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help=BUNDLE_HELP)
    _add_devices(parser.add_argument_group("devices"))
    _add_workload(parser.add_argument_group("workload"))
    _add_verdict(parser.add_argument_group("verdict"))
    reports = parser.add_argument_group("reports")
    for name in REPORTS:
        reports.add_argument(f"--{name}", type=Path, metavar="FILE", help=REPORTS[name])
    return parser


def _add_devices(where: Any) -> None:
    where.add_argument(
        "--device", action="append", metavar="NAME[=ADDRESS]", help="profile or registered device; repeatable"
    )
    where.add_argument(
        "--host", action="append", default=[], metavar="USER@ADDRESS[:PORT]", help="address for a --device"
    )
    where.add_argument("--fleet", type=Path, metavar="FILE", help="TOML file of registered devices")
    where.add_argument("--identity", default="", metavar="FILE", help="ssh key")
    where.add_argument("--known-hosts", default="", metavar="FILE", help="known_hosts to use instead of the user's")
    where.add_argument(
        "--remote-python",
        default="",
        metavar="PROGRAM",
        help="Python on the device (default python3; Android: an app measures)",
    )
    where.add_argument(
        "--android-app", default="", metavar="PACKAGE", help="app that measures on an Android phone (clients/android)"
    )
    where.add_argument("--apple-app", default="", metavar="BUNDLE-ID", help="app that measures on an iPhone or iPad")


def _add_workload(what: Any) -> None:
    mode = what.add_mutually_exclusive_group()
    for name in MODE_HELP:
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name, help=MODE_HELP[name])
    scenarios = ", ".join(SCENARIOS)
    mode.add_argument("--scenario", choices=tuple(SCENARIOS), metavar="NAME", help=f"a scenario of MLPerf: {scenarios}")
    what.add_argument(
        "--streams",
        type=int_or_auto,
        metavar="N",
        help="concurrent streams (1; multi-stream: 8); auto: find how many this machine sustains",
    )
    what.add_argument(
        "--deadline", type=float, metavar="MS", help="with --streams auto: when a chunk is late (one chunk)"
    )
    what.add_argument(
        "--ways",
        default="threads,batches,processes",
        metavar="A,B",
        help="with --streams auto: how streams are stepped (threads,batches,processes)",
    )
    what.add_argument(
        "--sliding-window", action="store_true", help="stream an offline bundle instead of whole utterances"
    )
    what.add_argument(
        "--until-enough",
        nargs="?",
        const="p99",
        default="",
        choices=tuple(PERCENTILES),
        metavar="P",
        help="run until this percentile can be measured (p99)",
    )
    what.add_argument("--seconds", type=float, default=0.0, metavar="S", help="seconds of audio per stream")
    what.add_argument("--warmup", type=int, default=20, metavar="N", help="chunks before measuring starts (20)")
    what.add_argument("--soak", metavar="DURATION", help="keep running this long, for example 30min")
    what.add_argument(
        "--cool-below",
        metavar="TEMP",
        help="before each run wait until the device is cooler than this, for example 60C",
    )
    what.add_argument("--cool-down", default="5min", metavar="DURATION", help="longest wait for that (5min)")
    what.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the engine (1)")
    what.add_argument("--provider", default="auto", metavar="NAME", help="execution provider (auto)")


def _add_verdict(judge: Any) -> None:
    judge.add_argument("--budget", type=Path, metavar="FILE", help="TOML file of limits with units")
    judge.add_argument("--baseline", type=Path, metavar="FILE", help="earlier runs to compare with")
    judge.add_argument("--save-baseline", type=Path, metavar="FILE", help="add this run to a baseline file")
    judge.add_argument("--runs", type=int, metavar="N", help="measure N times, each in a process of its own (1)")
    judge.add_argument(
        "--aa", action="store_true", help="report the smallest regression that this device can show (5 runs)"
    )
    judge.add_argument(
        "--detect", default="5%", metavar="PERCENT", help="slow-down that a pass must be able to detect (5%%)"
    )
    judge.add_argument(
        "--accept",
        action="append",
        default=[],
        choices=ACCEPTABLE,
        help="accept a baseline or a start that is so; repeatable",
    )


def int_or_auto(text: str) -> int | str:
    """A number of streams, or ``auto``. Raises argparse's error for other words."""
    try:
        return text if text == AUTO_STREAMS else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor {AUTO_STREAMS}") from None


def parse(words: Sequence[str]) -> Options:
    """Options from the words after ``rd-latency``. Raises RdError for values that do not fit."""
    return options_of(measure_parser().parse_args(words))


def options_of(given: argparse.Namespace) -> Options:
    """What ``measure_parser`` read, checked. Raises RdError for values that do not fit."""
    from reuse_distill.devices.transports.android import APP
    from reuse_distill.devices.transports.fleet import Access
    from reuse_distill.devices.transports.ssh import SshSettings

    if given.seconds < 0 or given.seconds != given.seconds or given.seconds == float("inf"):
        raise RdError(f"--seconds {given.seconds}: expected seconds of audio, more than 0")
    request = _request(given)
    detect = parse_quantity(given.detect, "share", where="--detect")
    runs = given.runs or (AA_RUNS if given.aa else 1)
    if not 0 < detect <= 1:
        raise RdError(f"--detect {given.detect}: expected more than 0 and at most 100%")
    if not 1 <= runs <= MAX_RUNS:
        raise RdError(f"--runs {runs}: expected 1 to {MAX_RUNS}")
    python = given.remote_python
    ssh = SshSettings(given.identity, given.known_hosts, python or "python3")
    return Options(
        bundle=bundle_or_shipped(given.bundle),
        devices=tuple(given.device or ["host"]),
        hosts=tuple(given.host),
        fleet=given.fleet,
        access=Access(ssh, adb_python=python, android_app=given.android_app or APP, apple_app=given.apple_app),
        request=request,
        budget=given.budget,
        baseline=given.baseline,
        save_baseline=given.save_baseline,
        junit=given.junit,
        json=given.json,
        report=given.report,
        markdown=given.markdown,
        runs=runs,
        print_visible=given.aa,
        accepted=tuple(given.accept),
        detect=detect,
    )


def _request(given: argparse.Namespace) -> Request:
    """The workload; a scenario is a mode with MLPerf's name and number of streams."""
    modes = {"single-stream": BACK_TO_BACK, "multi-stream": BATCH}
    mode = modes.get(given.scenario, PACED) if given.scenario else given.mode or PACED
    streams = given.streams if given.streams is not None else MULTI_STREAMS if mode == BATCH else 1
    if given.scenario == "single-stream" and streams != 1:
        raise RdError(f"--streams {streams}: single-stream is one stream", hint="--scenario multi-stream")
    soak_s = duration_s(given.soak, where="--soak") if given.soak else 0.0
    return Request(
        mode=mode,
        streams=streams,
        seconds=given.seconds,
        warmup_chunks=given.warmup,
        soak_s=soak_s or (SOAK_S if given.scenario == "soak" and not given.seconds else 0.0),
        threads=given.threads,
        provider=given.provider,
        sliding_window=given.sliding_window,
        enough=given.until_enough,
        cool_below_c=parse_quantity(given.cool_below, "temperature", where="--cool-below") if given.cool_below else 0.0,
        cool_down_s=duration_s(given.cool_down, where="--cool-down"),
    )
