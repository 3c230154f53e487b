"""rd-latency: its entry point. Nothing heavy is imported before the words of the command have been read."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from reuse_distill.devices.cli.latency_options import AUTO_STREAMS, COMMANDS, measure_parser, options_of
from reuse_distill.runtime.errors import cli


@cli
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit status 0 within budget, 1 over budget or regressed, 2 usage, 3 unreachable, 4 not measured."""
    words = list(sys.argv[1:] if argv is None else argv)
    command, rest = words[:1], words[1:]
    if command == ["devices"]:
        given = COMMANDS["devices"].parser().parse_args(rest)
        from reuse_distill.devices.device_profiles import list_devices

        return list_devices(given.name, as_json=given.json)
    if command == ["estimate"]:
        given = COMMANDS["estimate"].parser().parse_args(rest)
        from reuse_distill.devices.estimate import estimate_command

        return estimate_command(given)
    if command == ["rehearse"]:
        given = COMMANDS["rehearse"].parser().parse_args(rest)
        _end_as_ctrl_c()
        from reuse_distill.devices.rehearsal.rehearse_command import rehearse_command

        return rehearse_command(given)
    given = measure_parser().parse_args(words)
    _end_as_ctrl_c()
    if given.streams == AUTO_STREAMS:
        from reuse_distill.devices.cli.capacity_command import capacity_command
        from reuse_distill.runtime.cli.command_line import bundle_or_shipped

        return capacity_command(given, bundle_or_shipped(given.bundle))
    from reuse_distill.devices.cli.measure_command import measure_command

    return measure_command(options_of(given))


def _end_as_ctrl_c() -> None:
    """A cancelled CI job (SIGTERM) cleans up as a Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(None))
