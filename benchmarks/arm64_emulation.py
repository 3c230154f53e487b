"""Run the self-contained runner on arm64 under user-mode emulation: a check of correctness, never of speed.

    python benchmarks/arm64_emulation.py BUNDLE [--root FOLDER]

Makes an arm64 Debian root (debootstrap's first stage, then the .debs unpacked: no chroot, no binfmt), puts the aarch64
wheels of NumPy, ONNX Runtime and soxr into it, and gives the runner and the bundle to its Python exactly as the ssh
transport does. The bundle's own self-test decides: the features on arm64 against those of the bundle's source. Timings
under emulation mean nothing and are not printed. Needs debootstrap, dpkg-deb, qemu-aarch64-static and root.

ONNX Runtime is held at 1.23.2: later ones crash under qemu 7.2.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from threading import Event

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reuse_distill.devices.measuring.measurement import Request
from reuse_distill.devices.transports.process import run
from reuse_distill.devices.transports.remote_runner import measured, pack, python_words

PYTHON = "python3.11"  # of Debian bookworm
WHEELS = ("numpy==2.4.*", "onnxruntime==1.23.2", "soxr")
MIRROR = "http://deb.debian.org/debian"
TOOLS = ("debootstrap", "dpkg-deb", "qemu-aarch64-static")


def main() -> int:
    """Exit status 0 where the self-test passed on arm64."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "rd-arm64", help="kept between runs")
    given = parser.parse_args()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        sys.exit(f"missing: {', '.join(missing)} (apt-get install debootstrap qemu-user-static)")
    python = make_python(given.root)
    payload, request = pack(given.bundle), Request(mode="back-to-back", seconds=2.0, warmup_chunks=1)
    command = python_words(str(python), len(payload), request, 1800)
    done = run(command, limit_s=1800, progress=print, cancel=Event(), payload=payload, heartbeat=True)
    result = measured(done, where="emulated arm64", python=str(python))
    if result is None:
        sys.exit(f"the emulated runner was lost: {done.messages}")
    chunks = sum(len(one.latency_ms) for one in result.samples)
    print(f"architecture {result.context.architecture}, {result.context.system}, {result.context.software}")
    print(f"{chunks} chunks streamed; their timings are those of an emulator and mean nothing")
    print(f"self-test on arm64: {result.details['selftest']}")
    return 0 if str(result.details["selftest"]).startswith("passed") else 1


def make_python(root: Path) -> Path:
    """An arm64 Python under ``root`` as one command that can start itself again (``sys.executable``)."""
    system, starter = root / "system", root / "python-arm64"
    if not starter.exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        options = ["--arch=arm64", "--foreign", "--variant=minbase", "--include=python3"]
        subprocess.run(
            ["debootstrap", *options, "bookworm", str(system), MIRROR], check=True, stdout=subprocess.DEVNULL
        )
        for deb in sorted((system / "var/cache/apt/archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(deb), str(system)], check=True)
        add_wheels(system / "usr/lib/python3/dist-packages")
        starter.write_text(starter_script(system, starter))
        starter.chmod(0o755)
    return starter


def add_wheels(into: Path) -> None:
    """Unpack the aarch64 wheels; no pip runs inside the emulated system."""
    with tempfile.TemporaryDirectory() as folder:
        platforms = [f"--platform={name}" for name in ("manylinux_2_28_aarch64", "manylinux2014_aarch64")]
        kind = ["--no-deps", "--only-binary=:all:", "--python-version=311", "--implementation=cp"]
        command = [sys.executable, "-m", "pip", "download", "-q", *kind, *platforms, "-d", folder, *WHEELS]
        subprocess.run(command, check=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(into)


def starter_script(system: Path, starter: Path) -> str:
    """The emulator with the root as its library path. argv[0] is the script itself, so that Python's own executable is
    something that the kernel of this machine can start."""
    home = "PYTHONHOME=/usr OMP_NUM_THREADS=1"
    emulator = f"qemu-aarch64-static -L {system} -0 {starter}"
    return f'#!/bin/sh\nexport {home}\nexec {emulator} {system}/usr/bin/{PYTHON} "$@"\n'


if __name__ == "__main__":
    sys.exit(main())
