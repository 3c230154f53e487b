"""The self-contained runner on emulated arm64: right features there; its timings mean nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/arm64_emulation.py"
TOOLS = ("debootstrap", "dpkg-deb", "qemu-aarch64-static")


@pytest.mark.slow
@pytest.mark.device
def test_the_runner_gives_the_right_features_on_arm64(make_bundle, tmp_path):
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"missing: {', '.join(missing)}")
    command = [sys.executable, str(SCRIPT), str(make_bundle(name="arm")), "--root", str(tmp_path / "arm64")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "architecture aarch64" in done.stdout and "self-test on arm64: passed" in done.stdout
