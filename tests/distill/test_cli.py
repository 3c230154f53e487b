"""rd-distill as users call it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reuse_distill.distill.cli import main
from reuse_distill.runtime.errors import install_hint


def test_run_then_resume(tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, capsys) -> None:
    paths = ["--teacher", str(tiny_teacher), "--data", str(audio_folder), "--output", str(tmp_path / "run")]
    assert main(["run", str(small_recipe), *paths, "--steps", "3", "--seed", "9", "optimiser.lr=1e-3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "run/student")
    assert "step 3/3" in captured.err
    assert main(["run", str(small_recipe), *paths]) == 2
    assert "hint: continue with --resume" in capsys.readouterr().err
    assert main(["run", str(small_recipe), *paths, "--steps", "3", "--seed", "9", "optimiser.lr=1e-3", "--resume"]) == 0
    assert "</svg>" in (tmp_path / "run/loss.svg").read_text()


def test_errors_are_messages_with_a_hint(tiny_teacher: Path, tmp_path: Path, capsys) -> None:
    paths = ["--teacher", str(tiny_teacher), "--data", str(tmp_path), "--output", str(tmp_path / "run")]
    assert main(["run", "tinny", *paths]) == 2
    assert capsys.readouterr().err == "error: there is no recipe 'tinny'\n\nhint: did you mean 'tiny'?\n"
    assert main(["run", "tiny", *paths, "--student", "tiniest"]) == 2
    assert "there is no student preset 'tiniest'" in capsys.readouterr().err
    assert main(["run", "tiny", *paths, "student.changes.layers=2", "student.changes.reuse_layers=[2]",
                 "student.changes.head_width=32"]) == 2  # fmt: skip
    assert "no audio in" in capsys.readouterr().err


def test_options_that_would_do_nothing_are_refused(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    paths = ["--teacher", str(tiny_teacher), "--data", str(audio_folder), "--output", str(tmp_path / "run")]
    for name in ("--teacher", "--data"):
        assert main(["run", str(small_recipe), *paths, name, ""]) == 2
        assert f"error: {name} is empty" in capsys.readouterr().err
    assert main(["run", str(small_recipe), *paths, "--keep-best", "2"]) == 2
    assert "hint: add --validation AUDIO|SHARE" in capsys.readouterr().err
    for name in ("NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert main(["run", str(small_recipe), *paths, "--nodes", "2", "--device", "cpu"]) == 2
    assert "--nodes 2, but nothing says which of the hosts this is" in capsys.readouterr().err
    assert main(["run", str(small_recipe), *paths, "--init", str(tiny_teacher)]) == 2
    assert "there is no section 'student'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing is left that the next attempt would stumble over"


def test_recipes_lists_and_shows(capsys) -> None:
    assert main(["recipes"]) == 0
    assert "armhubert-960h" in capsys.readouterr().out
    assert main(["recipes", "--show", "armhubert-960h"]) == 0
    assert "released yaml" in capsys.readouterr().out
    with pytest.raises(SystemExit) as usage:
        main([])
    assert usage.value.code == 2


def test_tensorboard_gets_every_step(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path
) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    paths = ["--teacher", str(tiny_teacher), "--data", str(audio_folder), "--output", str(tmp_path / "run")]
    assert main(["run", str(small_recipe), *paths, "--steps", "3", "--tensorboard"]) == 0
    events = loading.EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


@pytest.mark.parametrize("command", [["recipes"], ["evaluate", "s", "--data", "label=m"]])
def test_a_missing_extra_is_named(monkeypatch, capsys, command: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(command) == 2
    assert capsys.readouterr().err == (f"error: transformers is not installed\n\nhint: {install_hint('distill')}\n")
