"""The measuring app over adb: a stand-in for adb with a phone's file system, and an app that gives prepared answers."""

from __future__ import annotations

import base64
import json
import os
import sys
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
from reuse_distill.devices.measuring.measurement import Request
from reuse_distill.devices.transports.android import Adb, AndroidApp
from reuse_distill.devices.transports.fleet import Access, devices
from reuse_distill.devices.transports.transport import NotMeasured, Unreachable
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.equivalence.selftest import read_expected
from reuse_distill.runtime.untrusted_input import to_dict

REQUEST = Request(mode="back-to-back", seconds=1.0, warmup_chunks=1, threads=2)
# adb as far as it is used: /sdcard is a folder of the test, `am instrument` runs the program in ANSWER or leaves files.
ADB = """#!{python}
import json, shutil, subprocess, sys
from pathlib import Path
root, answer = Path({root!r}), Path({answer!r})
words = sys.argv[1:]
if words[:1] == ["-s"]:
    words = words[2:]
with open({calls!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
here = lambda path: root / path.strip("'").lstrip("/")
if words == ["get-state"]:
    print("device")
elif words[0] == "push":
    here(words[2]).parent.exists() or sys.exit("remote couldn't create file: No such file or directory")
    shutil.copytree(words[1], here(words[2]))
elif words[0] == "exec-out":
    sys.stdout.write(here(words[1].split()[1]).read_text())
elif words[1].startswith("pm path"):
    print("package:/data/app/base.apk" if (answer / "installed").exists() else "", end="")
elif words[1].startswith("mkdir"):
    here(words[1].split()[2]).mkdir(parents=True)
elif words[1].startswith("am instrument"):
    part = words[1].split()
    folder = here("/sdcard/Android/media/" + part[6].split("/")[0]) / part[5]
    shutil.copytree(folder, answer / "sent")
    if (answer / "app").exists():
        subprocess.run([*json.loads((answer / "app").read_text()), str(folder)], check=True, stdout=sys.stderr)
    for name in ("result.json", "features.b64"):
        if (answer / name).exists():
            shutil.copy(answer / name, folder)
    print((answer / "said").read_text())
elif words[1].startswith("am force-stop"):
    shutil.rmtree(here(words[1].split()[-1]))
"""


class Phone:
    """A stand-in for adb on PATH and what the app on it answers."""

    def __init__(self, folder):
        self.folder, self.root, self.answer = folder, folder / "phone", folder / "answer"
        (folder / "bin").mkdir()
        self.root.mkdir()
        self.answer.mkdir()
        (self.answer / "installed").touch()
        (self.answer / "said").write_text("INSTRUMENTATION_RESULT: rd_latency=done\nINSTRUMENTATION_CODE: -1")
        program = folder / "bin" / "adb"
        fields = {"root": str(self.root), "answer": str(self.answer), "calls": str(folder / "calls")}
        program.write_text(ADB.format(python=sys.executable, **fields))
        program.chmod(0o755)

    def answers(self, measurement, features):
        """``measurement`` is a whole one or text, ``features`` (N, F, W) or text."""
        text = measurement if isinstance(measurement, str) else json.dumps(to_dict(measurement))
        (self.answer / "result.json").write_text(text)
        if not isinstance(features, str):
            data = np.ascontiguousarray(features.transpose(1, 0, 2), "<f4").tobytes()
            features = base64.b64encode(data).decode()
        (self.answer / "features.b64").write_text(features)

    def calls(self):
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def left(self):
        return [path for path in self.root.rglob("*") if path.is_file()]


