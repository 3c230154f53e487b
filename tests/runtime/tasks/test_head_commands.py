"""rd-stream --head: results as lines, words of a text where they are spoken, and refusals that help."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reuse_distill.runtime.cli.writers import columns_of, nothing_heard
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.rd_stream import main
from reuse_distill.runtime.tasks import TaskOutput


@pytest.fixture(scope="module")
def sound(toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    soundfile.write(path, toys.speech(320 * 40 + 80, seed=7), 16_000, subtype="FLOAT")
    return path


@pytest.fixture(scope="module")
def bundle(toys) -> Path:
    return toys.build("streaming", toys.Toy(heads=True, layers=1))


def test_units_come_as_lines(bundle: Path, sound: Path, tmp_path: Path, capfdbinary) -> None:
    assert main([str(sound), str(bundle), "--head", "units"]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    wave = soundfile.read(sound, dtype="float32")[0]
    events = Encoder.load(bundle).events(wave, "units")
    assert len(lines) == len(events) and all(str(e) == line for e, line in zip(events, lines, strict=True))
    assert main([str(sound), str(bundle), "--head", "units", "--output", str(tmp_path / "u.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "u.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [event.label for event in events]
    assert rows[0]["head"] == "units" and rows[-1]["end_s"] == 0.8


def test_a_recording_without_a_result_says_why(bundle: Path, tmp_path: Path, capfd) -> None:
    """A user who sees no line waits for one."""
    soundfile.write(tmp_path / "short.wav", np.zeros(300), 16_000)
    assert main([str(tmp_path / "short.wav"), str(bundle), "--head", "units"]) == 0
    assert "no frame: 25 ms of audio are needed" in capfd.readouterr().err
    spot = TaskOutput("k", "spot", 2, ("alexa", "jarvis"), thresholds=(1, 1))
    assert nothing_heard(spot, 100) == "none of the keywords alexa, jarvis in 2.0 s"
    assert nothing_heard(TaskOutput("v", "xvector", 3, weights="v.npz"), 9) == "no vector: 9 frames are too few for it"


def test_lines_on_a_terminal_have_names_and_a_place_of_their_own(bundle: Path, sound: Path, capfd, monkeypatch) -> None:
    """Columns are named for a person only; what is rewritten in place is cleared before every line."""
    cleared: list[str] = []
    monkeypatch.setattr("reuse_distill.runtime.cli.writers.on_terminal", lambda: True)
    monkeypatch.setattr("reuse_distill.runtime.cli.progress.Progress.close", lambda _: cleared.append("cleared"))
    assert main([str(sound), str(bundle), "--head", "units"]) == 0
    out, err = capfd.readouterr()
    assert " start s    end s  unit" in err and "start s" not in out
    assert len(cleared) >= 2
    assert columns_of(TaskOutput("k", "spot", 2, ("alexa", "jarvis"), thresholds=(1, 1))).endswith("word  score")
    assert main([str(sound), str(bundle), "--head", "units", "--output", "jsonl"]) == 0
    assert "start s" not in capfd.readouterr().err


def test_several_recordings_are_named(bundle: Path, sound: Path, tmp_path: Path) -> None:
    output = tmp_path / "all.jsonl"
    assert main([str(sound.parent), str(bundle), "--head", "letters", "--output", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert ({row["file"] for row in rows} <= {"a.wav"} and rows == []) or rows[0]["head"] == "letters"


def test_a_text_is_aligned(bundle: Path, sound: Path, capfdbinary) -> None:
    assert main([str(sound), str(bundle), "--head", "letters", "--align", "ab cd", "--output", "jsonl"]) == 0
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.decode().splitlines()]
    assert [row["label"] for row in rows] == ["ab", "cd"] and rows[0]["end_s"] <= rows[1]["start_s"]


def test_features_at_the_rate_of_a_video(bundle: Path, sound: Path, tmp_path: Path) -> None:
    for more in ([], ["--whole"]):
        assert main([str(sound), str(bundle), "--fps", "25", "--output", str(tmp_path / "f.npy"), *more]) == 0
        assert np.load(tmp_path / "f.npy").shape == (20, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head", "unit"], "did you mean 'units'"),
        (["--head", "units", "--output", "npy"], "events of head 'units' are lines"),
        (["--head", "units", "--align", "ab"], "--align is for a ctc head"),
        (["--align", "ab"], "--align needs a ctc head"),
        (["--head", "units", "--fps", "25"], "--fps is for features"),
        (["--fps", "many"], "a number is needed"),
        (["--head", "letters", "--align", "xyz"], "'x' is not a label"),
    ],
)
def test_what_makes_no_sense_is_refused(bundle: Path, sound: Path, words: list[str], message: str, capsys) -> None:
    assert main([str(sound), str(bundle), *words]) == 2
    assert message in capsys.readouterr().err
