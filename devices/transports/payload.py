"""The self-contained runner: runtime, devices and report as sources, with the bundle, in one tar."""

from __future__ import annotations

import io
import tarfile
from importlib import import_module
from pathlib import Path

from reuse_distill.runtime.bundle import MANIFEST, read_bundle

import reuse_distill

BUNDLE = "bundle"
PACKAGES = ("runtime", "devices", "report")


def pack(bundle: Path) -> bytes:
    """The tar as bytes: every Python file of the packages that a device needs and the verified files of the bundle.

    Names and contents only: owners and times are those of nobody, so the same sources give the same bytes.
    """
    verified = read_bundle(bundle)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "reuse_distill/__init__.py", Path(reuse_distill.__file__))
        for package in PACKAGES:
            folder = Path(*import_module(f"reuse_distill.{package}").__path__)
            for path in sorted(folder.rglob("*.py")):
                _add(tar, f"reuse_distill/{package}/{path.relative_to(folder).as_posix()}", path)
        for name in [MANIFEST, *sorted(verified.manifest.files)]:
            _add(tar, f"{BUNDLE}/{name}", verified.path / name)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    data = path.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    tar.addfile(entry, io.BytesIO(data))
