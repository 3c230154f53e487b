"""An Android device over adb with a Python on it (``--remote-python``): the same device side as over ssh.

Phones have none of their own, so that the app of ``android_app`` is the usual way. It needs a Python 3.10 with NumPy
and onnxruntime that the shell user may run (a standalone build unpacked below /data/local/tmp does; Termux keeps its
own to its own user). Written against the documented command lines and tested with a stand-in for adb; it has never been
run on a phone.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from reuse_distill.devices.measurement import Measurement
from reuse_distill.devices.measurement_request import Request
from reuse_distill.devices.transports.process import run
from reuse_distill.devices.transports.remote_runner import device_command, measured, pack
from reuse_distill.devices.transports.transport import Progress, Unreachable

FOLDER = "/data/local/tmp"  # the one place that the shell user may write and execute in


@dataclass(frozen=True)
class AdbDevice:
    """One device; an empty serial means the only one that is attached."""

    serial: str = ""

    @property
    def address(self) -> str:
        return f"adb:{self.serial}" if self.serial else "adb"

    @property
    def adb(self) -> list[str]:
        """``adb`` with the device that is meant."""
        return ["adb", *(["-s", self.serial] if self.serial else [])]

    def check_state(self) -> None:
        """``adb get-state`` prints ``device`` where one is attached, authorised and awake enough; else Unreachable."""
        try:
            done = subprocess.run(
                [*self.adb, "get-state"], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise Unreachable(
                "adb is not installed on this machine", hint="install the Android platform tools"
            ) from None
        except subprocess.TimeoutExpired:
            raise Unreachable(
                f"{self.address}: adb did not answer within 30 s", hint="adb kill-server, then again"
            ) from None
        if done.returncode != 0 or done.stdout.strip() != "device":
            answer = (done.stderr.strip() or done.stdout.strip() or "no answer").splitlines()[-1]
            raise Unreachable(f"{self.address}: {answer}", hint="`adb devices` lists what is attached")


@dataclass(frozen=True)
class Adb(AdbDevice):
    """A device that measures with the Python on it."""

    python: str = ""

    def measure(
        self, bundle: Path, request: Request, *, limit_s: float, progress: Progress, cancel: Event
    ) -> Measurement:
        """See ``Transport``."""
        self.check_state()
        payload, python = pack(bundle), self.python or "python3"
        progress(f"copying {len(payload) / 1e6:.1f} MB to {self.address}")
        command = (
            f"TMPDIR={FOLDER}; export TMPDIR; cd {FOLDER}; {device_command(python, len(payload), request, limit_s)}"
        )
        finished = run(
            [*self.adb, "shell", "-T", command],
            limit_s=limit_s + 60,
            progress=progress,
            cancel=cancel,
            payload=payload,
            heartbeat=True,
        )
        answered = measured(finished, where=self.address, python=python)
        if answered is None:
            last = finished.messages[-1] if finished.messages else "no answer"
            raise Unreachable(f"{self.address}: the connection was lost: {last}")
        return answered
