"""The process that measures: ``python -m reuse_distill.devices.worker BUNDLE --request JSON``.

It prints the result as one marked line of JSON on standard output and progress on standard error.

It is a process of its own so that its peak memory is the runtime's, and it is what gets copied to a device: it needs
Python 3.10, NumPy and the engine of the bundle there, and nothing else of this project but runtime and devices.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

RESULT_MARK = "RD-LATENCY-RESULT "
PROGRESS_MARK = "RD-LATENCY-PROGRESS "
ERROR_MARK = "RD-LATENCY-ERROR "
EXIT_NOT_MEASURED = 4
EXIT_MISSING = 92  # a module that the device lacks


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; every failure is one marked line that names it."""
    parser = argparse.ArgumentParser(prog="reuse_distill.devices.worker", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--request", required=True, help="the workload as JSON")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(options.bundle, options.request)
    except ImportError as error:
        hint = f"on the device: {sys.executable} -m pip install numpy onnxruntime soxr soundfile"
        return _fail(f"the device lacks a module: {error}", hint, EXIT_MISSING)
    except KeyboardInterrupt:
        return 130


def _run(bundle: Path, request_json: str) -> int:
    from reuse_distill.devices.measuring.measurement import Request
    from reuse_distill.devices.measuring.measurement_run import measure
    from reuse_distill.runtime.errors import RdError
    from reuse_distill.runtime.untrusted_input import from_dict, to_dict

    try:
        request = from_dict(Request, json.loads(request_json), where="request")
        result = measure(bundle, request, progress=_progress)
    except RdError as error:
        return _fail(error.message, error.hint, EXIT_NOT_MEASURED)
    except MemoryError:
        return _fail("the device ran out of memory", None, EXIT_NOT_MEASURED)
    print(RESULT_MARK + json.dumps(to_dict(result), allow_nan=False), flush=True)
    return 0


def _progress(line: str) -> None:
    print(PROGRESS_MARK + line, file=sys.stderr, flush=True)


def _fail(message: str, hint: str | None, status: int) -> int:
    print(ERROR_MARK + json.dumps({"message": message, "hint": hint}), flush=True)
    return status


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
