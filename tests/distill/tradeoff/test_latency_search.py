"""``rd-distill search``: halving of ratios, precisions, the reason, and a limit that keeps the student as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reuse_distill.distill.cli import main
from reuse_distill.distill.tradeoff import latency_search, tradeoff_run
from reuse_distill.distill.tradeoff.device_times import DeviceRuns
from reuse_distill.distill.tradeoff.grid import GridPoint
from reuse_distill.distill.tradeoff.latency_search import SearchPlan, point_name
from reuse_distill.distill.tradeoff.point_stages import PointStages
from reuse_distill.distill.tradeoff.side_by_side import Turns
from reuse_distill.runtime.errors import RdError

MOST = {"rows": 0.6, "heads": 0.3}  # ratios up to which nothing is lost


@pytest.fixture
def planned(without_export: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Probes by rule: all wrong beyond ``MOST``. Times by rule: what is removed is saved, fp32 costs twice."""

    def quality(self: PointStages, point: GridPoint) -> dict:
        wrong = float(bool(point.method) and point.ratio[0] > MOST[point.method])
        groups = [None] * len(self.probes)
        rows = [{"probe": "p", "errors": [wrong] * 10, "items": [1.0] * 10, "groups": group} for group in groups]
        return {
            "probes": [{**row, "probe": one.probe.name} for row, one in zip(rows, self.probes, strict=True)],
            "cosine_to_student": 1.0,
            "cosine_to_original": 1.0,
        }

    def take_turns(contenders: dict, *, repeats: int, seed: int) -> dict[str, Turns]:
        def seconds(name: str) -> float:
            removed = next((float(part) for part in name.split("-") if part.startswith("0.")), 0.0)
            factor = 2.0 if name.endswith("fp32") else 0.9 if name.endswith("int8-dynamic") else 1.0
            return factor * (1 - removed)

        return {name: Turns([seconds(name)] * repeats, [seconds(name)] * repeats) for name in contenders}

    monkeypatch.setattr(PointStages, "quality", quality)
    monkeypatch.setattr(tradeoff_run, "take_turns", take_turns)
    return without_export


def words(checkpoint: Path, tones: Path, out: Path, *more: str) -> list[str]:
    probe = ["--probe", f"label={tones}", "--output", str(out), "--repeats", "2"]
    return ["search", str(checkpoint), *probe, "--methods", "rows,heads", *more]


def test_ratios_are_halved_into_and_the_fastest_is_chosen(
    checkpoint: Path, tones: Path, tmp_path: Path, planned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(words(checkpoint, tones, out)) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out / "points/rows-0.5/bundle")
    results = json.loads((out / "tradeoff.json").read_text())
    steps = {step["name"]: step["decision"] for step in results["search"]["steps"]}
    assert list(steps) == [
        *("whole", "whole-fp32", "rows-0.5", "rows-0.75", "rows-0.625", "rows-0.5-fp32"),
        *("heads-0.5", "heads-0.25", "heads-0.375", "heads-0.25-fp32"),
    ]
    assert steps["rows-0.5"] == "within the limit" and steps["rows-0.625"] == steps["heads-0.375"] == "too much"
    assert results["search"]["chosen"] == results["winners"]["time"] == "rows-0.5"
    assert "rows-0.5 is the fastest: 2.00 (2.00 to 2.00) times as fast as whole" in results["search"]["reason"]
    assert "rows-0.5 is the fastest" in printed.err
    assert "rows-0.5 is the fastest" in (out / "tradeoff.html").read_text()

    before = list(planned)
    assert main(words(checkpoint, tones, out, "--resume")) == 0 and planned == before
    assert main(words(checkpoint, tones, out, "--resume", "--trials", "2")) == 2
    assert "is another trade-off: search.trials: 3 -> 2" in capsys.readouterr().err


def test_nothing_within_the_limit(
    checkpoint: Path, tones: Path, tmp_path: Path, planned: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(f"{__name__}.MOST", {"rows": 0.0, "heads": 0.0})
    assert main(words(checkpoint, tones, tmp_path / "out", "--trials", "1", "--precisions", "fp32,int8-dynamic")) == 0
    results = json.loads((tmp_path / "out/tradeoff.json").read_text())
    assert results["search"]["chosen"] == "whole-int8-dynamic", "precision alone may be what is faster"
    assert main(words(checkpoint, tones, tmp_path / "one", "--trials", "1", "--precisions", "fp32")) == 0
    assert "Nothing within the limit of loss is faster than whole" in capsys.readouterr().err


def test_a_device_may_choose_another(
    checkpoint: Path, tones: Path, tmp_path: Path, planned: list[str], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Here rows-0.5 is the fastest; the device has another opinion, of everything within the limit and nothing else."""

    def times(bundles: dict[str, Path], runs: DeviceRuns, folder: Path, report: object) -> dict[str, list[float]]:
        assert runs == DeviceRuns("pi=pi@far", 5.0, 2) and all(name in str(bundles[name]) for name in bundles)
        return {name: [0.01 if name == "heads-0.25" else 0.03] * 2 for name in bundles}

    monkeypatch.setattr(latency_search, "device_times", times)
    more = ("--device", "pi=pi@far", "--device-seconds", "5", "--device-rounds", "2")
    assert main(words(checkpoint, tones, tmp_path / "out", *more)) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out/points/heads-0.25/bundle")
    results = json.loads((tmp_path / "out/tradeoff.json").read_text())
    assert set(results["search"]["device"]["points"]) == {"whole", *results["within_limit"]}
    assert results["winners"]["time"] == "rows-0.5"
    page = (tmp_path / "out/tradeoff.html").read_text()
    assert "On pi=pi@far heads-0.25 is the fastest of" in page and "within the limit, on pi=pi@far" in page


def test_a_point_that_fails_is_on_record(checkpoint: Path, tones: Path, tmp_path: Path, planned: list[str]) -> None:
    audio = ["--data", str(tones.parent)]
    assert main(words(checkpoint, tones, tmp_path / "out", "--precisions", "fp32,int8", "--trials", "1", *audio)) == 0
    results = json.loads((tmp_path / "out/tradeoff.json").read_text())
    failed = {row["name"] for row in results["points"] if row["status"] == "failed"}
    assert failed == {"whole-int8", "rows-0.5-int8"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "rows,row"), "there is no compression method 'row'"),
        (("--methods", "rows,rows"), "methods are rows, rows"),
        (("--precisions", "int9"), "precision is 'int9'"),
        (("--trials", "0"), "--trials is 0"),
        (("--limit", "-1"), "limit is -1"),
        (("--methods", "heads-data"), "needs audio"),
        (("--recover", "5"), "needs audio"),
    ],
)
def test_options_that_are_not_possible(checkpoint: Path, tones: Path, tmp_path: Path, capsys, more, message) -> None:
    assert main([*words(checkpoint, tones, tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_student_that_cannot_be_measured(
    checkpoint: Path, tones: Path, tmp_path: Path, without_export: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    audio = ["--data", str(tones.parent)]
    assert main([*words(checkpoint, tones, tmp_path / "out"), "--precisions", "int8", *audio]) == 2
    assert "the student itself cannot be measured: export: rd-export: products" in capsys.readouterr().err


def test_names_and_plans() -> None:
    assert point_name("heads+2:4", 0.375) == "heads+2of4-0.375"
    with pytest.raises(RdError, match="precisions are none"):
        SearchPlan(precisions=())
    assert latency_search.SearchPlan().trials == 3
