"""An iPhone or iPad through Xcode's devicectl and an app of one's own that measures.

iOS runs no Python of ours, so an installed app (``--apple-app``, its bundle identifier) does what the worker
does. The protocol: the bundle and ``request.json`` are copied to ``tmp/rd-latency-ID/`` in the app's data
container, the app is launched with ``--rd-latency tmp/rd-latency-ID``, writes ``result.json`` there (the
worker's result, see docs/devices.md) and exits; the result is copied back. The folder lies in ``tmp``, which
the app clears and iOS purges; ``--remove-existing-content`` of devicectl is not used, since it has been seen
to remove more than was named. Written against the documented command lines and tested with a stand-in; it has
never been run on a device.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from reuse_distill.devices.measuring.measurement import Measurement, Request
from reuse_distill.devices.transports.device_answer import MAX_ANSWER_BYTES, measurement_from
from reuse_distill.devices.transports.process import run
from reuse_distill.devices.transports.remote_runner import BUNDLE
from reuse_distill.devices.transports.transport import Finished, NotMeasured, Progress, Unreachable
from reuse_distill.runtime.bundle_format.bundle import MANIFEST, Bundle, read_bundle
from reuse_distill.runtime.untrusted_input import to_dict

DEVICECTL = ("xcrun", "devicectl")


@dataclass(frozen=True)
class DeviceCtl:
    """One device by its identifier, name or serial number, and the app that measures on it."""

    device: str = ""
    app: str = ""

    @property
    def address(self) -> str:
        return f"devicectl:{self.device}"

    def measure(
        self, bundle: Path, request: Request, *, limit_s: float, progress: Progress, cancel: Event
    ) -> Measurement:
        """See ``Transport``."""
        if not self.device or not self.app:
            missing = "no device identifier" if not self.device else "no measuring app"
            hint = "--device NAME=IDENTIFIER (xcrun devicectl list devices) and --apple-app BUNDLE-ID (docs/devices.md)"
            raise NotMeasured(f"an Apple device is measured through an app on it: {missing}", hint=hint)
        remote = f"tmp/rd-latency-{secrets.token_hex(6)}"
        with tempfile.TemporaryDirectory(prefix="rd-latency.") as name:
            folder = Path(name)
            _stage(bundle, request, folder / "run")
            steps = (
                ("copying the bundle", self.copy_to(folder / "run", remote), 600.0, Unreachable),
                ("measuring", self.launch(remote), limit_s, NotMeasured),
                ("fetching the result", self.copy_from(f"{remote}/result.json", folder), 120.0, NotMeasured),
            )
            for what, command, step_limit_s, kind in steps:
                progress(f"{what}: {self.address}")
                done = run(command, limit_s=step_limit_s, progress=progress, cancel=cancel)
                if done.status != 0 or done.timed_out:
                    raise kind(f"{self.address}: {what} failed: {_last(done)}", hint="xcrun devicectl list devices")
            return _result(folder / "result.json", self.address)

    def copy_to(self, source: Path, destination: str) -> list[str]:
        """Command that copies a folder into the app's data container."""
        return [*self._container("to"), "--source", str(source), "--destination", destination]

    def copy_from(self, source: str, destination: Path) -> list[str]:
        """Command that copies a file out of it."""
        return [*self._container("from"), "--source", source, "--destination", str(destination)]

    def _container(self, direction: str) -> list[str]:
        domain = ["--domain-type", "appDataContainer", "--domain-identifier", self.app]
        return [*DEVICECTL, "device", "copy", direction, "--device", self.device, *domain]

    def launch(self, folder: str) -> list[str]:
        """Command that runs the app and ends with it (``--console`` attaches to it)."""
        options = ["--console", "--terminate-existing", "--device", self.device]
        return [*DEVICECTL, "device", "process", "launch", *options, self.app, "--", "--rd-latency", folder]


def _stage(bundle: Path, request: Request, folder: Path) -> None:
    """The request and the verified files of the bundle."""
    stage_bundle(read_bundle(bundle), folder)
    (folder / "request.json").write_text(json.dumps(to_dict(request)), encoding="utf-8")


def stage_bundle(verified: Bundle, folder: Path) -> None:
    """The verified files of the bundle, below ``folder``."""
    for name in [MANIFEST, *verified.manifest.files]:
        target = folder / BUNDLE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(verified.path / name, target)


def _result(path: Path, address: str) -> Measurement:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_ANSWER_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotMeasured(f"{address}: the app left no usable result.json ({error})") from None
    return measurement_from(text, where=f"{address}: result.json")


def _last(done: Finished) -> str:
    if done.timed_out:
        return f"not done after {done.seconds:.0f} s"
    return done.messages[-1] if done.messages else f"status {done.status}"
