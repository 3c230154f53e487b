"""Where a measurement was taken: machine, processor, operating system and software versions.

A number without these is not comparable to anything; they are stored with every series and decide which baselines
apply.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

UNMEASURED = "unmeasured"
COMMON = ("numpy", "soxr")
ENGINES_OF = {
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
    "ort": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt",),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "litert": ("ai-edge-litert",),
    "coreml": ("coremltools",),
}
PACKAGES = (*COMMON, *sorted({name for names in ENGINES_OF.values() for name in names}), "reuse-distill")


@dataclass(frozen=True)
class Context:
    """Machine and software of one measurement."""

    machine: str  # what the board or the firmware calls itself
    processor: str
    architecture: str
    cores: int  # that this process may run on
    memory_bytes: int  # 0 where the machine does not tell
    system: str
    kernel: str
    python: str
    packages: dict[str, str]
    board_release: str  # L4T release of a Jetson, `unmeasured` elsewhere
    virtualised: str  # yes | no | unmeasured
    load_before: float | None  # one-minute load average before the run: a busy machine is no place to measure

    @property
    def fingerprint(self) -> str:
        """What makes two machines the same kind of device: board, processor, architecture and cores."""
        text = "\n".join([self.machine, self.processor, self.architecture, str(self.cores)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def software(self) -> str:
        """The versions of everything that is installed and could matter, as one line for people."""
        return self.software_of([name for name in self.packages if name != "reuse-distill"])

    def software_for(self, target: str) -> str:
        """The versions that the timing of a bundle for ``target`` depends on: an engine that it does not use, or this
        project's own version, makes no other device of it."""
        return self.software_of([*COMMON, *ENGINES_OF.get(target, ())])

    def software_of(self, names: Sequence[str]) -> str:
        """Packages, Python, system and board release as one line."""
        packages = [f"{name} {version}" for name, version in sorted(self.packages.items()) if name in names]
        python = ["Python " + ".".join(self.python.split(".")[:2])] if self.python else []  # an app has none
        board = [] if self.board_release == UNMEASURED else [self.board_release]
        return ", ".join([*packages, *python, self.system, *board])


def collect(root: Path = Path("/")) -> Context:
    """Read the context of this machine; ``root`` is the file system to read (tests give a made one)."""
    cpuinfo = _text(root / "proc/cpuinfo")
    return Context(
        machine=_machine(root),
        processor=_processor(cpuinfo),
        architecture=platform.machine() or UNMEASURED,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        memory_bytes=_memory_bytes(root),
        system=_system(root),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=_packages(),
        board_release=_first_line(root / "etc/nv_tegra_release").removeprefix("# ") or UNMEASURED,
        virtualised=("yes" if re.search(r"^flags.*\bhypervisor\b", cpuinfo, re.M) else "no") if cpuinfo else UNMEASURED,
        load_before=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    except OSError:
        return ""


def _first_line(path: Path) -> str:
    return _text(path).strip().split("\n")[0].strip()


def _machine(root: Path) -> str:
    for name in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if model := _first_line(root / name):
            return model
    dmi = root / "sys/class/dmi/id"
    product = " ".join(filter(None, (_first_line(dmi / "sys_vendor"), _first_line(dmi / "product_name"))))
    return product or UNMEASURED


def _processor(cpuinfo: str) -> str:
    """``model name`` on x86; on Arm the implementer and part numbers, which name the core type."""
    if match := re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M):
        return match[1].strip()
    implementer = re.search(r"^CPU implementer\s*:\s*(\S+)", cpuinfo, re.M)
    parts = sorted(set(re.findall(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.M)))
    if implementer and parts:
        return f"Arm implementer {implementer[1]} parts {' '.join(parts)}"
    return platform.processor() or UNMEASURED


def _memory_bytes(root: Path) -> int:
    match = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.M)
    return int(match[1]) * 1024 if match else 0


def _system(root: Path) -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(root / "etc/os-release"), re.M)
    return match[1] if match else f"{platform.system()} {platform.release()}"


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
