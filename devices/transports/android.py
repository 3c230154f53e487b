"""An Android device over adb: with the app of ``clients/android`` that measures on it, or with a Python on it.

The app's protocol: bundle, request, test signal and the bundle's own recording are pushed below the app's media folder
(the one place that both the shell and an app without permissions may use), ``am instrument -w`` runs the app's
measurement and ends with it, the result and the recording's features are read back. What comes back is untrusted
(``app_answer``).

Python (``--remote-python``) has the same device side as over ssh. Phones have none of their own, so that the app is the
usual way. It needs a Python 3.10 with NumPy and onnxruntime that the shell user may run (a standalone build unpacked
below /data/local/tmp does; Termux keeps its own to its own user).

Written against the documented command lines and tested with a stand-in for adb; it has never been run on a phone.
"""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
from reuse_distill.devices.measuring.measurement import BACK_TO_BACK, PACED, Measurement, Request
from reuse_distill.devices.measuring.measurement_run import AUDIO_S
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.devices.transports.app_answer import completed, features_from, has_recording
from reuse_distill.devices.transports.device_answer import measurement_from
from reuse_distill.devices.transports.devicectl import stage_bundle
from reuse_distill.devices.transports.process import run
from reuse_distill.devices.transports.remote_runner import device_command, measured, pack
from reuse_distill.devices.transports.transport import Finished, NotMeasured, Progress, Unreachable
from reuse_distill.report.plain_text import one_line
from reuse_distill.runtime.bundle_format.bundle import Bundle, read_bundle
from reuse_distill.runtime.equivalence.selftest import read_expected
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_MS, SAMPLE_RATE_HZ
from reuse_distill.runtime.untrusted_input import to_dict

APP = "reusedistill.measure"
TARGETS = ("onnx", "ort", "litert")  # that the app has an engine for
MEDIA = "/sdcard/Android/media"
RESULT, FEATURES = "result.json", "features.b64"
COPY_S, FETCH_S, CLEAN_S = 600.0, 120.0, 30.0
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


@dataclass(frozen=True)
class AndroidApp(AdbDevice):
    """A device that measures with the package ``app`` on it."""

    app: str = APP

    def measure(
        self, bundle: Path, request: Request, *, limit_s: float, progress: Progress, cancel: Event
    ) -> Measurement:
        """See ``Transport``."""
        verified = read_bundle(bundle)
        check_measurable(verified, request)
        self.check_state()
        remote = f"{MEDIA}/{self.app}/rd-latency-{secrets.token_hex(6)}"

        def step(what: str, words: list[str], step_limit_s: float, error: type[RdError] = NotMeasured) -> Finished:
            progress(f"{what}: {self.address}")
            done = run([*self.adb, *words], limit_s=step_limit_s, progress=progress, cancel=cancel)
            if done.status != 0 or done.timed_out or done.too_long:
                raise error(
                    f"{self.address}: {what} failed: {_last(done)}", hint="`adb devices` lists what is attached"
                )
            return done

        self._check_app(cancel)
        try:
            with tempfile.TemporaryDirectory(prefix="rd-latency.") as name:
                stage(verified, request, Path(name) / "run")
                parent = shlex.quote(remote.rpartition("/")[0])
                step("making a folder", ["shell", f"mkdir -p {parent}"], CLEAN_S, Unreachable)
                step("copying the bundle", ["push", str(Path(name) / "run"), remote], COPY_S, Unreachable)
            folder = remote.rpartition("/")[2]
            words = f"am instrument -w -e folder {folder} {self.app}/{APP}.MeasureInstrumentation"
            _check_run(step("measuring", ["shell", words], limit_s), self.address)
            answer = step("fetching the result", ["exec-out", f"cat {remote}/{RESULT}"], FETCH_S)
            measurement = measurement_from(answer.stdout, where=f"{self.address}: {RESULT}")
            features = None
            if has_recording(verified):
                text = step("fetching the features", ["exec-out", f"cat {remote}/{FEATURES}"], FETCH_S).stdout
                features = features_from(text, verified, where=f"{self.address}: {FEATURES}")
            return completed(measurement, request, verified, features, where=self.address)
        finally:
            clean = f"am force-stop {self.app}; rm -rf {shlex.quote(remote)}"
            run([*self.adb, "shell", clean], limit_s=CLEAN_S, progress=progress, cancel=Event())

    def _check_app(self, cancel: Event) -> None:
        words = [*self.adb, "shell", f"pm path {shlex.quote(self.app)}"]
        done = run(words, limit_s=FETCH_S, progress=lambda _: None, cancel=cancel)
        if not done.stdout.startswith("package:"):
            raise NotMeasured(
                f"{self.address}: the measuring app {self.app} is not installed",
                hint="clients/android: ./gradlew installRelease; or name a Python on the phone with --remote-python",
            )


def check_measurable(bundle: Bundle, request: Request) -> None:
    """Raise NotMeasured for what the app does not do, before anything is copied."""
    manifest = bundle.manifest
    if manifest.kind != "streaming" or manifest.target not in TARGETS:
        raise NotMeasured(
            f"the Android app measures streaming bundles for {', '.join(TARGETS)}, this one is "
            f"{manifest.kind}, {manifest.target}",
            hint="--remote-python names a Python on the phone, which measures the others",
        )
    if request.mode not in (PACED, BACK_TO_BACK) or request.probe:
        what = "a rehearsal" if request.probe else f"mode {request.mode}"
        raise NotMeasured(
            f"the Android app measures paced and back to back, not {what}",
            hint="--remote-python names a Python on the phone",
        )


def stage(bundle: Bundle, request: Request, folder: Path) -> None:
    """What the app reads: the verified files of the bundle, the request with its length, and what is streamed."""
    stage_bundle(bundle, folder)
    chunks = request.chunks(HOP_MS * bundle.manifest.geometry.chunk_frames / 1000)
    document = {"request": to_dict(request), "chunks": chunks, "least_s": request.least_s}
    (folder / "request.json").write_text(json.dumps(document), encoding="utf-8")
    audio = speech_like(int(AUDIO_S * SAMPLE_RATE_HZ), seed=request.seed)
    (folder / "audio.f32").write_bytes(audio.astype("<f4").tobytes())
    if has_recording(bundle):
        wave = np.asarray(read_expected(bundle).wave, "<f4")
        (folder / "selftest.f32").write_bytes(wave.tobytes())


def _check_run(done: Finished, address: str) -> None:
    """``am instrument`` ends with status 0 whatever happened: the app's result line tells. Raises NotMeasured."""
    lines = done.stdout.splitlines()
    results = [line.partition("rd_latency=")[2].strip() for line in lines if "rd_latency=" in line]
    if results and results[-1] == "done":
        return
    crashes = [line.strip() for line in lines if "shortMsg" in line or "Error" in line]
    reason = [*results[-1:], *crashes, "it ended without a result"][0]
    raise NotMeasured(f"{address}: the measuring app: {one_line(reason)[:300]}", hint="adb logcat shows more")


def _last(done: Finished) -> str:
    if done.too_long:
        return "more than is read was answered"
    if done.timed_out:
        return f"not done after {done.seconds:.0f} s"
    return done.messages[-1] if done.messages else f"status {done.status}"
