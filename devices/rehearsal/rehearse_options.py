"""The command line of ``rd-latency rehearse``. Light: imports no NumPy."""

from __future__ import annotations

import argparse
from pathlib import Path

from reuse_distill.runtime.cli.command_line import CommandParser

EXAMPLES = """
examples:
  rd-latency rehearse bundle/ --from onnxruntime==1.23.2 --to onnxruntime==1.31.1 --report page.html
  rd-latency rehearse bundle/ --from here --to /opt/venvs/next
  rd-latency rehearse bundle/ --fleet fleet.toml --from orin-jetpack-6 --to orin-jetpack-7

A SIDE is `here` (the environment of rd-latency itself), the folder of a virtual environment or its Python, pip
requirements (an environment is created from them and kept), or a device as for --device.

exit status: 0 safe, 1 slower, different or broken, 2 usage, 3 device unreachable, 4 not measured
"""
PAIRS, MIN_PAIRS, MAX_PAIRS = 5, 3, 50


def rehearse_parser() -> CommandParser:
    """``rd-latency rehearse``."""
    parser = CommandParser(
        prog="rd-latency rehearse",
        description="The same bundle under two versions of the software, before you upgrade: does it load, are the "
        "features the same, which kernels run in which precision, how fast, how much memory.",
        epilog=EXAMPLES,
    )
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="folder written by rd-export")
    parser.add_argument("--from", dest="from_side", required=True, metavar="SIDE", help="the software in use")
    parser.add_argument("--to", dest="to_side", required=True, metavar="SIDE", help="the software to upgrade to")
    parser.add_argument("--runs", type=int, default=PAIRS, metavar="N", help=f"pairs of alternating runs ({PAIRS})")
    parser.add_argument(
        "--paced", action="store_true", help="feed chunks at the pace of a microphone, not back to back"
    )
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="seconds of audio per run")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the engine (1)")
    parser.add_argument("--provider", default="auto", metavar="NAME", help="execution provider (auto)")
    parser.add_argument(
        "--detect", default="5%", metavar="PERCENT", help="slow-down that the runs must be able to detect (5%%)"
    )
    parser.add_argument(
        "--tolerance",
        default="1%",
        metavar="PERCENT",
        help="relative difference up to which features count as equal (1%%)",
    )
    parser.add_argument(
        "--environments", type=Path, metavar="FOLDER", help="folder where virtual environments are created and kept"
    )
    _add_access(parser)
    parser.add_argument("--report", type=Path, metavar="FILE", help="a page with everything that was compared")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure")
    return parser


def _add_access(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="TOML file of registered devices")
    parser.add_argument("--identity", default="", metavar="FILE", help="ssh key")
    parser.add_argument("--known-hosts", default="", metavar="FILE", help="known_hosts to use instead of the user's")
    parser.add_argument("--remote-python", default="", metavar="PROGRAM", help="Python on the device (python3)")
