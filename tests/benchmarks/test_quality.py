"""The table of benchmarks.quality: means over seeds, paired differences, pieces of speakers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reuse_distill.distill.evaluation.evaluate import Outcome, ProbeOutcomes

from benchmarks.quality import pieces
from benchmarks.quality_table import differences, markdown, summary

FACTS = {"data": "label: x/manifest.csv", "measure": "accuracy"}


def answers(**right: list[float]) -> ProbeOutcomes:
    outcomes = [Outcome(name.replace("_", "/"), values, [1.0] * 4, [0.25, 0.75]) for name, values in right.items()]
    return ProbeOutcomes(FACTS, outcomes, None)


def test_seeds_are_averaged_per_item_and_compared_in_pairs() -> None:
    found = summary(answers(masking_0=[1, 1, 0, 0], masking_1=[1, 0, 0, 0], hint_0=[0, 0, 0, 0], mel=[1, 1, 1, 1]))
    rows = {row["source"]: row for row in found["results"]}
    assert list(rows) == ["masking", "hint", "mel"]
    assert rows["masking"]["value"] == 0.375 and rows["masking"]["by_seed"] == [0.5, 0.25]
    assert rows["masking"]["low"] <= 0.375 <= rows["masking"]["high"] and "masking_minus_this" not in rows["masking"]
    assert rows["hint"]["masking_minus_this"]["value"] == 0.375
    assert rows["mel"]["masking_minus_this"]["value"] == pytest.approx(-0.625)
    text = markdown({"probes": [found]})
    assert "| masking | 0.375 [" in text and ", seeds 0.250-0.500 |" in text and "| mel | -0.625 [" in text


def test_differences_are_of_the_two_that_were_named() -> None:
    found = differences(answers(a=[1, 1, 1, 0], b=[1, 0, 0, 0]), "a", "b")
    assert found["value"] == 0.5 and found["low"] >= 0


def test_pieces_of_a_recording_are_in_train_or_test(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000 * 7)
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.flac", noise, 16_000)
    (tmp_path / "m.csv").write_text("file,speaker,split\na.flac,s1,test\nb.flac,s2,train\n")
    with pieces(tmp_path / "m.csv", tmp_path / "out").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["speaker"], row["split"]) for row in rows] == [("s1", "train"), ("s1", "test"), ("s1", "test")]
    heard = [soundfile.read(tmp_path / "out" / row["file"])[0] for row in rows]
    assert np.allclose(np.concatenate(heard), noise[: 16_000 * 6], atol=1e-4)
