"""Checkpoint folders: written whole or not at all, read strictly."""

from __future__ import annotations

import errno
import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint, save_checkpoint
from reuse_distill.student.checkpoints.checkpoint import (
    CONFIG,
    PREPROCESSOR,
    TRAINING,
    WEIGHTS,
    read_config,
    read_provenance,
)


@pytest.fixture
def student(small_config, randomised) -> Student:
    return randomised(small_config(), dtype=torch.float32)


@pytest.fixture
def folder(student: Student, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "runs" / "checkpoint", student, provenance={"teacher": "none"})


def same_weights(a: Student, b: Student) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(k == j and torch.equal(v, w) for (k, v), (j, w) in pairs)


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def edit(folder: Path, **changes: object) -> None:
    data = json.loads((folder / CONFIG).read_text())
    data["student"].update(changes)
    (folder / CONFIG).write_text(json.dumps(data))


def test_roundtrip(student: Student, folder: Path, noise) -> None:
    loaded = load_checkpoint(folder)
    assert loaded.config == student.config
    assert same_weights(loaded, student)
    assert not loaded.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    wave = noise(3280, dtype=torch.float32)[None]
    assert torch.equal(loaded(wave).layers[-1], student(wave).layers[-1])
    assert read_config(folder) == student.config
    assert read_provenance(folder) == {"teacher": "none"}
    assert entries(folder) == [CONFIG, WEIGHTS, PREPROCESSOR]


