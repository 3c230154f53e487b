"""Limits of the process and of its container count, not only what the machine has free."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from reuse_distill.runtime import memory


def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """A /proc and a /sys/fs/cgroup with these files."""
    for name, text in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cg")


V1 = "4:cpu,cpuacct:/x\n7:memory:/docker/abc\n"
NOTHING, HUGE = "max\n", f"{2**63 - 4096}\n"
CASES = {
    "the machine": ({}, 8000 * 1024),
    "version 2": (
        {"proc/self/cgroup": "0::/a/b\n", "cg/a/b/memory.max": "3000\n", "cg/a/b/memory.current": "1000\n"},
        2000,
    ),
    "version 2, the group above": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "cg/a/b/memory.max": NOTHING,
            "cg/a/b/memory.current": "1000\n",
            "cg/a/memory.max": "5000\n",
            "cg/a/memory.current": "4500\n",
        },
        500,
    ),
    "version 2, inside a container": (
        {"proc/self/cgroup": "0::/host/path\n", "cg/memory.max": "900\n", "cg/memory.current": "1000\n"},
        0,
    ),
    "version 1": (
        {
            "proc/self/cgroup": V1,
            "cg/memory/docker/abc/memory.limit_in_bytes": "7000\n",
            "cg/memory/docker/abc/memory.usage_in_bytes": "1000\n",
        },
        6000,
    ),
    "version 1, no limit": (
        {"proc/self/cgroup": V1, "cg/memory/memory.limit_in_bytes": HUGE, "cg/memory/memory.usage_in_bytes": "1\n"},
        8000 * 1024,
    ),
    "nonsense": (
        {"proc/self/cgroup": "0\n\nx:y\n7:memory\n", "cg/memory/memory.limit_in_bytes": "many\n"},
        8000 * 1024,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_control_groups(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, expected = CASES[name]
    system(tmp_path, monkeypatch, files)
    assert memory.available_bytes() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are read from Linux")
def test_the_limit_of_the_process() -> None:
    """As ``ulimit -v`` sets it: what it leaves, and no more, is available."""
    code = (
        "import resource; from reuse_distill.runtime import memory\n"
        "used = dict(memory._fields(memory.PROC / 'self' / 'status'))['VmSize']\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, resource.RLIM_INFINITY))\n"
        "print(memory.available_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) <= 300_000_000
