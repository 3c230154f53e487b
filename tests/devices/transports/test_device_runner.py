"""The device side by itself: what it unpacks, what it refuses, and that it goes when nobody listens."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from reuse_distill.devices.transports import device_runner
from reuse_distill.devices.transports.remote_runner import pack
from reuse_distill.runtime.errors import RdError

SOURCE = Path(device_runner.__file__).read_text()


def tar_of(*entries):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry, data in entries:
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def start(payload, there, *, size=None, request="{}", limit="30"):
    command = [sys.executable, "-c", SOURCE, str(len(payload) if size is None else size), limit, request]
    env = {**os.environ, "TMPDIR": str(there), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)


def link(name):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return entry


@pytest.mark.parametrize(
    "entry",
    [tarfile.TarInfo("../out"), tarfile.TarInfo("/tmp/out"), link("a"), tarfile.TarInfo("a/../../out")],
)
def test_entries_that_lead_out_are_refused_and_nothing_stays(tmp_path, entry):
    there = tmp_path / "there"
    there.mkdir()
    payload = tar_of((entry, b"" if entry.issym() else b"x"))
    process = start(payload, there)
    out, _ = process.communicate(payload, timeout=30)
    assert process.returncode == 4 and b"refused entry" in out
    assert list(there.iterdir()) == [] and [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_connection_cut_while_copying_leaves_nothing(tmp_path):
    payload = b"0" * 100_000
    process = start(payload, tmp_path, size=200_000)
    out, _ = process.communicate(payload, timeout=30)
    assert process.returncode == 4 and b"ended after 100000 of 200000" in out
    assert list(tmp_path.iterdir()) == []


def test_no_space_is_said_before_anything_is_copied(tmp_path):
    process = start(b"", tmp_path, size=10**15)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 4 and b"no space on the device" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["closed", "limit"])
def test_the_worker_goes_when_nobody_listens_or_time_is_up(tmp_path, streaming_bundle, end):
    payload = pack(streaming_bundle)
    process = start(payload, tmp_path, request=json.dumps({"seconds": 60}), limit="4" if end == "limit" else "60")
    process.stdin.write(payload)
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("rd-latency.*/bundle/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.glob("rd-latency.*"))
    if end == "closed":
        process.stdin.close()
    assert process.wait(timeout=20) == (4 if end == "limit" else 1)
    assert list(tmp_path.iterdir()) == []
    assert (b"not done in time" in process.stdout.read()) == (end == "limit")


def test_an_old_python_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 8, 0))
    monkeypatch.setattr(device_runner.signal, "signal", lambda *_: None)
    assert device_runner.main(["0", "1", "{}"]) == 4
    assert "the device has Python 3.8, 3.10 is needed" in capsys.readouterr().out


def test_the_far_side_is_grammar_of_python_3_6():
    import ast

    ast.parse(SOURCE, feature_version=(3, 6))
    names = {n.name for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import) for n in node.names}
    assert names <= {
        "io",
        "json",
        "os",
        "select",
        "shutil",
        "signal",
        "subprocess",
        "sys",
        "tarfile",
        "tempfile",
        "time",
    }


def test_the_payload_is_the_same_bytes_twice_and_holds_verified_files_only(make_bundle):
    bundle = make_bundle(name="packed")
    (bundle / "notes.txt").write_text("not in the manifest")
    payload = pack(bundle)
    assert payload == pack(bundle)
    with tarfile.open(fileobj=io.BytesIO(payload)) as tar:
        names = tar.getnames()
    sources = {f"reuse_distill/{name}.py" for name in ("devices/worker", "runtime/encoder", "report/quantities")}
    assert {"bundle/model.onnx", *sources} <= set(names)
    assert not any("notes" in name or "__pycache__" in name for name in names)
    (bundle / "model.onnx").write_bytes(b"changed")
    with pytest.raises(RdError, match="bytes, the manifest says"):
        pack(bundle)
