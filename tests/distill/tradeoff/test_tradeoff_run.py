"""``rd-distill tradeoff``: every stage but the export on a toy, failures, resuming, and data that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.compress import compress_run
from reuse_distill.distill.compress.weight_pruning import sparsity, zero_masks
from reuse_distill.distill.tradeoff import point_stages
from reuse_distill.student import load_checkpoint

POINTS = """
  - {name: whole}
  - {name: rows, method: rows, ratio: 0.5}
  - {name: rows-int8, method: rows, ratio: 0.5, precision: int8}
  - {name: heads-all, method: heads, ratio: 0.9}
  - {name: weights, method: weights, ratio: 0.6, recover: 2}
"""


@pytest.fixture
def words(checkpoint: Path, tones: Path, tmp_path: Path) -> list[str]:
    grid = tmp_path / "mine.yaml"
    recipe = tmp_path / "quick.yaml"
    shipped = Path(compress_run.__file__).parents[1] / "recipes/recover.yaml"
    recipe.write_text(shipped.read_text().replace("crop_seconds: 4.0", "crop_seconds: 0.3\n  workers: 1"))
    settings = f"student: {checkpoint}\nprecision: fp32\nrecipe: {recipe}\nrepeats: 2\nseconds: 1\n"
    grid.write_text(f"summary: mine\n{settings}points:{POINTS}")
    return ["tradeoff", str(grid), "--probe", f"label={tones}", "--data", str(tones.parent)]


def test_every_point_is_measured_or_failed_with_its_reason(
    words: list[str], tmp_path: Path, without_export: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*words, "--output", str(out)]) == 1, "two points failed"
    assert capsys.readouterr().out.strip() == str(out / "tradeoff.html")
    results = json.loads((out / "tradeoff.json").read_text())
    rows = {row["name"]: row for row in results["points"]}
    assert list(rows) == ["whole", "rows", "rows-int8", "heads-all", "weights"]
    assert rows["heads-all"]["reason"].startswith("compression: --ratio 0.9 of 4 heads leaves none")
    assert rows["rows-int8"]["reason"] == "export: rd-export: products of 8 bits overflow"
    assert rows["rows-int8"]["error"] is None and rows["rows-int8"]["processor_s"] is None

    assert rows["rows"]["parameters"] < rows["whole"]["parameters"] == rows["weights"]["parameters"]
    assert rows["weights"]["nonzero_parameters"] < 0.9 * rows["weights"]["parameters"]
    assert rows["rows"]["superb_macs"] < rows["whole"]["superb_macs"] == rows["weights"]["superb_macs"]
    assert rows["whole"]["loss"] == {"value": 0, "low": 0, "high": 0}
    assert rows["whole"]["faster"]["median"] == 1 and rows["rows"]["faster"]["median"] > 0
    for row in (rows["whole"], rows["rows"], rows["weights"]):
        assert row["cosine_to_student"] == pytest.approx(1, abs=1e-5)
    assert rows["whole"]["cosine_to_original"] == pytest.approx(1, abs=1e-5)
    assert rows["rows"]["cosine_to_original"] < 0.9999
    assert sparsity(load_checkpoint(out / "students/weights-0.6-schedule-1-recover-2/student")) > 0.59
    assert results["winners"]["parameters"] in results["within_limit"] and "whole" in results["within_limit"]

    assert set(rows["rows"]["by_length"]) == {"2", "5", "10"} and rows["heads-all"]["by_length"] is None
    compared = {one["count"]: one for one in results["smaller_and_faster"]}
    assert compared["parameters"]["pairs"] >= 2, "weights against whole and against rows"
    assert "MACs" not in compared, "feed-forward units are less than 5 % of the toy's, and zeros are multiplied"

    page = (out / "tradeoff.html").read_text()
    assert "heads-all failed: compression" in page and "3 measured, 2 failed" in page
    assert "published, not measured" in page and "not SUPERB" in results["note"]

    assert without_export == ["whole", "rows", "weights"]
    assert main([*words, "--output", str(out), "--resume"]) == 1
    assert without_export == ["whole", "rows", "weights"], "nothing is made again"
    assert json.loads((out / "tradeoff.json").read_text()) == results, "timing too"


def test_points_one_by_one(words: list[str], tmp_path: Path, without_export: list[str], capsys) -> None:
    out = tmp_path / "out"
    assert main([*words, "--output", str(out), "--points", "rows"]) == 0
    assert without_export == ["rows"] and not (out / "tradeoff.json").exists()
    assert main([*words, "--output", str(out), "--points", "whole,rows", "--resume", "--page"]) == 1
    rows = {row["name"]: row for row in json.loads((out / "tradeoff.json").read_text())["points"]}
    assert rows["rows"]["status"] == "measured" and rows["weights"]["reason"] == "not run: --points left it out"
    assert main([*words, "--output", str(out), "--points", "row", "--resume"]) == 2
    assert "no point 'row'" in capsys.readouterr().err


def test_a_killed_run_gives_the_same_masks_and_rows(
    words: list[str], tmp_path: Path, without_export: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ["--points", "weights"]
    assert main([*words, "--output", str(tmp_path / "whole"), *only]) == 0

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place, name in ((compress_run, "_recovered"), (point_stages, "probed")):
        resume = ["--resume"] if (tmp_path / "cut/grid.json").exists() else []
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
            patch.setattr(place, name, kill)
            raise SystemExit(main([*words, "--output", str(tmp_path / "cut"), *only, *resume]))
    assert main([*words, "--output", str(tmp_path / "cut"), *only, "--resume"]) == 0
    for file in ("points/weights/cost.json", "points/weights/quality.json"):
        assert (tmp_path / "cut" / file).read_text() == (tmp_path / "whole" / file).read_text()
    name = "students/weights-0.6-schedule-1-recover-2/student"
    whole, cut = (load_checkpoint(tmp_path / run / name) for run in ("whole", "cut"))
    for parameter, kept in zero_masks(whole).items():
        assert torch.equal(kept, zero_masks(cut)[parameter]), parameter


def test_resume_is_of_the_same_grid(words: list[str], tmp_path: Path, without_export: list[str], capsys) -> None:
    out = ["--output", str(tmp_path / "out")]
    assert main([*words, *out, "--resume"]) == 2 and "holds no trade-off to resume" in capsys.readouterr().err
    assert main([*words, *out, "--points", "whole"]) == 0
    assert main([*words, *out]) == 2 and "already holds a trade-off" in capsys.readouterr().err
    assert main([*words, *out, "--resume", "recover=7"]) == 2
    assert "is another trade-off: grid.recover: 0 -> 7" in capsys.readouterr().err
    Path(words[1]).write_text(Path(words[1]).read_text().replace("ratio: 0.6", "ratio: 0.7"))
    assert main([*words, *out, "--resume"]) == 2
    assert "grid.points.weights.ratio: [0.6] -> [0.7]" in capsys.readouterr().err


def test_data_that_is_not_there(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, grid, probe, named, data, audio = words
    out = ["--output", str(tmp_path / "out")]
    for given, message in (
        ([command, grid, data, audio], "has no data to probe on"),
        ([command, grid, probe, "label=nowhere.csv", data, audio], "there is no probe data at nowhere.csv"),
        ([command, grid, probe, "digits", data, audio], "'digits' names no probe"),
        ([command, grid, probe, named], "point 'rows-int8' needs audio"),
        ([command, grid, probe, named, data, "nowhere"], "there is no audio at nowhere"),
        ([*words, "student=nobody"], "there is no student 'nobody'"),
    ):
        assert main([*given, *out]) == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_fresh_student(words: list[str], tmp_path: Path, without_export: list[str]) -> None:
    grid = Path(words[1])
    points = "\n  - {name: whole}\n  - {name: fresh, fresh: {ffn_width: 16, layer_heads: [2, 2]}, recover: 2}\n"
    quick = grid.parent / "quick.yaml"
    grid.write_text(grid.read_text().split("points:")[0] + f"fresh_recipe: {quick}\npoints:{points}")
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    student = load_checkpoint(tmp_path / "out/students/fresh-fresh/student")
    assert student.config.ffn_width == 16 and student.config.layer_heads == (2, 2)
    assert "initial weights, ffn_width 16, layer_heads 2 in each, 2 steps" in (
        (tmp_path / "out/tradeoff.html").read_text()
    )


@pytest.mark.slow
def test_with_real_artifacts(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*words, "--output", str(out), "--points", "whole,rows"]) == 0
    stages = json.loads((out / "points/rows/quality.json").read_text())
    assert stages["cosine_to_student"] == pytest.approx(1, abs=1e-4)
    assert json.loads((out / "points/rows/bundle/manifest.json").read_text())["kind"] == "streaming"
