"""This machine: the worker in a process of its own. The Mac is measured this way, on the Mac."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from devices.request import Request
from devices.results import Measurement
from devices.transports.base import Progress, measurement_in, no_result, worker_error
from devices.transports.process import run
from runtime.record import to_dict

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the packages runtime and devices


@dataclass(frozen=True)
class Local:
    """Measures on the machine that this runs on."""

    @property
    def address(self) -> str:
        return ""

    def measure(
        self, bundle: Path, request: Request, *, limit_s: float, progress: Progress, cancel: Event
    ) -> Measurement:
        """See ``Transport``."""
        command = [
            sys.executable,
            "-m",
            "devices.worker",
            str(bundle.resolve()),
            "--request",
            json.dumps(to_dict(request)),
        ]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        finished = run(
            command, limit_s=limit_s, progress=progress, cancel=cancel, env={**os.environ, "PYTHONPATH": path}
        )
        if finished.status == 0 and (measurement := measurement_in(finished)) is not None:
            return measurement
        raise worker_error(finished) or no_result(finished, where="this machine")
