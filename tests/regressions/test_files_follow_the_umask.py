"""Weights of heads and students had mode 600, whatever the umask: readable by their owner alone, unlike other files.

``safetensors`` and ``tempfile`` make such files. Everything that is written whole has the modes of any new file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from reuse_distill.devices.judging.baselines import write_text
from reuse_distill.distill.files import write_atomically
from reuse_distill.distill.publish import publish
from reuse_distill.runtime.bundle_format.bundle import write_bundle
from reuse_distill.runtime.cli.writers import whole_file
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.student import Student, preset, save_checkpoint
from reuse_distill.student.tasks import HeadConfig, TaskHead, save_head

SMALL = {"width": 32, "ffn_width": 48, "heads": 2, "layers": 2, "reuse_layers": (2,), "position_groups": 4}


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _checkpoint(folder: Path) -> None:
    save_checkpoint(folder / "student", Student(preset("tiny", **SMALL)).eval(), training={"steps": 1})


def _packed_and_published(folder: Path) -> None:
    save_checkpoint(folder / "packed", Student(preset("tiny", **SMALL)).eval(), int8=True)
    publish(folder / "packed", folder / "published", licence="mit")


def _head(folder: Path) -> None:
    config = HeadConfig(TaskOutput("task", "classify", 2, ("x", "y")), "ab" * 32, (1,), 4)
    for _ in range(2):  # the second replaces the first
        save_head(folder / "head", TaskHead(config), card="# card\n")


def _bundle(folder: Path) -> None:
    for overwrite in (False, True):
        with write_bundle(folder / "bundle", overwrite=overwrite) as new:
            (new / "manifest.json").write_text("{}")
            (new / "package").mkdir(mode=0o700)
            private = new / "package" / "weights.bin"
            private.write_bytes(b"weights")
            private.chmod(0o600)


def _single_files(folder: Path) -> None:
    write_text(folder / "baselines.json", "{}\n")
    write_atomically(folder / "state.pt", b"state")
    with whole_file(folder / "features.npy") as file:
        file.write(b"features")


@pytest.mark.parametrize("write", [_checkpoint, _packed_and_published, _head, _bundle, _single_files])
def test_what_is_written_has_the_modes_of_any_new_file(
    write: Callable[[Path], None], umask: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "written"
    folder.mkdir()
    write(folder)
    written = list(folder.rglob("*"))
    assert written and not [path for path in written if path.name.startswith(".")]
    wrong = {
        str(path.relative_to(folder)): oct(path.stat().st_mode & 0o777)
        for path in written
        if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert not wrong
