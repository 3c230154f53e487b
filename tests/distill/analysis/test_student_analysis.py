"""``rd-distill analyse``: scores of heads on maps that are known, orders of removal, costs, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.analysis.student_analysis import analyse, cost_by_part, rank_correlation
from reuse_distill.distill.cli import main
from reuse_distill.distill.compress.head_pruning import diagonality, entropy, map_scores, random_scores
from reuse_distill.distill.compress.methods import METHODS
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, preset, save_checkpoint
from reuse_distill.student.cost import macs


@pytest.fixture(scope="module")
def small() -> Student:
    torch.manual_seed(5)
    sizes = {"width": 32, "ffn_width": 40, "heads": 4, "layers": 4, "reuse_layers": (2, 4), "head_width": 24}
    convolutions = ((8, 10, 5), (8, 1, 1), *((8, 3, 2),) * 4, (32, 1, 1), *((32, 2, 2),) * 2)
    student = Student(preset("tiny-stream", **sizes, conv_layers=convolutions, position_groups=4, position_kernel=16))
    with torch.no_grad():
        for name, value in student.named_parameters():
            if ".layers." in name and value.ndim == 2:
                value.mul_(8)
    return student.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def waves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8000 + 1000 * n, generator=generator) * 0.1 for n in range(2)]


def test_diagonality_and_entropy_of_known_maps() -> None:
    eye, flat = torch.eye(40), torch.full((40, 40), 1 / 40)
    next_frame = torch.roll(eye, 1, dims=1)[:39, :39]  # every query but the last sees the frame after it
    assert diagonality(eye) == 0 and entropy(eye) == 0
    assert float(entropy(flat)) == pytest.approx(1, abs=1e-5)
    assert float(diagonality(flat)) == pytest.approx(-(40 - 1 / 40) / 3 / 40, rel=1e-4)  # mean |i - j| = (n - 1/n) / 3
    assert float(diagonality(next_frame)) == pytest.approx(-38 / 39 / 39)
    assert entropy(torch.stack([eye, flat])).shape == (2,)


def test_scores_belong_to_maps(small: Student, waves: list[torch.Tensor]) -> None:
    both = map_scores(small, waves)
    assert all(list(scores) == [1, 3] and len(scores[1]) == 4 for scores in both)
    maps = small(waves[0][None], context=small.config.context, with_maps=True).maps
    assert map_scores(small, waves[:1])[0][3][2] == pytest.approx(float(diagonality(maps[2][0, 2])))
    with pytest.raises(RdError, match="no audio to look at maps on"):
        map_scores(small, [])


def test_most_diagonal_and_random_heads_go(small: Student, waves: list[torch.Tensor]) -> None:
    scores, _ = map_scores(small, waves)
    flat = {(source, head): value for source, values in scores.items() for head, value in enumerate(values)}
    best = max(flat, key=flat.__getitem__)
    pruned = METHODS["heads-diagonal"](small, 1 / 8, waves, 0)
    kept = [head for head in range(4) if (best[0], head) != best]
    rows = [8 * head + column for head in kept for column in range(8)]
    layer = pruned.encoder.layers[best[0] - 1].self_attn
    assert torch.equal(layer.v_proj.weight, small.encoder.layers[best[0] - 1].self_attn.v_proj.weight[rows])
    layouts = {METHODS["heads-random"](small, 0.5, [], seed).config.layer_heads for seed in range(8)}
    assert len(layouts) > 1 and all(sum(layout) == 8 and min(layout) > 0 for layout in layouts)
    assert random_scores(small, 3) == random_scores(small, 3) != random_scores(small, 4)


def test_cost_by_part_is_all_of_it(small: Student) -> None:
    for seconds in (1, 20):
        parts = cost_by_part(small.config, seconds)
        assert sum(parts.values()) * seconds == pytest.approx(sum(macs(small.config, 50 * seconds - 1).values()))
    short, long = cost_by_part(small.config, 1), cost_by_part(small.config, 60)
    assert long["attention products"] > 50 * short["attention products"]
    assert long["feed-forward"] == pytest.approx(short["feed-forward"], rel=0.03)


def test_rank_correlation() -> None:
    assert rank_correlation([1, 5, 9], [0.1, 0.2, 7]) == pytest.approx(1)
    assert rank_correlation([1, 5, 9], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 3]) == pytest.approx(8 / 9)  # ties share ranks
    assert np.isnan(rank_correlation([1, 1], [1, 2]))


def test_analysis_of_a_student(small: Student, waves: list[torch.Tensor]) -> None:
    analysis = analyse(small, waves)
    assert len(analysis.heads) == 8 and {row.layers for row in analysis.heads} == {(1, 2), (3, 4)}
    assert sorted(row.importance_rank for row in analysis.heads) == list(range(1, 9))
    first = min(analysis.heads, key=lambda row: row.diagonality_rank)
    assert first.diagonality == max(row.diagonality for row in analysis.heads)
    assert [row[n] for n, row in enumerate(analysis.likeness)] == pytest.approx([1.0] * 4)


def test_the_command(small: Student, tmp_path: Path, capsys) -> None:
    student = save_checkpoint(tmp_path / "some<name", small)
    audio = tmp_path / "audio"
    audio.mkdir()
    soundfile.write(audio / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(12_000), 16_000)
    words = ["analyse", str(student), "--data", str(audio), "--output", str(tmp_path / "out/page.html")]
    assert main([*words, "--json", str(tmp_path / "out/page.json")]) == 0
    page = (tmp_path / "out/page.html").read_text()
    assert "some&lt;name" in page and "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")
    for text in ("Head 3.4", "Layer 1, reused by 2", "What pruning removes first", "attention products", "60 s"):
        assert text in page, text
    figures = json.loads((tmp_path / "out/page.json").read_text())
    assert len(figures["heads"]) == 8 and len(figures["likeness"]) == 4
    capsys.readouterr()
    for more, message in (
        (("--utterances", "0"), "--utterances 0"),
        (("--output", str(tmp_path)), "is a folder"),
        (("--data", str(tmp_path / "none")), "none"),
        (("--bundle", str(audio)), "not a bundle"),
    ):
        assert main([*words, *more]) == 2 and message in capsys.readouterr().err
