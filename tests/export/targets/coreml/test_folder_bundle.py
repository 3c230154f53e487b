"""A bundle whose artifact is a folder: hashed file by file, and nothing may be added to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reuse_distill.export.checkpoint_source import tool_versions
from reuse_distill.runtime.bundle_format.bundle import list_files, read_bundle, write_bundle, write_manifest
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest, Tensor
from reuse_distill.runtime.errors import RdError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with write_bundle(tmp_path / "bundle") as folder:
        data = folder / "model.mlpackage" / "Data"
        data.mkdir(parents=True)
        (data / "model.mlmodel").write_bytes(b"graph")
        (data / "weight.bin").write_bytes(b"weights")
        (folder / "model.mlpackage" / "Manifest.json").write_text("{}")
        files = list_files(folder)
        tensors = (Tensor("wave", "float32", (1, "T")),), (Tensor("features", "float32", (1, 1, "F", 8)),)
        write_manifest(
            folder,
            Manifest(
                *("offline", "coreml", "fp16", "built", "model.mlpackage", "hidden", (1,), 8),
                *(*tensors, (), Geometry(), files, {}, tool_versions(())),
            ),
        )
    return tmp_path / "bundle"


def test_a_whole_folder_is_the_artifact(bundle: Path) -> None:
    found = read_bundle(bundle)
    assert found.artifact == bundle / "model.mlpackage" and found.artifact.is_dir()
    assert sorted(found.manifest.artifact_files) == [
        "model.mlpackage/Data/model.mlmodel",
        "model.mlpackage/Data/weight.bin",
        "model.mlpackage/Manifest.json",
    ]
    assert found.manifest.artifact_bytes == 5 + 7 + 2


def add_file(bundle: Path) -> None:
    (bundle / "model.mlpackage" / "Data" / "more.bin").write_bytes(b"x")


def change_file(bundle: Path) -> None:
    (bundle / "model.mlpackage" / "Data" / "weight.bin").write_bytes(b"weighty")


def remove_file(bundle: Path) -> None:
    (bundle / "model.mlpackage" / "Data" / "weight.bin").unlink()


def rename_artifact(bundle: Path) -> None:
    data: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**data, "artifact": "model"}))


def lead_out(bundle: Path) -> None:
    data: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    entry = data["files"]["model.mlpackage/Manifest.json"]
    data["files"]["model.mlpackage/../../else"] = entry
    (bundle / "manifest.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (add_file, "more.bin is not in the manifest"),
        (change_file, "weight.bin: sha256"),
        (remove_file, "weight.bin is missing"),
        (rename_artifact, "artifact 'model' is not among the files"),
        (lead_out, "is outside the bundle"),
    ],
)
def test_any_change_is_refused(bundle: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(bundle)
    with pytest.raises(RdError, match=message):
        read_bundle(bundle)
