"""Runs in processes of their own: killed and resumed, and two processes that train as one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.data.batches import BatchReader
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.training.run_folder import load_state, read_metrics
from reuse_distill.student import load_checkpoint


def command(recipe: Path, teacher: Path, data: Path, output: Path, *more: str) -> list[str]:
    paths = ["--teacher", str(teacher), "--data", str(data), "--output", str(output), "--device", "cpu"]
    return [sys.executable, "-m", "reuse_distill.distill.cli", "run", str(recipe), *paths, *more]


def test_a_killed_run_resumed_equals_the_uninterrupted_one(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, losses, kill_a_run
) -> None:
    """SIGKILL at whatever step the run has reached; some of its steps are lost and done again."""
    more = ("--steps", "60", "training.checkpoint_every=7")
    run = command(small_recipe, tiny_teacher, audio_folder, tmp_path / "killed", *more)
    kill_a_run(run[3:], tmp_path / "killed")
    assert 0 < load_state(tmp_path / "killed")["step"] <= 40
    assert main([*run[3:], "--resume"]) == 0
    assert main(command(small_recipe, tiny_teacher, audio_folder, tmp_path / "whole", *more)[3:]) == 0
    np.testing.assert_equal(losses(tmp_path / "killed"), losses(tmp_path / "whole"))
    weights = [(tmp_path / name / "student/model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]


def test_two_processes_are_one_with_the_doubled_batch(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, losses, environment
) -> None:
    """DDP with gloo: losses, gradient norms and weights as from one process that accumulates two batches."""
    more = ("--steps", "4", "data.crop_seconds=0")
    two = command(small_recipe, tiny_teacher, audio_folder, tmp_path / "two", *more, "--devices", "2")
    one = command(small_recipe, tiny_teacher, audio_folder, tmp_path / "one", *more, "training.accumulate=2")
    result = subprocess.run(two, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert main(one[3:]) == 0
    a, b = (losses(tmp_path / name) for name in ("two", "one"))
    assert len(a) == len(b) == 4
    for two_row, one_row in zip(a, b, strict=True):
        for key in one_row:
            assert two_row[key] == pytest.approx(one_row[key], rel=2e-4), key


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("new", ("optimiser.lr=1e30",), "its batch is kept in"),  # all find a loss that is not finite
        pytest.param("taken", (), "already holds a run", marks=pytest.mark.slow),  # one refuses
    ],
)
def test_processes_stop_together_and_say_why(
    name, more, message, tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, environment
) -> None:
    """No process waits for another, none shows a traceback."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/run.json").write_text("{}")
    run = command(small_recipe, tiny_teacher, audio_folder, tmp_path / name, "--devices", "2", "--steps", "3", *more)
    result = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and message in result.stderr
    assert "Traceback" not in result.stderr, result.stderr[-2000:]


@pytest.mark.slow
def test_damage_counts_over_all_processes(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, environment
) -> None:
    """Each of two processes meets one damaged file, which it would bear: together they are too many."""
    data = Path(shutil.copytree(audio_folder, tmp_path / "data"))
    more = ("data.workers=1", "data.bad_limit=0.15")
    recipe = load_recipe(str(small_recipe), more)
    plan = BatchReader(find_utterances(data).utterances, recipe.data, seed=recipe.training.seed).plan(0)
    for batch in plan[:2]:  # of the first step, one for each process
        path = sorted(data.iterdir())[batch[0]]
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples * np.nan, rate, subtype="FLOAT")
    run = command(small_recipe, tiny_teacher, data, tmp_path / "run", *more, "--steps", "1", "--devices", "2")
    result = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "2 of 8 files are damaged (25.0 %, the limit is 15 %)" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "run/skipped.csv").read_text().count("damaged") == 2


