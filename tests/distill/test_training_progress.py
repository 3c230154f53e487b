"""The live view: nothing of it is cut where a terminal is narrow."""

from __future__ import annotations

from reuse_distill.distill.training.training_progress import Screen

ROW = {"loss": 2.0527, "lr": 3.3e-4, "grad_norm": 0.55, "audio_s": 6.0, "wall_s": 0.5}


def test_a_narrow_terminal_shows_steps_numbers_and_the_best_held_out_loss(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    screen = Screen(1000, 200)
    with screen.live:
        screen.step(400, ROW)
        screen.validated(400, 2.5)
        screen.validated(600, 2.75)
        screen.step(600, ROW)
    shown = capsys.readouterr().err
    assert "600/1000" in shown and "left" in shown
    assert "loss 2.0527  lr 3.30e-04  grad 0.55  12.0x real time" in shown
    assert "held out 2.7500 (step 600), best 2.5000 (step 400)" in shown
    assert "…" not in shown
