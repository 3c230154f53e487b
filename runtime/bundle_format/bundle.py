"""A bundle on disk: verified before anything in it is loaded, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reuse_distill.runtime.bundle_format.manifest import FileEntry, Manifest
from reuse_distill.runtime.bundle_format.manifest_limits import check_manifest
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import from_dict, read_json_file, to_dict
from reuse_distill.runtime.whole_files import folder_beside, with_usual_modes

MANIFEST = "manifest.json"
SELFTEST = "selftest.npz"
REPORT = "report.html"
# Errors of the disk, not of the program: reported as such; any other OSError passes.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)
# Below glibc's threshold of 128 kB: freeing larger blocks raises that threshold for good, and what loading a model then
# frees stays scattered over the heap (13 MB for a 22 M student).
HASH_BLOCK_BYTES = 1 << 16
SHIPPED = Path(__file__).parents[1] / "bundles" / "pocket-stream"  # what rd-stream uses where none is named
CERTIFICATE = "certificate.json"  # written later, on the device: not part of the verified files


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder."""

    path: Path
    manifest: Manifest

    @property
    def artifact(self) -> Path:
        return self.path / self.manifest.artifact


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and verify a bundle: schema, paths inside the folder, sha256 of every file.

    Raises RdError when the folder or a file is missing, a path leaves the folder, or a hash differs.
    """
    folder = Path(path)
    manifest_file = folder / MANIFEST
    if not is_file(manifest_file):
        raise RdError(f"{folder}: not a bundle, there is no {MANIFEST}", hint="rd-export writes bundles")
    data = read_json_file(manifest_file, hint="export the bundle again")
    manifest = from_dict(Manifest, data, where=str(manifest_file))
    check_manifest(manifest)
    for name, entry in manifest.files.items():
        _verify(_inside(folder, name), name, entry)
    if not manifest.artifact_files:
        raise RdError(f"{manifest_file}: artifact {manifest.artifact!r} is not among the files")
    _check_nothing_added(folder, manifest)
    return Bundle(folder, manifest)


def _inside(folder: Path, name: str) -> Path:
    """The file ``name`` of the folder, refusing absolute paths, ``..`` and links that lead out."""
    path = folder / name
    try:
        inside = not Path(name).is_absolute() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name that no system has
        raise RdError(f"{folder}: file {name[:80]!r} cannot be looked up: {error}") from None
    if not inside:
        raise RdError(f"{folder}: file {name!r} is outside the bundle")
    return path


def is_file(path: Path) -> bool:
    """Whether there is a file; False for names that no system has."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _verify(path: Path, name: str, entry: FileEntry) -> None:
    hint = "the bundle is damaged or was changed by hand; copy or export it again"
    if not is_file(path):
        raise RdError(f"{path.parent}: {name} is missing", hint=hint)
    size_bytes = path.stat().st_size
    if size_bytes != entry.size_bytes:
        raise RdError(f"{path}: {size_bytes} bytes, the manifest says {entry.size_bytes}", hint=hint)
    actual = file_sha256(path)
    if actual != entry.sha256:
        raise RdError(f"{path}: sha256 {actual[:16]}…, the manifest says {entry.sha256[:16]}…", hint=hint)


def _check_nothing_added(folder: Path, manifest: Manifest) -> None:
    """Raises RdError where a folder artifact (an ``.mlpackage``) holds files that nobody has hashed."""
    artifact = _inside(folder, manifest.artifact)
    if not artifact.is_dir():
        return
    present = {path.relative_to(folder).as_posix() for path in artifact.rglob("*") if not path.is_dir()}
    added = sorted(present - set(manifest.artifact_files))
    if added:
        raise RdError(
            f"{folder}: {added[0]} is not in the manifest",
            hint="the bundle was changed by hand; copy or export it again",
        )


@contextmanager
def write_bundle(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place when the block ends without an error.

    An error, a crash or a full disk leaves no half bundle and does not touch an existing one.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise RdError(f"{target}: exists already", hint="choose another --output, or give --overwrite")
    if target.exists() and not (target / MANIFEST).is_file():
        raise RdError(f"{target}: exists and is not a bundle; it is not overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder_beside(target)
    try:
        yield temporary
        _swap(with_usual_modes(temporary), target)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RdError(
            f"{target}: could not be written ({error.strerror})",
            hint="free some disk space, or choose another place for --output",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = folder_beside(target)
    target.rename(old / "bundle")
    try:
        temporary.rename(target)
    except OSError:
        (old / "bundle").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``; the caller has filled ``files`` (see ``list_files``)."""
    text = json.dumps(to_dict(manifest), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Hash and size of every file below the folder but the manifest and the certificate."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): FileEntry(file_sha256(p), p.stat().st_size)
        for p in files
        if p.relative_to(folder).as_posix() not in (MANIFEST, CERTIFICATE)
    }