@pytest.mark.slow
def test_sharded_processes_are_one_with_the_doubled_batch(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, environment
) -> None:
    """FSDP with gloo: the numbers of one process, held-out losses, checkpoints and a resume included."""
    more = ("--steps", "4", "data.crop_seconds=0", "--validation", "0.3")
    two = command(
        small_recipe, tiny_teacher, audio_folder, tmp_path / "two", *more, "--devices", "2", "--strategy", "fsdp"
    )
    one = command(small_recipe, tiny_teacher, audio_folder, tmp_path / "one", *more, "training.accumulate=2")
    result = subprocess.run(two, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert main(one[3:]) == 0
    for name in ("metrics.csv", "validation.csv"):
        a, b = (read_metrics(tmp_path / run, name) for run in ("two", "one"))
        assert len(a) == len(b) > 0
        for two_row, one_row in zip(a, b, strict=True):
            for key in one_row.keys() - {"wall_s", "epoch"}:  # of the last batch of the first process
                assert two_row[key] == pytest.approx(one_row[key], rel=2e-4), (name, key)
    ours, theirs = (load_checkpoint(tmp_path / run / "student").state_dict() for run in ("two", "one"))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)
    assert len(list((tmp_path / "two/best").glob("step-*/model.safetensors"))) == 2

    state = torch.load(tmp_path / "two/state.pt", weights_only=True)
    assert state["step"] == 4 and "encoder.layers.0.fc1.weight" in state["optimiser"]["state"]


@pytest.mark.slow
def test_a_sharded_run_resumes_exactly(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, losses, environment, kill_a_run
) -> None:
    """Killed after its first checkpoint and resumed, as two sharded processes both times."""
    more = ("--steps", "60", "--devices", "2", "--strategy", "fsdp", "training.checkpoint_every=3")
    for name in ("whole", "killed"):
        run = command(small_recipe, tiny_teacher, audio_folder, tmp_path / name, *more)
        if name == "killed":
            kill_a_run(run[3:], tmp_path / "killed")
            assert 0 < load_state(tmp_path / "killed")["step"] <= 40
            run.append("--resume")
        result = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
    np.testing.assert_equal(losses(tmp_path / "killed"), losses(tmp_path / "whole"))
    alone = command(small_recipe, tiny_teacher, audio_folder, tmp_path / "whole", *more[:4], *more[-1:], "--resume")
    result = subprocess.run(alone, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "was started with --strategy fsdp" in result.stderr


@pytest.mark.slow
def test_a_compiled_student_learns_the_same(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, losses
) -> None:
    """torch.compile on the CPU: the losses of the first steps up to its other order of sums."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on the CPU needs a C++ compiler")
    dropouts = ("dropout", "attention_dropout", "activation_dropout", "input_dropout")
    more = ("--steps", "3", "data.crop_seconds=0.4", *(f"student.changes.{name}=0.0" for name in dropouts))
    for name, flags in (("compiled", ("--compile",)), ("eager", ())):
        assert main([*command(small_recipe, tiny_teacher, audio_folder, tmp_path / name, *more)[3:], *flags]) == 0
    for compiled, eager in zip(losses(tmp_path / "compiled"), losses(tmp_path / "eager"), strict=True):
        assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-3)


def test_strategies_that_do_not_fit_are_refused(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, capsys
) -> None:
    run = command(small_recipe, tiny_teacher, audio_folder, tmp_path / "run", "--strategy", "fsdp")[3:]
    assert main([*run, "training.fake_quant=true"]) == 2
    assert "quantisation-aware training does not shard\n\nhint: --strategy ddp" in capsys.readouterr().err
    assert main([*run, "--precision", "16"]) == 2
    assert "16-mixed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_on_cuda_the_first_loss_is_that_of_the_cpu(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, losses, environment
) -> None:
    """float32 on both; then bf16, compiled and sharded runs end with a student."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    plain = command(small_recipe, tiny_teacher, audio_folder, tmp_path, "--steps", "2", "--precision", "32")[3:]
    for device in ("cpu", "cuda"):
        plain[plain.index("--output") + 1], plain[plain.index("--device") + 1] = str(tmp_path / device), device
        assert main(plain) == 0
    cpu, cuda = (losses(tmp_path / device)[0]["loss"] for device in ("cpu", "cuda"))
    assert cuda == pytest.approx(cpu, rel=0.05)  # dropout draws differ between devices
    for name, flags in (
        ("bf16", ["--precision", "bf16"]),
        ("compiled", ["--compile"]),
        ("fsdp", ["--strategy", "fsdp"]),
    ):
        run = command(small_recipe, tiny_teacher, audio_folder, tmp_path / name, "--steps", "2", *flags)
        run[run.index("--device") + 1] = "cuda"
        result = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, (name, result.stderr[-2000:])
        assert np.isfinite(losses(tmp_path / name)[-1]["loss"])
