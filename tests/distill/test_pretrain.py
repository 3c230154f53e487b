"""The small teacher that was trained a little: clusters of log-mel, masked prediction, a note that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.cli import main
from distill.data.batches import BatchReader, Position
from distill.data.utterances import find_utterances
from distill.teachers import open_teacher
from distill.teachers.pretrain import PretrainSettings, cluster_centres, log_mel


def test_clusters_are_nearer_to_frames_than_their_mean(audio_folder: Path) -> None:
    settings = PretrainSettings(clusters=8)
    reader = BatchReader(find_utterances(audio_folder).utterances, settings.data, seed=0)
    centres = cluster_centres(reader, settings, frames=300)
    stream = reader.batches(Position())
    frames = torch.cat(log_mel(next(stream)))
    stream.close()
    assert centres.shape == (8, 80)
    spread = torch.cdist(frames, centres).amin(1).square().mean() / frames.square().sum(1).mean()
    assert spread < 0.9, "k-means explains nothing"
    assert torch.equal(centres, cluster_centres(reader, settings, frames=300))


def test_pretraining_writes_a_teacher_that_says_what_it_is(audio_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["make-teacher", "--output", str(tmp_path / "t"), "--pretrain-steps", "3"]
    assert main(arguments) == 2
    assert "--pretrain-steps needs audio to train on" in capsys.readouterr().err
    assert main([*arguments, "--data", str(audio_folder)]) == 0
    assert "pretrain 3/3" in capsys.readouterr().err
    note = json.loads((tmp_path / "t/teacher.json").read_text())
    assert "a toy" in note["weights"] and note["steps"] == 3 and note["data"]["utterances"] == 8
    teacher = open_teacher(tmp_path / "t")
    assert (teacher.info.layers, teacher.info.width) == (6, 128)


@pytest.mark.slow
def test_pretraining_learns(audio_folder: Path, tmp_path: Path) -> None:
    arguments = [
        "make-teacher",
        "--output",
        str(tmp_path / "t"),
        "--data",
        str(audio_folder),
        "--pretrain-steps",
        "120",
    ]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "t/teacher.json").read_text())["masked_cluster_accuracy"] > 3 / 64
