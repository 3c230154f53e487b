"""adb and devicectl against stand-ins on PATH that record every call; neither has been run on a phone."""

from __future__ import annotations

import json
import os
import sys
from threading import Event

import pytest
from reuse_distill.devices.measuring.measurement import Request
from reuse_distill.devices.transports.android import Adb
from reuse_distill.devices.transports.devicectl import DeviceCtl
from reuse_distill.devices.transports.transport import NotMeasured, Unreachable
from reuse_distill.runtime.untrusted_input import to_dict

REQUEST = Request(mode="back-to-back", seconds=1.0, warmup_chunks=1)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """``stand_in("adb", SCRIPT)`` puts a shell script on PATH that appends its arguments to a log, then runs SCRIPT."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name, script):
        path = folder / name
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" | head -n 1 >> {tmp_path}/calls\n{script}\n')
        path.chmod(0o755)
        return lambda: (tmp_path / "calls").read_text().splitlines()

    return make


def measure(transport, bundle):
    return transport.measure(bundle, REQUEST, limit_s=60, progress=lambda _: None, cancel=Event())


def test_adb_runs_the_far_side_in_its_shell_and_leaves_nothing(stand_in, streaming_bundle, tmp_path):
    phone = tmp_path / "data-local-tmp"
    phone.mkdir()
    # The shell of the stand-in is this machine's, with /data/local/tmp led elsewhere.
    led = f'eval "$(echo "$1" | sed "s#/data/local/tmp#{phone}#g")"'
    calls = stand_in("adb", f'shift 2\ncase "$1" in get-state) echo device;; shell) shift 2; {led};; esac')
    result = measure(Adb(serial="R5CT", python=sys.executable), streaming_bundle)
    assert len(result.samples[0].latency_ms) == 25
    assert list(phone.iterdir()) == []
    assert calls()[0] == "-s R5CT get-state" and calls()[1].startswith("-s R5CT shell -T TMPDIR=/data/local/tmp")


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("echo 'error: device unauthorized.' >&2; exit 1", Unreachable, "unauthorized"),
        ("echo offline", Unreachable, "offline"),
        ('case "$3" in get-state) echo device;; *) exit 127;; esac', NotMeasured, "there is no python3"),
        ('case "$3" in get-state) echo device;; *) exit 255;; esac', Unreachable, "the connection was lost"),
    ],
)
def test_adb_failures_get_the_right_verdict(stand_in, streaming_bundle, script, error, message):
    stand_in("adb", script)
    with pytest.raises(error, match=message):
        measure(Adb(serial="R5CT", python="python3"), streaming_bundle)


def test_without_adb_installed_the_phone_is_unreachable(monkeypatch, streaming_bundle):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unreachable, match="adb is not installed"):
        measure(Adb(), streaming_bundle)


def test_devicectl_copies_launches_and_fetches(stand_in, streaming_bundle, measurement, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(to_dict(measurement)))
    loop = 'for w in "$@"; do [ "$last" = %s ] && %s; last=$w; done;;'
    send = loop % ("--source", f'cp -r "$w" {tmp_path}/sent')
    fetch_it = loop % ("--destination", f'cp {tmp_path}/result.json "$w"')
    calls = stand_in("xcrun", f'case "$*" in *"copy to"*) {send}\n*"copy from"*) {fetch_it} esac')
    assert measure(DeviceCtl(device="00008120", app="org.example.bench"), streaming_bundle) == measurement
    copy, launch, fetch = calls()
    domain = "--device 00008120 --domain-type appDataContainer --domain-identifier org.example.bench"
    assert copy.startswith(f"devicectl device copy to {domain} --source ") and " --destination tmp/rd-latency-" in copy
    folder = copy.rsplit(" ", 1)[1]
    options = "--console --terminate-existing --device 00008120"
    assert launch == f"devicectl device process launch {options} org.example.bench -- --rd-latency {folder}"
    assert fetch.startswith(f"devicectl device copy from {domain} --source {folder}/result.json --destination ")
    assert json.loads((tmp_path / "sent/request.json").read_text()) == to_dict(REQUEST)
    sent = {p.name for p in (tmp_path / "sent/bundle").iterdir()}
    assert sent == {"manifest.json", "model.onnx", "selftest.npz"}
    assert not any("--remove-existing-content" in call for call in calls())


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (
            'case "$*" in *"copy to"*) echo "ERROR: device not found" >&2; exit 1;; esac',
            Unreachable,
            "device not found",
        ),
        (
            'case "$*" in *launch*) echo "app crashed" >&2; exit 1;; esac',
            NotMeasured,
            "measuring failed: app crashed",
        ),
        ("true", NotMeasured, "no usable result.json"),
    ],
)
def test_devicectl_failures_get_the_right_verdict(stand_in, streaming_bundle, script, error, message):
    stand_in("xcrun", script)
    with pytest.raises(error, match=message):
        measure(DeviceCtl(device="d", app="a"), streaming_bundle)


@pytest.mark.parametrize(
    ("device", "app", "message"), [("", "a", "no device identifier"), ("d", "", "no measuring app")]
)
def test_an_apple_device_needs_an_identifier_and_an_app(streaming_bundle, device, app, message):
    with pytest.raises(NotMeasured, match=message):
        measure(DeviceCtl(device=device, app=app), streaming_bundle)


def test_without_xcode_the_device_is_unreachable(monkeypatch, streaming_bundle):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unreachable, match="xcrun is not installed"):
        measure(DeviceCtl(device="d", app="a"), streaming_bundle)
