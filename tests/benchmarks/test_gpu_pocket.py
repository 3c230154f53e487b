"""The command for a machine with a GPU, tried on the CPU: a student, every figure, and what failed by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reuse_distill.distill.cli import parser

from benchmarks import gpu_pocket


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "audio"
    folder.mkdir()
    for number in range(4):
        samples = 0.1 * np.random.default_rng(number).standard_normal(16_000)
        soundfile.write(folder / f"{number}.wav", samples, 16_000)
    return folder


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    small = ["--device", "cpu", "--batch", "2", "--probe-steps", "2", "--output", str(output)]
    return ["gpu_pocket", "--data", str(data), *small, *more]


def test_parts_that_fail_are_named_and_the_rest_goes_on(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[str] = []

    def part(self: gpu_pocket.Parts, name: str, words: list, *, limit_s: float | None = None) -> bool:
        run.append(name)
        if name == "bfloat16, compiled":
            self.failed[name] = "status 1"
            return False
        folder = Path(words[words.index("--output") + 1]) if "--output" in words else tmp_path / "out"
        for path in (folder / "student" / "config.json", folder / "metrics.csv", folder / "validation.csv"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("step,audio_s,wall_s\n1,8,0.5\n2,8,0.01\n")
        (tmp_path / "out" / "throughput.json").write_text("{}")
        return True

    monkeypatch.setattr(gpu_pocket.Parts, "run", part)
    monkeypatch.setattr(sys, "argv", arguments(recordings, tmp_path / "out", "--teacher", "t", "--minutes", "1"))
    assert gpu_pocket.main() == 0
    result = json.loads((tmp_path / "out" / "gpu_pocket.json").read_text())
    assert run == ["targets", *gpu_pocket.WAYS, "throughput", "training"]
    assert result["failed"] == {"bfloat16, compiled": "status 1"}
    assert result["steps_from_targets"]["bfloat16, compiled"] == "unmeasured"
    assert result["steps_from_targets"]["float32"] == {"step_s": 0.01, "times_real_time": 800.0, "first_step_s": 0.5}
    assert 1000 < result["training"]["steps"] < 3000  # what is left of a minute, in steps of 10 ms


@pytest.mark.parametrize("name", gpu_pocket.WAYS)
def test_every_way_is_one_that_rd_distill_takes(name: str, tmp_path: Path) -> None:
    given = gpu_pocket.arguments(["--data", "d", "--targets", "t", "--output", str(tmp_path)])
    words = [str(word) for word in gpu_pocket.run_words(given, Path("t"), tmp_path / "run", 2)]
    known, rest = parser().parse_known_args([*words[1:], *gpu_pocket.WAYS[name]])
    assert known.command == "run" and known.precision in ("32", "bf16")
    assert rest and all("=" in word for word in rest)


def test_a_part_ends_in_time() -> None:
    import time

    parts = gpu_pocket.Parts(time.monotonic() + 60)
    assert parts.run("help", ["json.tool", "--help"])
    assert not parts.run("late", ["timeit", "-n", "1", "import time; time.sleep(30)"], limit_s=1)
    assert parts.failed == {"late": "not done within 1 s"}
    assert not parts.run("wrong", ["json.tool", "--no-such-option"]) and "status" in parts.failed["wrong"]


@pytest.mark.slow
def test_the_whole_command_without_a_gpu(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reuse_distill.student import load_checkpoint

    teacher = Path(__file__).resolve().parents[2] / "student" / "weights" / "pocket-stream"
    more = ("--teacher", str(teacher), "--minutes", "20")
    monkeypatch.setattr(gpu_pocket, "SAFETY", 0.01)
    monkeypatch.setattr(sys, "argv", arguments(recordings, tmp_path / "out", *more))
    assert gpu_pocket.main() == 0
    result = json.loads((tmp_path / "out" / "gpu_pocket.json").read_text())
    assert result["failed"] == {} and result["step_with_teacher"]["ratio"]["median"] > 0
    assert load_checkpoint(tmp_path / "out" / "student").config.head_width == 512
