"""Held-out audio: who is held out, what is measured on it, which checkpoints are kept, and that resume stays exact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.data.utterances import Utterance, check_disjoint, find_utterances, hold_out
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.distill.training.held_out import BestCheckpoints, Validator
from reuse_distill.distill.training.launch import launch
from reuse_distill.distill.training.run_folder import VALIDATION, read_metrics
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint, preset


def utterances(speakers: Sequence[str]) -> list[Utterance]:
    return [Utterance(Path(f"{n}.wav"), 1.0 + n % 3, speaker=speaker) for n, speaker in enumerate(speakers)]


def test_whole_speakers_are_held_out() -> None:
    everything = utterances([f"s{n % 10}" for n in range(60)])
    split = hold_out(everything, 0.2, seed=1)
    assert split.by == "speakers"
    assert sorted(u.path.name for u in (*split.training, *split.held)) == sorted(u.path.name for u in everything)
    assert not {u.speaker for u in split.training} & {u.speaker for u in split.held}
    share = sum(u.seconds for u in split.held) / sum(u.seconds for u in everything)
    assert 0.2 <= share < 0.4
    assert hold_out(everything, 0.2, seed=1) == split != hold_out(everything, 0.2, seed=2)


def test_without_speakers_whole_files_are_held_out() -> None:
    twice = [Utterance(Path(f"{n // 2}.wav"), 1.0, start_s=n % 2, whole=False) for n in range(20)]
    split = hold_out(twice, 0.3, seed=0)
    assert split.by == "files" and not {u.path for u in split.training} & {u.path for u in split.held}
    assert hold_out([*twice, *utterances(["a"])], 0.3, seed=0).by == "files"


def test_shares_and_overlaps_that_are_refused() -> None:
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(RdError, match="cannot be held out"):
            hold_out(utterances("ab"), share, seed=0)
    with pytest.raises(RdError, match=r"there is one file only \(0\.wav\)"):
        hold_out(utterances([""]), 0.5, seed=0)
    ours = utterances("abc")
    with pytest.raises(RdError, match=r"share 1 files: .*0\.wav"):
        check_disjoint(ours, [Utterance(Path("0.wav"), 1.0)])
    with pytest.raises(RdError, match="share 1 speakers: b"):
        check_disjoint(ours, [Utterance(Path("9.wav"), 1.0, speaker="b")])
    assert check_disjoint(ours, [Utterance(Path("9.wav"), 1.0, speaker="d")]) == "speakers"
    assert check_disjoint(ours, [Utterance(Path("9.wav"), 1.0)]) == "files"


def test_the_held_out_loss_is_the_same_twice_and_the_mean_over_frames(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path
) -> None:
    """Whatever the batches: 8 utterances in batches of 2 and in one batch have one mean, without crops and masks."""
    found = find_utterances(audio_folder).utterances
    losses = []
    for size in (2, 8):
        how = [f"data.batch_size={size}", "data.batch_seconds=100", "data.crop_seconds=0", "loss.kind=hint"]
        recipe = load_recipe(str(small_recipe), [*how, "data.speeds=[0.9, 1.1]", "data.gain_db=6.0"])
        fabric = launch(recipe, RunSettings(tiny_teacher, audio_folder, tmp_path, device="cpu"), torch.device("cpu"))
        torch.manual_seed(1)
        student = Student(recipe.student.config()).train()
        validator = Validator(fabric, recipe, open_teacher(tiny_teacher), found, layers=2)
        losses += [validator.measure(student), validator.measure(student)]
        assert student.training and all(p.grad is None for p in student.parameters())
    assert losses[0] == losses[1] and losses[2] == losses[3]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


@pytest.fixture
def settings(tiny_teacher: Path, audio_folder: Path, tmp_path: Path) -> RunSettings:
    return RunSettings(tiny_teacher, audio_folder, tmp_path / "run", device="cpu", validation="0.3")


def but(settings: RunSettings, **changes) -> RunSettings:
    return RunSettings(**{**vars(settings), **changes})


def folders(run_folder: Path) -> set[str]:
    return {path.name for path in (run_folder / "best").iterdir()}


def test_the_best_checkpoints_are_kept_and_a_resumed_run_has_the_same(
    settings: RunSettings, small_recipe: Path
) -> None:
    how = ["training.validate_every=1", "training.keep_best=2", "optimiser.lr=5e-2", "training.checkpoint_every=3"]
    recipe = load_recipe(str(small_recipe), how)
    student = run(recipe, settings)
    rows = read_metrics(settings.output, VALIDATION)
    assert [row["step"] for row in rows] == list(range(1, 9))
    ranked = sorted((row["loss"], int(row["step"])) for row in rows)[:2]
    index = json.loads((settings.output / "best/index.json").read_text())
    assert [(entry["loss"], entry["step"]) for entry in index] == ranked
    assert folders(settings.output) == {"index.json", *(f"step-{step:06d}" for _, step in ranked)}
    record = json.loads((student / "training.json").read_text())
    assert record["best"] == index and record["validation"]["disjoint_by"] == "files"
    assert record["validation"]["utterances"] + record["data"]["utterances"] == 8
    assert "held out" in (settings.output / "loss.svg").read_text()

    halves = but(settings, output=settings.output.with_name("halves"))
    run(recipe, but(halves, stop_after=4))
    again = run(recipe, but(halves, resume=True))
    np.testing.assert_equal(read_metrics(halves.output, VALIDATION), rows)
    assert folders(halves.output) == folders(settings.output)
    for name in folders(settings.output) - {"index.json"}:
        a, b = (load_checkpoint(f.output / "best" / name).state_dict() for f in (settings, halves))
        assert all(torch.equal(a[key], b[key]) for key in a)
    whole, resumed = (load_checkpoint(path).state_dict() for path in (student, again))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_measuring_changes_nothing_in_the_training(settings: RunSettings, small_recipe: Path) -> None:
    """The same steps with a held-out loss after each of them and after the last only."""
    often, seldom = (load_recipe(str(small_recipe), [f"training.validate_every={n}"]) for n in (1, 8))
    run(often, settings)
    other = but(settings, output=settings.output.with_name("seldom"))
    run(seldom, other)
    losses = [[row["loss"] for row in read_metrics(s.output)] for s in (settings, other)]
    assert losses[0] == losses[1]
    assert read_metrics(other.output, VALIDATION)[-1] == read_metrics(settings.output, VALIDATION)[-1]


def test_other_audio_can_be_given(settings: RunSettings, small_recipe: Path, tmp_path: Path, make_sound) -> None:
    other = tmp_path / "other"
    other.mkdir()
    soundfile.write(other / "a.wav", make_sound(1.0, 99), 16_000)
    run(load_recipe(str(small_recipe)), but(settings, validation=str(other)))
    assert json.loads((settings.output / "run.json").read_text())["validation"]["utterances"] == 1
    assert [row["step"] for row in read_metrics(settings.output, VALIDATION)] == [2, 4, 6, 8]
    with pytest.raises(RdError, match="training and validation share 8 files"):
        run(load_recipe(str(small_recipe)), but(settings, validation=str(settings.data), output=tmp_path / "x"))


def test_held_out_audio_that_is_damaged_is_listed(
    settings: RunSettings, small_recipe: Path, tmp_path: Path, make_sound
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name, rest in (("a", []), ("b", [np.nan])):
        soundfile.write(other / f"{name}.wav", [*make_sound(1.0, 99), *rest], 16_000, subtype="FLOAT")
    soundfile.write(other / "short.wav", [0.0] * 300, 16_000)
    run(load_recipe(str(small_recipe), ["data.bad_limit=0.5"]), but(settings, validation=str(other)))
    listed = (settings.output / "skipped.csv").read_text()
    assert "b.wav,damaged,sample 16000 is nan" in listed and "short.wav,too short" in listed


def test_best_checkpoints_survive_a_new_start_and_a_damaged_index(tmp_path: Path) -> None:
    student = Student(preset("tiny", layers=1, reuse_layers=()))
    best = BestCheckpoints(tmp_path, keep=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, float("nan")), (5, 9.0)):
        if best.wants(step, loss):
            best.add(step, loss, student, {"made_by": "test"})
    assert [e["step"] for e in BestCheckpoints(tmp_path, keep=2).entries] == [2, 3]
    assert folders(tmp_path) == {"index.json", "step-000002", "step-000003"}
    config = json.loads((tmp_path / "best/step-000002/config.json").read_text())
    assert config["provenance"] == {"made_by": "test", "step": 2, "validation_loss": 1.0}
    (tmp_path / "best/index.json").write_text('[{"step": "../..", "loss": 1.0}]')
    assert BestCheckpoints(tmp_path, keep=2).entries == []
    assert not BestCheckpoints(tmp_path, keep=0).wants(1, 0.1)


def test_a_run_of_before_is_resumed(settings: RunSettings, small_recipe: Path) -> None:
    """run.json of a version without some settings: they have the values that they had all along."""
    recipe, plain = load_recipe(str(small_recipe)), but(settings, validation=None)
    run(recipe, but(plain, stop_after=2))
    path = plain.output / "run.json"
    record = json.loads(path.read_text())
    del record["validation"], record["recipe"]["training"]["keep_best"], record["recipe"]["data"]["speeds"]
    path.write_text(json.dumps(record))
    run(recipe, but(plain, resume=True))
    assert len(read_metrics(plain.output)) == 8
