"""An export that is stopped, by Ctrl-C or by SIGTERM, leaves no half bundle and no scratch folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = "from reuse_distill.export.rd_export import main; import sys; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_nothing_is_left_behind(sent: signal.Signals, status: int, tmp_path: Path) -> None:
    scratch, output = tmp_path / "scratch", tmp_path / "bundles"
    scratch.mkdir()
    student = ROOT / "student" / "weights" / "pocket-stream"
    words = [str(student), "--mode", "streaming", "--output", str(output / "bundle")]
    environment = {**os.environ, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CODE, *words], stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        assert running.stderr is not None
        lines = []
        for line in running.stderr:
            lines.append(line)
            if line.startswith("converting"):
                running.send_signal(sent)
                break
        lines.append(running.stderr.read())
        assert running.wait() == status, "".join(lines)
    assert "stopped" in lines[-1]
    assert "Traceback" not in lines[-1]
    assert list(output.iterdir()) == []
    assert [path for path in scratch.iterdir() if path.name.startswith("rd-export")] == []
