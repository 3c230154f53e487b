"""Runs: the loss falls, a resumed run is the uninterrupted one, and failures leave the last good checkpoint."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.files import FolderLock, read_json
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.distill.training import loop as loop_module
from reuse_distill.distill.training.loop import learning_rate
from reuse_distill.distill.training.run_folder import MetricsFile, check_same_run, load_state, read_metrics
from reuse_distill.distill.training.training_progress import interruptible
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import load_checkpoint


@pytest.fixture
def settings(tiny_teacher: Path, audio_folder: Path, tmp_path: Path) -> RunSettings:
    return RunSettings(tiny_teacher, audio_folder, tmp_path / "run", device="cpu")


def but(settings: RunSettings, **changes) -> RunSettings:
    return RunSettings(**{**vars(settings), **changes})


def test_the_loss_falls_and_the_student_is_written(settings: RunSettings, small_recipe: Path) -> None:
    recipe = load_recipe(str(small_recipe), ["training.steps=60", "optimiser.lr=5e-3"])
    student = run(recipe, settings)
    rows = read_metrics(settings.output)
    assert len(rows) == 60
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:6], rows[-6:]))
    assert last < 0.9 * first
    for row in rows:
        parts = 0.1 * (row["mask_hint"] + row["unmask_hint"]) + row["mask_rec"] + row["unmask_rec"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
    model = load_checkpoint(student)
    assert model(torch.zeros(1, 1600) + 0.1).projections[-1].shape == (1, 4, 32)
    record = json.loads((student / "training.json").read_text())
    assert record["losses"] == pytest.approx([row["loss"] for row in rows])
    assert record["recipe"]["training"]["steps"] == 60 and record["data"]["utterances"] == 8
    assert record["teacher"]["sha256"] and record["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "overrides", [[], ["contexts=[null, {chunk_frames: 4, left_frames: 8}]", "loss.hint_layers=1"]]
)
def test_a_resumed_run_equals_the_uninterrupted_one(
    settings: RunSettings, small_recipe: Path, overrides, losses
) -> None:
    recipe = load_recipe(str(small_recipe), ["training.accumulate=2", *overrides])
    run(recipe, settings)
    halves = but(settings, output=settings.output.with_name("halves"))
    run(recipe, but(halves, stop_after=3))
    assert len(losses(halves.output)) == 3
    student = run(recipe, but(halves, resume=True))
    np.testing.assert_equal(losses(halves.output), losses(settings.output))
    whole, resumed = (load_checkpoint(p).state_dict() for p in (settings.output / "student", student))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_accumulated_batches_weigh_by_their_frames(settings: RunSettings, small_recipe: Path) -> None:
    """Two batches of two in one step give the loss of their four utterances, whatever their lengths."""
    how = ["training.steps=1", "data.crop_seconds=0", "student.changes.dropout=0.0"]
    run(load_recipe(str(small_recipe), [*how, "training.accumulate=2"]), settings)
    row = read_metrics(settings.output)[0]
    singles = []
    for number, stop in ((1, 1), (2, 2)):
        other = but(settings, output=settings.output.with_name(f"single{number}"), stop_after=stop)
        run(load_recipe(str(small_recipe), [*how, "training.steps=2", "optimiser.lr=1e-12"]), other)
        singles.append(read_metrics(other.output)[-1])
    between = sorted(s["loss"] for s in singles)
    assert between[0] < row["loss"] < between[1]


def test_resume_refuses_another_recipe_and_a_used_folder(settings: RunSettings, small_recipe: Path) -> None:
    recipe = load_recipe(str(small_recipe))
    run(recipe, but(settings, stop_after=2))
    record = read_json(settings.output / "run.json")
    with pytest.raises(RdError, match="already holds a run"):
        run(recipe, settings)
    other = load_recipe(str(small_recipe), ["optimiser.lr=1e-3"])
    with pytest.raises(RdError, match=r"recipe\.optimiser\.lr: 0\.002 -> 0\.001"):
        run(other, but(settings, resume=True))
    with pytest.raises(RdError, match="processes: 1 -> 2"):
        check_same_run(read_json(settings.output / "run.json"), {**record, "processes": 2}, settings.output)
    (settings.output / "run.json").write_text("{")
    with pytest.raises(RdError, match=r"run\.json is damaged"):
        run(recipe, but(settings, resume=True))
    with pytest.raises(RdError, match="holds no run to resume"):
        run(recipe, but(settings, output=settings.output.with_name("none"), resume=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved_and_goes_on(
    settings: RunSettings, small_recipe: Path, monkeypatch, number: signal.Signals, losses
) -> None:
    """The signal comes after step 3; step 4 is the one that sees it, and no checkpoint is due there."""
    recipe = load_recipe(str(small_recipe), ["training.checkpoint_every=100"])
    add = MetricsFile.add

    def interrupting(self: MetricsFile, row: dict[str, float]) -> None:
        add(self, row)
        if row["step"] == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(MetricsFile, "add", interrupting)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=r"step 4 of 8 is saved in .*: continue with --resume"):
        run(recipe, settings)
    assert signal.getsignal(number) is before
    assert load_state(settings.output)["step"] == 4 and len(losses(settings.output)) == 4
    monkeypatch.undo()
    run(recipe, but(settings, resume=True))
    run(recipe, but(settings, output=settings.output.with_name("whole")))
    assert losses(settings.output) == losses(settings.output.with_name("whole"))


def test_a_second_signal_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible(quiet=True) as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)


def test_one_process_at_a_time_writes_a_folder(settings: RunSettings, small_recipe: Path) -> None:
    recipe = load_recipe(str(small_recipe))
    run(recipe, but(settings, stop_after=2))
    with FolderLock(settings.output) as lock:
        lock.take()
        with pytest.raises(RdError, match="another process is writing"):
            run(recipe, but(settings, resume=True))
    run(recipe, but(settings, resume=True))


def test_what_was_left_out_is_kept_through_failures_and_resumes(
    settings: RunSettings, small_recipe: Path, audio_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    data = Path(shutil.copytree(audio_folder, tmp_path / "data"))
    soundfile.write(data / "a_broken.wav", [float("nan")] * 9000, 16_000, subtype="FLOAT")
    soundfile.write(data / "short.wav", [0.0] * 300, 16_000)
    recipe = load_recipe(str(small_recipe), ["data.bad_limit=0.5", "training.steps=6"])
    add = MetricsFile.add

    def failing(self: MetricsFile, row: dict[str, float]) -> None:
        add(self, row)
        if row["step"] == 5:  # the first epoch has five batches
            raise RdError("no more")

    monkeypatch.setattr(MetricsFile, "add", failing)
    with pytest.raises(RdError, match="no more"):
        run(recipe, but(settings, data=data))
    kept = (settings.output / "skipped.csv").read_text()
    assert "a_broken.wav,damaged,sample 0 is nan" in kept and "short.wav,too short" in kept
    monkeypatch.undo()
    run(recipe, but(settings, data=data, resume=True))
    assert sorted((settings.output / "skipped.csv").read_text().splitlines()) == sorted(kept.splitlines())


def test_a_damaged_state_is_named(settings: RunSettings, small_recipe: Path) -> None:
    recipe = load_recipe(str(small_recipe))
    run(recipe, but(settings, stop_after=2))
    path = settings.output / "state.pt"
    for damaged in (path.read_bytes()[:1000], b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(RdError, match=r"state\.pt is damaged: no state can be read from it \(\w+\)\n\nhint: start"):
            run(recipe, but(settings, resume=True))


def test_a_full_disk_keeps_the_last_good_checkpoint(
    settings: RunSettings, small_recipe: Path, monkeypatch, losses
) -> None:
    recipe = load_recipe(str(small_recipe))
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 2:  # run.json, the state of step 2, then no more
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RdError, match="No space left on device; the one written before is untouched"):
        run(recipe, settings)
    monkeypatch.setattr(os, "fsync", real)
    assert load_state(settings.output)["step"] == 2
    assert not list(settings.output.glob(".*")), "no temporary file is left"
    run(recipe, but(settings, resume=True))
    assert len(losses(settings.output)) == 8


def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch(
    settings: RunSettings, small_recipe: Path, monkeypatch
) -> None:
    measure = loop_module.measure

    def poisoned(*args, **kwargs):
        measured = measure(*args, **kwargs)
        return type(measured)(measured.loss * float("nan"), measured.terms)

    monkeypatch.setattr(loop_module, "measure", poisoned)
    with pytest.raises(RdError, match=r"the loss is nan at step 1; its batch is kept in"):
        run(load_recipe(str(small_recipe)), settings)
    kept = np.load(settings.output / "failed_step_1_rank_0.npz", allow_pickle=False)
    assert kept["wave"].shape[0] == len(kept["files"]) == 2


def test_a_run_that_fails_shows_how_it_came_to_that(settings: RunSettings, small_recipe: Path) -> None:
    recipe = load_recipe(
        str(small_recipe), ["optimiser.lr=1e30", "optimiser.warmup=0", "training.checkpoint_every=100"]
    )
    with pytest.raises(RdError, match=r"is (nan|inf) at step"):
        run(recipe, settings)
    assert read_metrics(settings.output) and (settings.output / "loss.svg").is_file()


def test_rows_are_written_now_and_then(tmp_path: Path, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    metrics = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        metrics.add({"step": float(step), "loss": 1.0})
        clock[0] += 6
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    metrics.add({"step": 4.0, "loss": 1.0})
    assert len(read_metrics(tmp_path)) == 3


def test_of_accumulated_batches_the_broken_one_is_kept(
    settings: RunSettings, small_recipe: Path, monkeypatch, losses
) -> None:
    measure, seen = loop_module.measure, []

    def second_is_infinite(recipe, forward, teacher, batch, draws, **more):
        measured = measure(recipe, forward, teacher, batch, draws, **more)
        seen.append(batch.names)
        return type(measured)(measured.loss * (float("inf") if len(seen) == 4 else 1.0), measured.terms)

    monkeypatch.setattr(loop_module, "measure", second_is_infinite)
    with pytest.raises(RdError, match=r"the loss is inf at step 2; its batch is kept in"):
        run(load_recipe(str(small_recipe), ["training.accumulate=2"]), settings)
    assert [path.name for path in settings.output.glob("failed*")] == ["failed_step_2_rank_0.npz"]
    kept = np.load(settings.output / "failed_step_2_rank_0.npz", allow_pickle=False)
    assert kept["files"].tolist() == seen[3] and kept["mask"].any()
    assert len(losses(settings.output)) == 1 and not (settings.output / "state.pt").exists()


def test_a_gradient_that_is_not_finite_stops_before_the_next_step(
    settings: RunSettings, small_recipe: Path, monkeypatch
) -> None:
    measure = loop_module.measure

    def steep(*args, **kwargs):
        measured = measure(*args, **kwargs)
        at_zero = measured.loss - measured.loss.detach()  # 0, and so the slope of its root is infinite
        return type(measured)(measured.loss.detach() + at_zero.sqrt(), measured.terms)

    monkeypatch.setattr(loop_module, "measure", steep)
    with pytest.raises(RdError, match=r"the norm of the gradients is (nan|inf) at step 1; its batch is kept in"):
        run(load_recipe(str(small_recipe)), settings)
    assert (settings.output / "failed_step_1_rank_0.npz").exists()
    assert not (settings.output / "state.pt").exists()


def test_teacher_and_student_must_fit(settings: RunSettings, small_recipe: Path) -> None:
    with pytest.raises(RdError, match="has width 32, the student's heads have 64"):
        run(load_recipe(str(small_recipe), ["student.changes.head_width=64"]), settings)
    with pytest.raises(RdError, match="has 2 layers, student tiny has 3"):
        run(load_recipe(str(small_recipe), ["student.changes.layers=3"]), settings)
    assert not settings.output.exists(), "nothing is left behind"


def test_learning_rate_rises_and_falls() -> None:
    how = load_recipe("tiny", ["optimiser.lr=1.0", "optimiser.warmup=0.1"]).optimiser
    rates = [learning_rate(how, step, 100) for step in range(100)]
    assert max(rates) == rates[10] == 1.0
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] > 0


def test_mixed_precision_follows_float32(settings: RunSettings, small_recipe: Path) -> None:
    """bfloat16 autocast and a bfloat16 teacher on the CPU: the same losses up to their rounding, and not exactly."""
    how = ["training.steps=3", "data.crop_seconds=0"]
    run(load_recipe(str(small_recipe), how), settings)
    mixed = but(settings, output=settings.output.with_name("mixed"))
    run(
        load_recipe(str(small_recipe), [*how, "training.precision=bf16-mixed", "training.teacher_precision=bfloat16"]),
        mixed,
    )
    for exact, rounded in zip(read_metrics(settings.output), read_metrics(mixed.output), strict=True):
        assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)
        assert rounded["loss"] != exact["loss"]
    assert load_checkpoint(mixed.output / "student").encoder.layer_norm.weight.dtype == torch.float32


def test_mixed_precision_takes_chunks(settings: RunSettings, small_recipe: Path) -> None:
    how = ["training.steps=1", "training.precision=bf16-mixed", "contexts=[{chunk_frames: 4, left_frames: 8}]"]
    run(load_recipe(str(small_recipe), how), settings)
    assert read_metrics(settings.output)[0]["loss"] > 0


@pytest.mark.parametrize("where", ["GPU", "host"])
def test_out_of_memory_names_the_setting(settings: RunSettings, small_recipe: Path, monkeypatch, where) -> None:
    def full(*_, **__):
        if where == "GPU":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        torch.empty(10**15)

    monkeypatch.setattr(loop_module, "measure", full)
    said = rf"the {where} ran out of memory at step 1.*\n\nhint: lower data\.batch_seconds \(now 4\)"
    with pytest.raises(RdError, match=said):
        run(load_recipe(str(small_recipe)), settings)


def test_a_student_of_whole_utterances_starts_from_one_that_streams(settings: RunSettings) -> None:
    """``pocket`` has the weights of ``pocket-stream``: another context, the same shape."""
    small = ["student.changes.conv_layers=[[16, 3, 1], [32, 3, 2]]", "student.changes.width=32"]
    small += ["student.changes.ffn_width=32", "training.steps=1", "data.crop_seconds=0.5", "optimiser.lr=1e-9"]
    streams = run(load_recipe("pocket-stream", small), settings)
    more = but(settings, output=settings.output.with_name("whole"), init=streams)
    whole = load_checkpoint(run(load_recipe("pocket", small), more))
    before = load_checkpoint(streams)
    assert (before.config.context.chunk_frames, whole.config.context) == (8, None)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, before.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_run_can_start_from_a_student(settings: RunSettings, small_recipe: Path) -> None:
    student = run(load_recipe(str(small_recipe), ["training.steps=30", "optimiser.lr=5e-3"]), settings)
    before = read_metrics(settings.output)
    more = but(settings, output=settings.output.with_name("more"), init=student)
    run(load_recipe(str(small_recipe), ["training.steps=3", "optimiser.lr=1e-5"]), more)
    after = read_metrics(more.output)
    assert after[0]["loss"] < before[0]["loss"] - 0.05
    record = json.loads((more.output / "student/training.json").read_text())
    assert record["init_sha256"] == hashlib.sha256((student / "model.safetensors").read_bytes()).hexdigest()
    other = load_recipe(str(small_recipe), ["student.changes.ffn_width=64"])
    with pytest.raises(RdError, match="is another student than the recipe's: ffn_width: 32 -> 64"):
        run(other, but(more, output=settings.output.with_name("other")))
