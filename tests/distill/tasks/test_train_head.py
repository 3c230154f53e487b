"""Training heads: they learn what is there, say how good they are, and refuse what cannot be learnt."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.tasks.finetune import Finetuning, learn, loss_of
from reuse_distill.distill.tasks.fit_spot import SpotSettings, fit_spot, realigned, spot_output, word_of
from reuse_distill.distill.tasks.fit_without_gradients import Ridge, assign, k_means
from reuse_distill.distill.tasks.made_head import fold_projection, open_student
from reuse_distill.distill.tasks.spot_data import Heard, judge_spot, other_speech, poisson_rate
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.runtime.tasks.spotting import Spotter
from reuse_distill.student import Student, load_checkpoint, preset, save_checkpoint
from reuse_distill.student.checkpoints.checkpoint import read_provenance
from reuse_distill.student.config import conv_stack
from reuse_distill.student.tasks import HeadConfig, TaskHead, load_head


def test_k_means_finds_the_clusters_and_leaves_none_empty() -> None:
    random = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(8, 5, generator=random)
    frames = centres.repeat(50, 1) + 0.1 * torch.randn(400, 5, generator=random)
    clusters = k_means(frames, 8, seed=1)
    numbers, distances = assign(frames, clusters.centroids)
    assert len(numbers.unique()) == 8 and distances.mean() < 0.1
    assert all(a >= b - 1e-6 for a, b in zip(clusters.distortions, clusters.distortions[1:], strict=False))
    many = k_means(frames, 60, seed=1)
    assert len(assign(frames, many.centroids)[0].unique()) == 60, "a unit that no frame has says nothing"
    twins = torch.cat([torch.zeros(50, 3), torch.ones(50, 3)])
    with pytest.raises(RdError, match="frames"):
        k_means(twins, 5, seed=0)
    with pytest.raises(RdError, match="4 frames for 5 units"):
        k_means(torch.randn(4, 2), 5, seed=0)


def test_a_projection_is_the_least_squares_map() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(500, 6, generator=random) + 2, torch.randn(4, 6, generator=random)
    sums = Ridge()
    for part in x.split(100):
        sums.add(part, part @ weight.T + 1)
    found, bias = sums.solve()
    assert torch.allclose(x @ found.T + bias, x @ weight.T + 1, atol=0.05)


WORDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])  # order of four sounds


def utterance(label: int | None, random: np.random.Generator) -> tuple[torch.Tensor, tuple[int, int]]:
    """Frames (F, 18) that say a word of four sounds, or sounds in any other order; a frame knows the two before it."""
    before, after = random.integers(10, 30, 2)
    order = WORDS[label] if label is not None else random.permutation(4)
    if label is None and any((order == word).all() for word in WORDS):
        order = np.array([1, 0, 3, 2])
    sounds = np.repeat(np.eye(6)[order], 5, axis=0)
    frames = np.concatenate([np.eye(6)[[4]].repeat(before, 0), sounds, np.eye(6)[[5]].repeat(after, 0)])
    frames = np.concatenate([frames, np.roll(frames, 5, axis=0), np.roll(frames, 10, axis=0)], axis=1)
    noisy = frames + 0.1 * random.standard_normal(frames.shape)
    return torch.from_numpy(noisy.astype(np.float32)), (int(before), int(before) + 20)


def test_a_spotter_learns_words_from_their_parts() -> None:
    random = np.random.default_rng(0)
    spoken = [(*utterance(i % 2, random), i % 2) for i in range(60)]
    others = [utterance(None, random)[0] for _ in range(60)]
    settings = SpotSettings(parts=4, inner_width=16, smooth_frames=3, search_frames=40)
    network = fit_spot(
        [f for f, _, _ in spoken], [k for *_, k in spoken], [w for _, w, _ in spoken], others,
        keywords=2, settings=settings, seed=0, report=lambda _: None,
    )  # fmt: skip
    output = spot_output("words", ["one", "two"], settings, [0.3, 0.3])
    fresh = [(*utterance(i % 2, random), i % 2) for i in range(20)]
    said = [Heard(network.probabilities(f), k, w[1]) for f, w, k in fresh]
    other = [Heard(network.probabilities(utterance(None, random)[0])) for _ in range(20)]
    figures = judge_spot(output, said, other)
    assert figures["false_rejection_rate"]["value"] <= 0.2
    assert figures["false_alarms"] <= 6 and figures["other_speech_hours"] > 0
    assert abs(figures["delay_after_word_s"]["median"]) < 0.2
    with pytest.raises(RdError, match="keyword 1 has no recording"):
        fit_spot([spoken[0][0]], [0], [spoken[0][1]], others, keywords=2, settings=settings, seed=0)


def test_alignment_finds_the_parts_in_order() -> None:
    rows = np.full((30, 5), 0.01, np.float32)
    rows[:10, 0] = rows[22:, 0] = 0.96
    for part in range(4):
        rows[10 + 3 * part : 13 + 3 * part, 1 + part] = 0.96
    path = realigned(rows, 0, 4).tolist()
    assert path == [0] * 10 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [0] * 8


def test_a_word_is_where_it_is_loud() -> None:
    random = np.random.default_rng(0)
    samples = 0.001 * random.standard_normal(32_000).astype(np.float32)
    samples[9600:19_200] += 0.1 * random.standard_normal(9600).astype(np.float32)
    first, last = word_of(samples)
    assert abs(first - 30) <= 3 and abs(last - 60) <= 3
    assert word_of(np.zeros(3200, np.float32))[1] > 0


def test_rates_have_exact_intervals() -> None:
    none = poisson_rate(0, 2.0)
    assert none == {"value": 0.0, "low": 0.0, "high": pytest.approx(3.689 / 2, abs=1e-3)}
    assert poisson_rate(0, 0.0) == "unmeasured"


def write_data(folder: Path, make_sound, rows: list[tuple[str, str, str, str]]) -> Path:
    """A manifest of noise bursts: (name, speaker, label, split)."""
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "speaker", "text_or_label", "split"])
        for number, (name, *rest) in enumerate(rows):
            soundfile.write(folder / f"{name}.wav", make_sound(0.6, number), 16_000)
            writer.writerow([f"{name}.wav", *rest])
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = {"width": 16, "ffn_width": 24, "heads": 2, "layers": 2, "reuse_layers": (2,), "head_width": 12}
    config = preset("tiny-stream", **small, conv_layers=conv_stack(6, 5, 16), position_groups=4, position_kernel=16)
    torch.manual_seed(0)
    return save_checkpoint(tmp_path_factory.mktemp("student") / "student", Student(config).eval())


@pytest.mark.parametrize("kind", ["classify", "ctc", "units", "spot"])
def test_the_command_trains_every_kind(kind: str, student: Path, make_sound, tmp_path: Path, capsys) -> None:
    label = {"ctc": "ab"}.get(kind)
    rows = [(f"r{i}", f"s{i}", label or "xy"[i % 2], "test" if i >= 6 else "train") for i in range(8)]
    data = write_data(
        tmp_path,
        make_sound,
        [(n, s, t if kind != "ctc" else "ab "[: 1 + i % 2], p) for i, (n, s, t, p) in enumerate(rows)],
    )
    more = {"units": ["--units", "5"], "spot": ["--negatives", str(tmp_path), "--copies", "1", "--inner", "4"]}
    words = ["head", kind, "--student", student, "--data", data, "--output", tmp_path / "my-head", *more.get(kind, [])]
    assert main([str(word) for word in words]) == 0
    assert "my-head: " in capsys.readouterr().out
    head = load_head(tmp_path / "my-head")
    assert head.name == "my_head" and head.config.output.kind == kind and head.config.metrics
    assert head.config.provenance["licence_of_data"] == "not stated"
    assert "my_head" in (tmp_path / "my-head" / "README.md").read_text()
    if kind == "spot":
        assert Spotter(head.config.output) and head.config.metrics["false_alarms_per_hour"] != "unmeasured"


def test_bad_requests_are_refused(student: Path, make_sound, tmp_path: Path, capsys) -> None:
    data = write_data(tmp_path, make_sound, [("a", "s1", "", "train"), ("b", "s2", "", "test")])

    def refused(*words: object) -> str:
        assert main(["head", *(str(w) for w in words), "--student", str(student), "--output", str(tmp_path / "h")]) == 2
        return capsys.readouterr().err

    assert "0 different labels" in refused("classify", "--data", data)
    assert "other speech" in refused("spot", "--data", data)
    assert "--units 1 is below 2" in refused("units", "--data", data, "--units", 1)
    assert "there is no layer 9" in refused("units", "--data", data, "--layers", "1,9")
    assert "predicts a teacher's features" in refused("projection", "--data", data)


def test_other_speech_is_divided_by_speaker(make_sound, tmp_path: Path) -> None:
    data = write_data(tmp_path, make_sound, [(f"r{i}", f"s{i % 5}", "x", "train") for i in range(20)])
    train, test, _ = other_speech([data], seed=0)
    assert len(train) + len(test) == 20 and train and test
    assert not {u.speaker for u in train} & {u.speaker for u in test}


def test_evaluate_keeps_what_it_fits(student: Path, make_sound, tmp_path: Path, capsys) -> None:
    """The kept head is the probe: it is right exactly as often as the results say."""
    rows = [(f"r{i}", f"s{i}", "xy"[i % 2], "test" if i >= 12 else "train") for i in range(20)]
    data = write_data(tmp_path, make_sound, rows)
    words = [
        "evaluate",
        student,
        "--data",
        f"label={data}",
        "--keep",
        tmp_path / "kept",
        "--output",
        tmp_path / "r.json",
    ]
    assert main([str(word) for word in words]) == 0
    (folder,) = (tmp_path / "kept").iterdir()
    assert f"kept: {folder}" in capsys.readouterr().err
    head, results = load_head(folder), json.loads((tmp_path / "r.json").read_text())["probes"][0]
    assert results["pooled_parts"] == 1 and head.config.takes == "heads" and head.config.layers == (1, 2)
    frozen = open_student(student, layers="all", takes="heads")
    right = []
    for name, _, label, split in rows:
        if split == "test":
            samples, _ = soundfile.read(tmp_path / f"{name}.wav", dtype="float32")
            logits = head.module(frozen(samples)[None])[0].mean(0)
            right.append(head.config.output.labels[int(logits.argmax())] == label)
    assert results["results"][0]["value"] == head.config.metrics["value"] == np.mean(right)
    assert main([str(word) for word in words]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classify", "ctc"])
def test_fine_tuning_changes_the_last_layer_only(kind: str, student: Path, make_sound, tmp_path: Path, capsys) -> None:
    texts = ["x", "y"] if kind == "classify" else ["a", "b a"]
    rows = [(f"r{i}", f"s{i}", texts[i % 2], "test" if i >= 6 else "train") for i in range(9)]
    data = write_data(tmp_path, make_sound, rows)
    words = ["head", kind, "--student", student, "--data", data, "--output", tmp_path / "h", "--finetune-layers", 1]
    words += ["--finetuned", tmp_path / "tuned", "--finetune-epochs", 2]
    assert main([str(word) for word in words]) == 0
    assert "frozen" in capsys.readouterr().out
    before, after = (load_checkpoint(folder).state_dict() for folder in (student, tmp_path / "tuned"))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(name.startswith("encoder.layers.1.") for name in changed)
    head = load_head(tmp_path / "h")
    sha256 = file_sha256(tmp_path / "tuned" / "model.safetensors")
    head.check_fits(sha256=sha256, width=16, known=(1, 2), where="the tuned student")
    assert head.config.student_name == "tuned" and head.config.provenance["fine_tuned"]["layers"] == 1
    assert read_provenance(tmp_path / "tuned")["fine_tuned"]["from_sha256"] == file_sha256(
        student / "model.safetensors"
    )


def test_fine_tuning_learns() -> None:
    """Both sides of a batch pull: after some epochs the loss of what was heard is lower than before."""
    small = {"width": 16, "ffn_width": 24, "heads": 2, "layers": 2, "reuse_layers": (2,), "head_width": None}
    config = preset("tiny-stream", **small, conv_layers=conv_stack(6, 5, 16), position_groups=4, position_kernel=16)
    torch.manual_seed(0)
    model = Student(config).eval()
    head = TaskHead(HeadConfig(TaskOutput("h", "classify", 2, ("x", "y")), "0" * 64, (2,), 16))
    waves = [0.1 * np.random.default_rng(i).standard_normal(4000).astype(np.float32) for i in range(4)]

    def loss() -> float:
        with torch.no_grad():
            return sum(float(loss_of(model, head, wave, label)) for wave, label in zip(waves, "xyxy", strict=True))

    before = loss()
    learn(model, head, waves.__getitem__, "xyxy", range(4), Finetuning(1, epochs=60), lambda _: None)
    assert loss() < before - 0.05


def test_a_folded_head_gives_the_same_on_hidden_features(student: Path) -> None:
    model = load_checkpoint(student)
    wave = torch.from_numpy(0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32))[None]
    for inner in (None, 5):
        torch.manual_seed(1)
        head = TaskHead(HeadConfig(TaskOutput("v", "projection", 3), "0" * 64, (1, 2), 12, "heads", inner)).eval()
        folded = fold_projection(head, model)
        assert (folded.config.takes, folded.config.width) == ("hidden", 16)
        with torch.no_grad():
            output = model(wave)
            expected = head(torch.stack(output.projections, dim=1))
            assert torch.allclose(folded(torch.stack(output.layers, dim=1)), expected, atol=1e-5)
        with pytest.raises(RdError, match="takes hidden features"):
            fold_projection(folded, model)
