"""The measuring app compiled, and its measurement run on a JVM through ``rd-latency`` and a stand-in for adb.

``KOTLINC=path/to/kotlinc ORT_CLASSES=classes.jar pytest -m slow tests/devices/transports/test_android_build.py``;
without ORT_CLASSES (the classes of ONNX Runtime's AAR) and LITERT_CLASSES the stubs of the Kotlin client's tests stand
for them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from reuse_distill.devices.rd_latency import main
from reuse_distill.devices.transports import android
from reuse_distill.runtime import Encoder

from tests.devices.transports.test_android_app import Phone
from tests.export.targets.ort.test_kotlin_client import answer

CLIENTS = Path(__file__).resolve().parents[3] / "clients"
APP = CLIENTS / "android" / "app" / "src"
ANDROID = "{http://schemas.android.com/apk/res/android}"
KOTLIN_FILES = sorted((APP / "main" / "kotlin").rglob("*.kt"))


def test_both_sides_name_package_runner_and_files_alike():
    manifest = ET.parse(APP / "main" / "AndroidManifest.xml").getroot()
    (instrumentation,) = manifest.findall("instrumentation")
    assert instrumentation.get(f"{ANDROID}name") == f"{android.APP}.MeasureInstrumentation"
    assert instrumentation.get(f"{ANDROID}targetPackage") == android.APP
    assert manifest.findall("uses-permission") == []
    assert f'applicationId = "{android.APP}"' in (CLIENTS / "android/app/build.gradle.kts").read_text()
    text = "\n".join(file.read_text() for file in KOTLIN_FILES)
    assert all(f'"{name}"' in text for name in (android.RESULT, android.FEATURES, "audio.f32", "selftest.f32"))
    assert 'getString("folder")' in text and 'putString("rd_latency", "done")' in text


def test_the_request_is_read_by_the_names_it_has():
    text = (APP / "main/kotlin/reusedistill/measure/Request.kt").read_text()
    names = set(re.findall(r'data\.(?:int|double|string)\("(\w+)"\)', text)) - {"chunks", "least_s"}
    assert names <= set(android.to_dict(android.Request()))
    assert {"mode", "streams", "warmup_chunks", "threads", "provider"} <= names


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """The class path of the compiled app, its measurement on a JVM and the streaming client."""
    kotlinc, javac = os.environ.get("KOTLINC") or shutil.which("kotlinc"), shutil.which("javac")
    if kotlinc is None or javac is None:
        pytest.skip("no Kotlin compiler (KOTLINC, or kotlinc on the path) or no javac")
    folder = tmp_path_factory.mktemp("android")
    stubs = [str(file) for file in (APP / "test" / "stubs").rglob("*.java")]
    engines = {"ai": os.environ.get("ORT_CLASSES", ""), "org": os.environ.get("LITERT_CLASSES", "")}
    for package, given in engines.items():
        if not given:
            stubs += [str(file) for file in (CLIENTS / "kotlin/src/test/stubs" / package).rglob("*.java")]
    subprocess.run([javac, "-d", str(folder / "stubs"), *stubs], check=True)
    path = ":".join(filter(None, [str(folder / "stubs"), *engines.values()]))
    places = [str(CLIENTS / "kotlin/src/main/kotlin"), str(CLIENTS / "kotlin/src/test/kotlin/reusedistill/Replay.kt")]
    places += [str(APP / part / "kotlin") for part in ("main", "test")]
    words = ["-cp", path, "-include-runtime", "-d", str(folder / "app.jar"), "-Werror", *places]
    subprocess.run([kotlinc, *words], check=True)
    return f"{folder / 'app.jar'}:{path}"


def serve_steps(encoder, listening):
    """Compute the steps of whoever connects."""
    connection, _ = listening.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as requests, connection.makefile("wb") as answers:
        answer(requests, answers, encoder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["paced", "back-to-back"])
def test_rd_latency_measures_with_the_app_s_own_measurement(
    classes, mode, tmp_path, monkeypatch, streaming_bundle, capsys
):
    """Everything but Android: the pushed files, the Kotlin measurement, its JSON, the self-test and the verdict."""
    phone = Phone(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    encoder = Encoder.load(streaming_bundle, provider="cpu")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        steps = threading.Thread(target=serve_steps, args=(encoder, listening), daemon=True)
        steps.start()
        program = ["java", "-cp", classes, "reusedistill.measure.MeasureOnJvmKt", str(listening.getsockname()[1])]
        (phone.answer / "app").write_text(json.dumps(program))
        budget = tmp_path / "budget.toml"
        budget.write_text('p50 = "10 s"\npeak_memory = "8 GB"\n')
        words = [str(streaming_bundle), "--device", "pixel-8", f"--{mode}", "--seconds", "4", "--json"]
        status = main([*words, str(tmp_path / "out.json"), "--budget", str(budget)])
        steps.join(timeout=30)
    assert status == 0, capsys.readouterr()
    (outcome,) = json.loads((tmp_path / "out.json").read_text())["outcomes"]
    measured = outcome["measurement"]
    assert outcome["verdict"] == "pass" and measured["details"]["selftest"].startswith("passed")
    assert len(measured["samples"][0]["latency_ms"]) >= 100 and measured["metrics"]["p90"] > 0
    assert measured["context"]["machine"] == "Test Phone" and measured["throttling"] == "no"
    assert measured["metrics"]["temperature"] == 41.0 == measured["details"]["start_temperature_c"]
    assert phone.left() == []
