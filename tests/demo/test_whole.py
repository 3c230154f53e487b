"""The demo from end to end, as `make demo` runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_ends_with_its_table_and_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo.run", "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1400)
    # 1: a latency budget was missed, which on a busy machine is a result and no defect of the demo.
    assert ended.returncode in (0, 1), ended.stdout[-3000:] + ended.stderr[-3000:]
    if ended.returncode:
        assert "measure" in ended.stderr.splitlines()[-1]
    table = [line for line in ended.stdout.splitlines() if line.startswith(("offline", "streaming"))]
    assert len(table) == 4
    assert all("3 of 6 layers reuse" in line for line in table)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
