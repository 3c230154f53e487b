"""``rd-distill compress``: schedules, recovery, a run that was killed, and options that are not possible."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.compress import compress_run
from reuse_distill.distill.compress.schedule import STUDY_LEVELS, has_settled, levels
from reuse_distill.distill.compress.weight_pruning import sparsity, zero_masks
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import load_checkpoint, save_checkpoint

FAST = ("data.batch_size=2", "data.workers=1", "data.crop_seconds=1.0")


@pytest.fixture
def checkpoint(small, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "student", small)


def test_levels() -> None:
    assert len(STUDY_LEVELS) == 38 and STUDY_LEVELS[0] == 0.2 and STUDY_LEVELS[-1] == 0.95
    assert levels(0.5, "2") == (0.25, 0.5) and levels(0.45, "study") == (0.2, 0.3, 0.4, 0.45)
    assert list(STUDY_LEVELS) == sorted(set(STUDY_LEVELS)) and 0.91 in STUDY_LEVELS
    assert has_settled([1.0, 0.99], 0.02) and not has_settled([1.0, 0.9], 0.02) and not has_settled([1.0], 0.5)


def test_a_schedule_without_recovery(checkpoint: Path, tmp_path: Path, capsys) -> None:
    words = ["compress", "heads+rows+low-rank", str(checkpoint), "--ratio", "0.5,0.25,0.3", "--schedule", "2"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    student = load_checkpoint(Path(capsys.readouterr().out.strip()))
    assert student.config.layer_heads == (2,) * 4 and student.config.layer_ffn_widths == (36,) * 4
    assert any(map(any, student.config.layer_ranks))
    assert load_checkpoint(tmp_path / "out/step-01/compressed").config.layer_heads == (3,) * 4


def test_scores_by_data(checkpoint: Path, audio: Path, tmp_path: Path) -> None:
    words = ["compress", "heads-data+low-rank-data", str(checkpoint), "--ratio", "0.4", "--data", str(audio)]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert sum(load_checkpoint(tmp_path / "out/student").config.layer_heads) == 2 * (8 - 3)


def test_a_killed_run_gives_the_same_masks(
    checkpoint: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compress", "weights", str(checkpoint), "--ratio", "0.6", "--schedule", "2", "--data", str(audio)]
    words += ["--recover", "3", *FAST]
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    whole = load_checkpoint(tmp_path / "whole/student")
    assert sparsity(whole) == pytest.approx(0.6, abs=1e-3)
    first = load_checkpoint(tmp_path / "whole/step-01/round-1/student")
    assert not torch.equal(
        first.encoder.layers[0].fc1.weight, load_checkpoint(checkpoint).encoder.layers[0].fc1.weight
    ), "recovery trains"

    killed = compress_run.by_name

    def kill(name: str):
        if (tmp_path / "cut/step-01/round-1/student").exists():
            raise KeyboardInterrupt
        return killed(name)

    monkeypatch.setattr(compress_run, "by_name", kill)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        raise SystemExit(main([*words, "--output", str(tmp_path / "cut")]))
    monkeypatch.undo()
    assert not (tmp_path / "cut/step-02/compressed").exists()
    assert main([*words, "--output", str(tmp_path / "cut"), "--resume"]) == 0
    resumed = load_checkpoint(tmp_path / "cut/student")
    for name, kept in zero_masks(whole).items():
        assert torch.equal(kept, zero_masks(resumed)[name]), name


def test_resume_is_of_the_same_compression(checkpoint: Path, tmp_path: Path, capsys) -> None:
    words = ["compress", "rows", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main([*words, "--ratio", "0.5"]) == 0
    for more, message in (
        (("--ratio", "0.5"), "already holds a compression"),
        (("--ratio", "0.25", "--resume"), "is another compression: plan.levels"),
    ):
        assert main([*words, *more]) == 2 and message in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    assert main([*words, "--ratio", "0.5", "--resume"]) == 2
    assert "holds no compression to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rows", "--ratio", "1"), "--ratio 1 is not above 0 and below 1"),
        (("rows", "--ratio", "nan"), "--ratio nan is not above 0 and below 1"),
        (("rows", "--ratio", "much"), "--ratio much is no number"),
        (("row", "--ratio", "0.5"), "no compression method 'row'"),
        (("rows+rows", "--ratio", "0.5"), "names a method twice"),
        (("weights+rows", "--ratio", "0.5"), "put weights or 2:4 last"),
        (("heads", "--ratio", "0.9"), "leaves none in a layer"),
        (("rows", "--ratio", "0.995"), "feed-forward units leaves none"),
        (("low-rank", "--ratio", "0.99"), "rank 1 in all"),
        (("2:4", "--ratio", "0.4"), "2:4, which removes half"),
        (("rows", "--ratio", "0.5", "--schedule", "often"), "--schedule often is no schedule"),
        (("rows", "--ratio", "0.5,0.2"), "2 numbers for 1 methods"),
        (("heads-data", "--ratio", "0.5"), "no audio to recover or to score on"),
        (("rows", "--ratio", "0.5", "--recover", "-1"), "--recover -1 is below 0"),
        (("rows", "--ratio", "0.5", "--settle", "0.1"), "settling needs two rounds"),
        (("rows", "--ratio", "0.5", "optimiser.lr=1"), "optimiser.lr=1 is a setting of the recovery"),
    ],
)
def test_options_that_are_not_possible(checkpoint: Path, tmp_path: Path, capsys, words, message: str) -> None:
    method, *rest = words
    assert main(["compress", method, str(checkpoint), *rest, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "a right command needs no other folder"


def test_a_step_that_never_settles(checkpoint: Path, audio: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    falling = iter([1.0, 0.8])
    monkeypatch.setattr(compress_run, "_recovered", lambda plan, places, recipe, made, folder: (made, next(falling)))
    words = ["compress", "rows", str(checkpoint), "--ratio", "0.5", "--data", str(audio), "--recover", "2"]
    assert main([*words, "--rounds", "2", "--settle", "0.05", "--output", str(tmp_path / "out")]) == 2
    assert "step 1 has not settled after 2 rounds: the loss still fell from 1 to 0.8" in capsys.readouterr().err


def test_a_student_that_is_not_there(tmp_path: Path, capsys) -> None:
    with pytest.raises(RdError, match="there is no student at"):
        compress_run.open_student(tmp_path / "nothing")