def test_training_record(student: Student, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", student, training={"loss": [3.0, 1.5]})
    assert json.loads((tmp_path / "a" / TRAINING).read_text()) == {"loss": [3.0, 1.5]}
    assert read_provenance(tmp_path / "a") == {}


def test_loading_leaves_the_random_generator_alone(folder: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_checkpoint(folder)
    assert torch.equal(torch.rand(1), expected)


def test_half_precision_weights_are_read_as_float32(student: Student, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({k: v.half() for k, v in student.state_dict().items()}, folder / WEIGHTS)
    loaded = load_checkpoint(folder)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.mask_emb, student.mask_emb.half().float())


def test_a_newer_checkpoint_replaces_an_older_one(folder: Path, small_config, randomised) -> None:
    newer = randomised(small_config(), seed=7, dtype=torch.float32)
    save_checkpoint(folder, newer, training={"steps": 3})
    assert same_weights(load_checkpoint(folder), newer)
    assert entries(folder) == [CONFIG, WEIGHTS, PREPROCESSOR, TRAINING]
    assert entries(folder.parent) == ["checkpoint"], "no temporary and no old folder is left"


def test_other_files_are_never_deleted(student: Student, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RdError, match=r"not replaced, it holds thesis\.tex"):
        save_checkpoint(tmp_path, student)
    with pytest.raises(RdError, match=r"not replaced, it holds thesis\.tex"):
        save_checkpoint(tmp_path / "thesis.tex", student)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_checkpoint(student: Student, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(RdError, match=r"checkpoint not written \(No space left on device\)") as caught:
        save_checkpoint(folder, Student(student.config))
    assert "disk space" in caught.value.hint
    assert same_weights(load_checkpoint(folder), student)
    assert entries(folder.parent) == ["checkpoint"]


def test_a_full_disk_as_the_weights_library_reports_it(student: Student, folder: Path, monkeypatch) -> None:
    """The library has an error class of its own; a file size limit makes a real write fail."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # under the limit Python would leave cut files
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        with pytest.raises(RdError, match="checkpoint not written"):
            save_checkpoint(folder, Student(student.config))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert same_weights(load_checkpoint(folder), student)
    assert entries(folder.parent) == ["checkpoint"]


def test_a_failing_rename_brings_the_old_checkpoint_back(student: Student, folder: Path, monkeypatch) -> None:
    rename = Path.rename

    def second_fails(self: Path, target: Path) -> Path:
        if Path(target) == folder and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(RdError, match="Input/output error"):
        save_checkpoint(folder, Student(student.config))
    assert same_weights(load_checkpoint(folder), student)
    assert entries(folder.parent) == ["checkpoint"]


def test_a_folder_that_cannot_be_made(student: Student, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RdError, match="checkpoint not written"):
        save_checkpoint(tmp_path / "file" / "checkpoint", student)


def test_not_a_checkpoint_folder(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RdError, match=r"not a checkpoint folder, there is no config\.json"):
            load_checkpoint(place)


def test_missing_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(RdError, match=r"model\.safetensors is missing") as caught:
        load_checkpoint(folder)
    assert "whole" in caught.value.hint


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(RdError, match=r"model\.safetensors: damaged or cut short"):
        load_checkpoint(folder)


def test_weights_that_are_a_pickle_are_not_read(folder: Path, student: Student) -> None:
    torch.save(student.state_dict(), folder / WEIGHTS)
    with pytest.raises(RdError, match="damaged or cut short"):
        load_checkpoint(folder)


def rewrite(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    state = {k: v.clone() for k, v in load_file(folder / WEIGHTS).items()}
    change(state)
    save_file(state, folder / WEIGHTS)


def test_wrong_keys_are_named(folder: Path) -> None:
    rewrite(folder, lambda state: state.update(extra=state.pop("encoder.layers.0.fc1.bias")))
    with pytest.raises(RdError) as caught:
        load_checkpoint(folder)
    assert "missing encoder.layers.0.fc1.bias; unknown extra" in caught.value.message


def test_wrong_shapes_are_named_with_both(folder: Path) -> None:
    edit(folder, ffn_width=32)
    with pytest.raises(RdError) as caught:
        load_checkpoint(folder)
    assert "encoder.layers.0.fc1.weight has shape (24, 16), the configuration says (32, 16)" in caught.value.message
    assert "and 4 more" in caught.value.message
    assert "do not belong together" in caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    rewrite(folder, lambda state: state["mask_emb"].__setitem__(3, value))
    with pytest.raises(RdError, match="mask_emb has values that are not finite"):
        load_checkpoint(folder)


def test_a_size_that_would_fill_the_memory_is_only_compared(folder: Path) -> None:
    """40 GB of weights in the configuration, a few kilobytes in the file: shapes first, memory afterwards."""
    edit(
        folder,
        ffn_width=100_000,
        width=100_000,
        conv_layers=[[100_000, 10, 5], *[[100_000, 3, 2]] * 4, *[[100_000, 2, 2]] * 2],
    )
    with pytest.raises(RdError, match="the configuration says"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "", "\xff\xfe", "[" * 100_000])
def test_a_configuration_that_is_not_json(folder: Path, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(RdError, match=r"config\.json: not valid JSON"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["[]", "{}", "3"])
def test_a_configuration_without_a_student(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text)
    with pytest.raises(RdError, match="there is no section 'student'"):
        load_checkpoint(folder)


def test_another_schema_version(folder: Path) -> None:
    data = json.loads((folder / CONFIG).read_text()) | {"schema_version": 99}
    (folder / CONFIG).write_text(json.dumps(data))
    with pytest.raises(RdError, match="schema version 99, this version reads 1"):
        load_checkpoint(folder)


def test_unknown_key_with_the_nearest_name(folder: Path) -> None:
    edit(folder, reuse_layer=[2])
    with pytest.raises(RdError, match=r"config\.json: student: unknown key 'reuse_layer'") as caught:
        load_checkpoint(folder)
    assert caught.value.hint == "did you mean 'reuse_layers'?"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": "16"}, "student: width: expected int, found str"),
        ({"layers": True}, "student: layers: expected int, found bool"),
        ({"heads": 0}, "heads 0 is outside 1.."),
        ({"reuse_layers": [1]}, "reuse_layers [1] are outside 2..4"),
        ({"conv_layers": [[6, 10]]}, "conv layer (6, 10) is not (channels, kernel, stride)"),
        ({"context": {"chunk_frames": 0, "left_frames": 3}}, "chunk of 0 frames"),
    ],
)
def test_bad_values(folder: Path, changes: dict, message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(RdError) as caught:
        load_checkpoint(folder)
    assert message in caught.value.message
