"""A run folder whose files were damaged: resuming is refused with what is wrong, without a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reuse_distill.distill.cli import main


@pytest.fixture(scope="module")
def words(random_hubert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    import numpy as np
    import soundfile

    folder = tmp_path_factory.mktemp("resume")
    (folder / "audio").mkdir()
    noise = np.random.default_rng(0).standard_normal((3, 8000)).astype(np.float32) * 0.1
    for number, samples in enumerate(noise):
        soundfile.write(folder / "audio" / f"{number}.wav", samples, 16_000)
    teacher = random_hubert(folder / "teacher", layers=6)
    words = ["run", "tiny", "--teacher", str(teacher), "--data", str(folder / "audio"), "--steps", "2"]
    words += ["training.checkpoint_every=1"]
    assert main([*words, "--output", str(folder / "run")]) == 0
    return [*words, "--resume", "--output", str(folder / "run")]


@pytest.fixture
def damaged(words: list[str], tmp_path: Path) -> tuple[Path, list[str]]:
    folder = Path(shutil.copytree(words[-1], tmp_path / "run"))
    return folder, [*words[:-1], str(folder)]


def test_metrics_that_are_no_numbers(damaged: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, words = damaged
    (folder / "metrics.csv").write_text("step,loss\nx,y\n")
    assert main(words) == 2
    assert "metrics.csv is damaged" in capsys.readouterr().err


def test_a_record_nested_beyond_reason(damaged: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, words = damaged
    (folder / "run.json").write_text("[" * 100_000)
    assert main(words) == 2
    assert "run.json is damaged" in capsys.readouterr().err


def test_a_record_that_is_no_run(damaged: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, words = damaged
    (folder / "run.json").write_text(json.dumps([1, 2]))
    assert main(words) == 2
    assert "run.json" in capsys.readouterr().err


def without_a_weight(state: dict[str, Any]) -> None:
    state["model"].pop(next(iter(state["model"])))


def with_a_wrong_shape(state: dict[str, Any]) -> None:
    state["model"][next(iter(state["model"]))] = torch.zeros(1, 2, 3)


def without_the_optimiser(state: dict[str, Any]) -> None:
    del state["optimiser"]


def with_an_empty_optimiser(state: dict[str, Any]) -> None:
    state["optimiser"] = {"state": {}, "param_groups": []}


def with_a_word_for_step(state: dict[str, Any]) -> None:
    state["step"] = "x"


def with_a_negative_position(state: dict[str, Any]) -> None:
    state["position"] = [0, -3]


CHANGES = (
    (without_a_weight, "model does not fit"),
    (with_a_wrong_shape, "model does not fit"),
    (without_the_optimiser, "optimiser is missing"),
    (with_an_empty_optimiser, "optimiser does not fit"),
    (with_a_word_for_step, "step is str, not int"),
    (with_a_negative_position, "position [0, -3]"),
)


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_state_that_does_not_fit(
    damaged: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    folder, words = damaged
    state = torch.load(folder / "state.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "state.pt")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "state.pt is damaged" in error and message in error