@pytest.fixture
def phone(tmp_path, monkeypatch):
    made = Phone(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return made


def answer(measurement, bundle, **changes):
    """An app's answer: raw times and nothing that follows from them."""
    verified = read_bundle(bundle)
    facts = replace(measurement.bundle, artifact_sha256=verified.manifest.files[verified.manifest.artifact].sha256)
    metrics = {"load": 12.0, "first_frame": 300.0, "peak_memory": 8e7}
    made = replace(measurement, bundle=facts, request=REQUEST, metrics=metrics, details={"start_temperature_c": 31.0})
    return replace(made, **changes)


def measure(bundle, request=REQUEST, app="reusedistill.measure"):
    transport = AndroidApp("R5CT", app)
    return transport.measure(bundle, request, limit_s=60, progress=lambda _: None, cancel=Event())


def expected(bundle):
    return read_expected(read_bundle(bundle)).features


def test_the_app_is_given_everything_and_its_answer_is_completed(phone, measurement, streaming_bundle):
    made = answer(measurement, streaming_bundle)
    phone.answers(made, expected(streaming_bundle))
    result = measure(streaming_bundle)
    latency = np.asarray(made.samples[0].latency_ms)
    assert result.samples == made.samples
    assert result.metrics["load"] == 12.0 and result.metrics["max"] == pytest.approx(latency.max())
    assert np.median(latency) <= result.metrics["p50"] <= latency.max()
    assert result.details["selftest"].startswith("passed: max abs 0") and result.details["start_temperature_c"] == 31.0
    assert result.bundle.name == streaming_bundle.name and result.bundle.precision == "fp32"
    request = json.loads((phone.answer / "sent/request.json").read_text())
    assert request["request"] == to_dict(REQUEST) and request["chunks"] == 25
    sent = {path.name for path in (phone.answer / "sent/bundle").iterdir()}
    assert sent == {"manifest.json", "model.onnx", "selftest.npz"}
    assert (phone.answer / "sent/audio.f32").stat().st_size == 4 * 30 * 16_000
    wave = np.fromfile(phone.answer / "sent/selftest.f32", "<f4")
    np.testing.assert_array_equal(wave, read_expected(read_bundle(streaming_bundle)).wave)
    assert phone.left() == [] and phone.calls()[-1][1].startswith("am force-stop reusedistill.measure; rm -rf ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: replace(m, request=replace(REQUEST, seconds=2.0)), "another request"),
        (lambda m: replace(m, bundle=replace(m.bundle, artifact_sha256="0" * 64)), "measured artifact 0000000000"),
        (lambda m: replace(m, samples=m.samples * 2), "2 streams, 1 were requested"),
        (lambda m: "{", "not usable"),
        (lambda m: "[" * 5000, "not usable|nested"),
        (lambda m: json.dumps({**to_dict(m), "taken_at": "today"}), "taken_at"),
        (lambda m: "x" * (18 << 20), "more than is read"),
    ],
)
def test_an_answer_that_is_none_is_not_measured(phone, measurement, streaming_bundle, change, message):
    phone.answers(change(answer(measurement, streaming_bundle)), expected(streaming_bundle))
    with pytest.raises(NotMeasured, match=message):
        measure(streaming_bundle)
    assert phone.left() == []


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda right: right + 0.5, "gives other features than the bundle's source"),
        (lambda right: np.full_like(right, np.nan), "NaN"),
        (lambda right: right[:, :-1], "characters"),
        (lambda right: "*" * 4 * ((4 * right.size + 2) // 3), "not usable"),
    ],
)
def test_wrong_features_are_not_measured_however_fast(phone, measurement, streaming_bundle, features, message):
    phone.answers(answer(measurement, streaming_bundle), features(expected(streaming_bundle)))
    with pytest.raises(NotMeasured, match=message):
        measure(streaming_bundle)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("INSTRUMENTATION_RESULT: rd_latency=failed: mode soup\n", "failed: mode soup"),
        ("INSTRUMENTATION_RESULT: shortMsg=Process crashed.\nINSTRUMENTATION_CODE: 0", "Process crashed"),
        ("", "ended without a result"),
    ],
)
def test_an_app_that_fails_says_why(phone, streaming_bundle, result, message):
    (phone.answer / "said").write_text(result)
    with pytest.raises(NotMeasured, match=message):
        measure(streaming_bundle)
    assert phone.left() == []


def test_without_the_app_the_remedy_is_named(phone, streaming_bundle):
    (phone.answer / "installed").unlink()
    with pytest.raises(NotMeasured, match=r"reusedistill\.measure is not installed") as error:
        measure(streaming_bundle)
    assert "clients/android" in error.value.hint and "--remote-python" in error.value.hint


def test_what_the_app_does_not_do_is_said_before_anything_is_copied(phone, make_bundle, streaming_bundle):
    with pytest.raises(NotMeasured, match="streaming bundles for onnx, ort, litert, this one is window"):
        measure(make_bundle("window"))
    for request in (replace(REQUEST, mode="multi-stream"), replace(REQUEST, probe=True)):
        with pytest.raises(NotMeasured, match="paced and back to back"):
            measure(streaming_bundle, request)
    assert not (phone.folder / "calls").exists()


def test_an_unreachable_phone_is_unreachable(monkeypatch, streaming_bundle):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unreachable, match="adb is not installed"):
        measure(streaming_bundle)


def test_phones_are_measured_by_the_app_unless_a_python_is_named():
    (by_app,) = devices(["pixel-8=adb:R5"], hosts=[], fleet={}, access=Access())
    (by_python,) = devices(
        ["pixel-8=R5"], hosts=[], fleet={}, access=Access(adb_python="/data/local/tmp/py/bin/python3")
    )
    assert by_app.transport == AndroidApp("R5") and by_app.transport.address == "adb:R5"
    assert isinstance(by_python.transport, Adb)
