"""The small teacher that is trained here: targets, masked prediction, letters, and a note that says what it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.data.batches import BatchReader, Position
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.pretrain import PretrainSettings, collect, pretrain_teacher, schedule
from reuse_distill.distill.teachers.targets import assigned, cepstra, cosines, differences, k_means, layer_of
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import frames_for_lengths
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def transcribed(audio_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic sounds with texts that fit their length; two without."""
    path = tmp_path_factory.mktemp("letters") / "m.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "text_or_label"])
        for number, file in enumerate(sorted(audio_folder.glob("*.wav"))):
            writer.writerow([file, "a hat" if number > 1 else "gender=F"])
    return path


def reader_of(source: Path, **changes: int) -> BatchReader:
    settings = PretrainSettings(**changes)
    return BatchReader(find_utterances(source).utterances, settings.data, seed=0)


def test_clusters_are_nearer_to_frames_than_their_mean(audio_folder: Path) -> None:
    data = collect(reader_of(audio_folder), cepstra, wanted=300)
    centres = k_means(data, 8)
    assert centres.shape == (8, 48)
    spread = torch.cdist(data, centres).amin(1).square().mean() / data.var(0).sum()
    assert spread < 0.9, "k-means explains nothing"
    assert torch.equal(centres, k_means(data, 8))


def test_k_means_finds_groups_that_are_there() -> None:
    random = torch.Generator().manual_seed(1)
    groups = 10 * torch.randn(4, 3, generator=random)
    data = groups.repeat_interleave(50, 0) + 0.01 * torch.randn(200, 3, generator=random)
    found = k_means(data, 12)
    assert (torch.cdist(groups, found).amin(1) < 0.1).all()


def test_cosines_are_orthonormal_and_differences_are_slopes() -> None:
    basis = cosines(80)
    assert torch.allclose(basis.T @ basis, torch.eye(16), atol=1e-5)
    ramp = torch.arange(9.0)[:, None] * torch.tensor([[1.0, -3.0]])
    assert torch.allclose(differences(ramp)[2:-2], torch.tensor([1.0, -3.0]).expand(5, 2))


def test_padding_has_no_target(audio_folder: Path) -> None:
    reader = reader_of(audio_folder)
    stream = reader.batches(Position())
    batch = next(stream)
    stream.close()
    target = assigned(batch, cepstra, k_means(torch.cat(cepstra(batch)), 5))
    counts = frames_for_lengths(batch.lengths).tolist()
    assert min(counts) < max(counts) == target.shape[1]
    assert [(row >= 0).sum() for row in target] == counts
    assert all((row[:n] >= 0).all() for row, n in zip(target, counts, strict=True))


def test_frames_of_a_layer_are_the_models_own(audio_folder: Path, tiny_teacher: Path) -> None:
    from transformers import HubertModel

    stream = reader_of(audio_folder).batches(Position())
    batch = next(stream)
    stream.close()
    model = HubertModel.from_pretrained(tiny_teacher).eval()
    with torch.no_grad():
        samples = torch.arange(batch.wave.shape[1])[None] < batch.lengths[:, None]
        wanted = model(batch.wave, attention_mask=samples, output_hidden_states=True).hidden_states[1]
    for row, found in zip(wanted, layer_of(model, 1)(batch), strict=True):
        assert torch.equal(row[: len(found)], found)


def test_schedule_warms_up_and_ends() -> None:
    shares = [schedule(step, 100, 0.1) for step in range(100)]
    assert shares[0] == pytest.approx(0.1) and max(shares) == shares[9] == 1.0 and 0 < shares[99] < 0.02


def test_pretraining_writes_a_teacher_that_says_what_it_is(audio_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["make-teacher", "--output", str(tmp_path / "t"), "--pretrain-steps", "2"]
    assert main(arguments) == 2
    assert "--pretrain-steps needs audio to train on" in capsys.readouterr().err
    assert main([*arguments, "--data", str(audio_folder)]) == 0
    err = capsys.readouterr().err
    assert "pretrain round 1, 2/2" in err and "pretrain round 2, 2/2" in err and "letter_loss" not in err
    note = json.loads((tmp_path / "t/teacher.json").read_text())
    assert "a toy" in note["weights"] and note["data"]["utterances"] == 8
    assert [(row["clusters"], row["steps"]) for row in note["rounds"]] == [(100, 2), (200, 2)]
    teacher = open_teacher(tmp_path / "t")
    assert (teacher.info.layers, teacher.info.width) == (6, 192)
    assert {t.dtype for t in load_file(tmp_path / "t/model.safetensors").values()} == {torch.float16}
    assert teacher.hidden_states(torch.randn(1, 4000)).dtype == torch.float32


def test_letters_are_learnt_from_transcripts_alone(audio_folder: Path, transcribed: Path, tmp_path: Path) -> None:
    settings = PretrainSettings(steps=2, clusters=(4,), letters=1.0)
    note = json.loads((pretrain_teacher(tmp_path / "t", transcribed, settings) / "teacher.json").read_text())
    assert note["transcribed_utterances"] == 6 and note["rounds"][0]["letter_loss"] > 0
    with pytest.raises(RdError, match="no recording has a transcript"):
        pretrain_teacher(tmp_path / "u", audio_folder, settings)


def test_a_teacher_goes_on_from_another(audio_folder: Path, tmp_path: Path) -> None:
    """One step at a rate of almost zero changes next to nothing, and the note tells both parts."""
    settings = PretrainSettings(steps=1, clusters=(4,))
    first = pretrain_teacher(tmp_path / "a", audio_folder, settings)
    still = PretrainSettings(steps=1, clusters=(5,), rate=1e-9)
    second = pretrain_teacher(tmp_path / "b", audio_folder, still, init=first)
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert all(torch.allclose(before[name], after[name], atol=1e-4) for name in before)
    note = json.loads((second / "teacher.json").read_text())
    assert note["rounds"][0]["clusters"] == 5 and note["before"]["rounds"][0]["clusters"] == 4


@pytest.mark.slow
def test_pretraining_learns(audio_folder: Path, tmp_path: Path) -> None:
    settings = PretrainSettings(steps=120, clusters=(20,))
    note = json.loads((pretrain_teacher(tmp_path / "t", audio_folder, settings) / "teacher.json").read_text())
    assert note["rounds"][0]["masked_accuracy"] > 3 / 20
