"""rd-stream as a process in trouble: status 2 (143 for SIGTERM), no traceback, nothing half written left behind."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("shells and signals of POSIX", allow_module_level=True)

FLAC = Path(__file__).resolve().parents[2] / "demo" / "speech" / "cora-3.flac"
PROGRAM = [sys.executable, "-m", "reuse_distill.runtime.rd_stream"]


def shell(line: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    variables = {"RD": " ".join(PROGRAM), "FLAC": str(FLAC), "T": str(tmp_path)}
    variables["PYTHONDONTWRITEBYTECODE"] = "1"  # under a limit of sizes Python leaves cut files, and trips over them
    return subprocess.run(
        ["bash", "-c", line], env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )


TROUBLE = {
    "full disk, lines": ("ulimit -f 10; $RD $FLAC --output $T/out/o.jsonl", "the output could not be written"),
    "full disk, array": ("ulimit -f 10; $RD $FLAC --output $T/out/o.npy", "the output could not be written"),
    "standard input closed": ("$RD - <&-", "standard input"),
    "standard output closed": ("$RD $FLAC >&-", "standard output is closed"),
    "standard error closed": ("$RD $T/none.wav 2>&-", ""),
    "a rate of 2 GHz": ("$RD $T/fast.wav", "outside 1000 to 768000 Hz"),
    "a rate of 1 Hz": ("head -c 32000 /dev/zero | $RD - --rate 1", "outside 1000 to 768000 Hz"),
    "100,000 threads": ("head -c 32000 /dev/zero | $RD - --threads 100000", "threads=100000"),
    "a name with an escape": ("$RD $'\\e]0;owned\\a.wav'", "\\x1b]0;owned\\x07.wav: no such file"),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_reported_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    data, rate_hz = bytes(8000), 2**31 - 1
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate_hz, (2 * rate_hz) & 0xFFFFFFFF, 2, 16)
    size = struct.pack("<I", 36 + len(data))
    (tmp_path / "fast.wav").write_bytes(
        b"RIFF" + size + b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
    )
    line, message = TROUBLE[name]
    done = shell(line, tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    command = [*PROGRAM, "-", "--output", str(tmp_path / "s.npy")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if list(tmp_path.iterdir()):  # the temporary file: the stream is open
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.endswith("stopped by SIGTERM\n") and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
