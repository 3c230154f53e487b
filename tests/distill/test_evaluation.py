"""Probes: that they find what is there, find nothing where there is nothing, and state their intervals honestly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.data.utterances import Utterance, find_utterances
from reuse_distill.distill.evaluation import splits
from reuse_distill.distill.evaluation.bootstrap import difference_interval, ratio_interval
from reuse_distill.distill.evaluation.evaluate import Probe, _split, probe_sources
from reuse_distill.distill.evaluation.features import Features, cka_matrix, linear_cka, of_log_mel, of_student, pooled
from reuse_distill.distill.evaluation.linear_probes import (
    ctc_probe,
    decode,
    encode,
    letters_of,
    linear_probe,
)
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.runtime.tasks.ctc_decode import edit_distance
from reuse_distill.student import Student, preset, save_checkpoint


def test_linear_probe_finds_the_informative_layer_and_only_information() -> None:
    random = torch.Generator().manual_seed(0)
    labels = ["a", "b", "c"] * 60
    features = torch.randn(180, 3, 8, generator=random)
    features[:, 1, :3] += 3 * torch.nn.functional.one_hot(torch.arange(180) % 3, 3)
    train, test = list(range(120)), list(range(120, 180))
    found = linear_probe(features, labels, train, test, seed=0)
    assert np.mean(found.right) > 0.9
    assert max(found.layer_weights) == found.layer_weights[1] and sum(found.layer_weights) == pytest.approx(1)
    shuffled = [labels[i] for i in torch.randperm(180, generator=random).tolist()]
    assert np.mean(linear_probe(features, shuffled, train, test, seed=0).right) < 0.6


def test_an_unseen_label_is_wrong_not_an_error() -> None:
    features = torch.randn(12, 1, 4, generator=torch.Generator().manual_seed(0))
    result = linear_probe(features, ["a", "b"] * 5 + ["new", "a"], list(range(10)), [10, 11], seed=0)
    assert result.right[0] == 0.0


def test_ctc_probe_spells_what_the_frames_say() -> None:
    """Frames that carry their letter in one channel: the probe must learn to read them for unseen words."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcde"), size=random.integers(3, 7))) for _ in range(80)]

    def frames(word: str) -> torch.Tensor:
        rows = torch.zeros(1, 4 * len(word), 6)
        for position, letter in enumerate(word):
            rows[0, 4 * position + 1 : 4 * position + 3, "abcde".index(letter)] = 1
        return rows + 0.05 * torch.from_numpy(random.standard_normal(rows.shape).astype(np.float32))

    result = ctc_probe([frames(w) for w in words], words, range(60), range(60, 80), seed=0)
    untrained_share = 1.0
    assert sum(result.edits) / sum(result.letters) < 0.3 < untrained_share


def test_letters_edits_and_decoding() -> None:
    assert letters_of("  It's: 3 o'clock — NOW!") == "it's o'clock now"
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3 and edit_distance("x", "x") == 0
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, 3, 3, 0, 3, 4, 4]), 29).float()
    assert decode(one_hot) == "aab" and encode("aab").tolist() == [3, 3, 4]


def test_intervals_cover_and_shrink() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(60):
        right = (random.random(100) < 0.7).astype(float)
        interval = ratio_interval(right.tolist(), [1.0] * 100, seed=trial)
        assert interval.low <= interval.value <= interval.high
        covered += interval.low <= 0.7 <= interval.high
    assert covered >= 51, "a 95 % interval that covers the truth so rarely is none"
    wide = ratio_interval([1.0, 0.0] * 20, [1.0] * 40)
    narrow = ratio_interval([1.0, 0.0] * 200, [1.0] * 400)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    same = difference_interval([1.0, 0.0] * 20, [1.0, 0.0] * 20, [1.0] * 40)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_groups_are_drawn_whole() -> None:
    """Ten speakers who are right or wrong as a whole: the interval must be that of ten items, not of a hundred."""
    right = [float(s % 2) for s in range(10) for _ in range(10)]
    speakers = [f"s{s}" for s in range(10) for _ in range(10)]
    by_item, by_group = (ratio_interval(right, [1.0] * 100, groups=g) for g in (None, speakers))
    assert by_group.high - by_group.low > 2 * (by_item.high - by_item.low)


def test_splits_share_no_speaker() -> None:
    items = [Utterance(Path(f"{s}{n}"), 1.0, speaker=s) for s in "abcdefgh" for n in range(3)]
    train, test = splits.by_speaker(items, seed=0)
    assert not {items[i].speaker for i in train} & {items[i].speaker for i in test}
    assert sorted(train + test) == list(range(24)) and len(test) == 6
    train, test = splits.by_utterance([u.speaker for u in items], seed=0)
    assert {items[i].speaker for i in train} == {items[i].speaker for i in test} and not set(train) & set(test)
    with pytest.raises(RdError, match="all audio is of speaker 'a'"):
        splits.by_speaker(items[:3], seed=0)
    mixed = [Utterance(Path("x"), 1.0, speaker="a", split=s) for s in ("train", "test")]
    with pytest.raises(RdError, match="1 speakers are in both train and test, for example 'a'"):
        splits.given(mixed)
    assert splits.given(mixed, disjoint=False) == ([0], [1]), "the probe of speakers hears both"


def test_the_manifests_split_is_the_one_used(make_sound, tmp_path: Path) -> None:
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", make_sound(0.2, 1), 16_000)
    rows = ["file,speaker,label,split", "a.wav,x,1,test", "b.wav,y,1,train", "c.wav,x,2,test"]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    assert splits.given(find_utterances(tmp_path / "m.csv").utterances) == ([1], [0, 2])


def test_features_lie_on_the_frames_of_the_students(make_sound) -> None:
    samples = make_sound(1.0, 1)
    mel = of_log_mel()(samples)
    assert mel.shape == (1, frames_for(16_000), 80) and mel.isfinite().all()
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    assert 20 <= int(of_log_mel()(tone).mean(1).argmax()) <= 32, "1 kHz lies in the 80 bands between 20 Hz and 8 kHz"
    student = Student(preset("tiny"))
    assert of_student("s", student)(samples).shape == (6, 49, 128)
    assert pooled(torch.ones(2, 1, 3)).shape == (2, 12)


@pytest.mark.parametrize("samples", [400, 30 * 16_000 + 79, 30 * 16_000 + 80, 30 * 16_000 + 400, 70 * 16_000])
def test_long_recordings_are_heard_in_pieces_of_the_same_frames(samples: int) -> None:
    wave = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    heard: list[int] = []
    mel = of_log_mel()
    listening = Features("mel", 0, lambda piece: heard.append(len(piece)) or mel.extract(piece))
    assert torch.allclose(listening(wave), mel.extract(torch.from_numpy(wave)), atol=1e-3)
    assert max(heard) < 30 * 16_000 + 400 and max(heard) - min(heard) <= 320
    assert sum(map(frames_for, heard)) == frames_for(samples)


def test_speakers_of_a_split_that_shares_none_are_drawn_anew() -> None:
    rows = [Utterance(Path("x"), 1.0, speaker=s, split="test" if s in "ab" else "train") for s in "abcd" * 4]
    _, test, how = _split(Probe("speaker", Path("m.csv")), rows, [u.speaker for u in rows], seed=0)
    assert {rows[i].speaker for i in test} == set("abcd") and "the manifest's shares no speakers" in how
    shared = [dataclasses.replace(u, split="test" if n < 4 else "train") for n, u in enumerate(rows)]
    _, test, how = _split(Probe("speaker", Path("m.csv")), shared, [u.speaker for u in rows], seed=0)
    assert test == [0, 1, 2, 3] and how.startswith("the manifest's")


def test_features_are_computed_where_they_are_asked_for() -> None:
    """torch's device without memory stands for a GPU: layers and samples have to be there both."""
    away = torch.device("meta")
    found = of_student("s", Student(preset("tiny")), device=away)
    samples = torch.zeros(1600).to(found.device)
    assert found.device == away and found.extract(samples).device == away
    heard = Features("where", 0, lambda samples: torch.full((1, 1, 1), float(samples.is_meta)), away)
    assert heard(np.zeros(1600, np.float32)).item() == 1.0


def test_evaluate_command_prints_every_source_with_intervals(
    tiny_teacher: Path, small_recipe: Path, tmp_path: Path, make_sound, capsys
) -> None:
    from reuse_distill.distill.recipe import load_recipe

    save_checkpoint(tmp_path / "student", Student(load_recipe(str(small_recipe)).student.config()))
    rows = ["file,speaker,text_or_label,split"]
    for number in range(48):
        speaker, high = number % 4, number // 4 % 2 == 0
        noise = np.random.default_rng(number).standard_normal(4800).astype(np.float32)
        samples = make_sound(0.3, 0) + 0.01 * noise
        if high:
            samples = samples + 0.1 * np.sin(np.arange(len(samples)) * 1.5).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000)
        rows.append(f"{number}.wav,s{speaker},{'high' if high else 'low'},{'test' if speaker >= 2 else 'train'}")
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(rows))
    arguments = [str(tmp_path / "student"), "--data", f"label={manifest}", "--teacher", str(tiny_teacher)]
    pictures = ["--pictures", str(tmp_path / "pictures")]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "r.json"), *pictures]) == 0
    for name in ("attention.svg", "cka.svg"):
        assert (tmp_path / "pictures" / name).read_text().count("<image") >= 1, name
    printed = capsys.readouterr().out
    assert "not SUPERB" in printed and "speaker-disjoint" in printed
    results = json.loads((tmp_path / "r.json").read_text())["probes"][0]["results"]
    assert [row["source"] for row in results] == ["student", "log-mel", "untrained", "teacher"]
    assert results[1]["value"] > 0.9, "log-mel must hear a tone at 3.8 kHz"
    assert all(row["low"] <= row["value"] <= row["high"] for row in results)
    assert main(["evaluate", *arguments, "--data", f"labels={manifest}"]) == 2
    assert "did you mean 'label'" in capsys.readouterr().err


def test_what_an_evaluation_cannot_do_is_said_before_it_starts(make_sound, tmp_path: Path, capsys) -> None:
    save_checkpoint(tmp_path / "student", Student(preset("tiny")))
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", make_sound(0.2, 1), 16_000)
    manifest = tmp_path / "m.csv"
    manifest.write_text("file,label\na.wav,x\nb.wav,y\n")
    command = ["evaluate", str(tmp_path / "student"), "--data", f"label={manifest}"]
    assert main([*command, "--output", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main([*command, "--data", "label="]) == 2
    assert "'label=' names no probe" in capsys.readouterr().err
    assert main([*command, "--output", str(manifest / "r.json")]) == 2
    assert "nothing can be written in" in capsys.readouterr().err
    assert main(command) == 2
    assert "are to train on and" in capsys.readouterr().err
    with pytest.raises(RdError, match="none of 1 transcripts to train on fits its audio"):
        ctc_probe([torch.zeros(1, 3, 4)] * 2, ["far too long", "a"], [0], [1], seed=0)


def test_audio_damaged_inside_is_left_out_of_every_source(make_sound, tmp_path: Path) -> None:
    rows = ["file,label,split"]
    for number in range(24):
        samples = make_sound(0.2, number)
        if number == 5:
            samples[2000] = np.nan
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000, subtype="FLOAT")
        rows.append(f"{number}.wav,{'xy'[number % 2]},{'test' if number % 4 > 1 else 'train'}")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    said: list[str] = []
    found = probe_sources(Probe("label", tmp_path / "m.csv"), [of_log_mel()], report=said.append)
    assert (found.facts["train"], found.facts["test"], found.facts["fingerprint"]["skipped"]) == (11, 12, 1)
    assert "5.wav: sample 2000 is nan" in said[0]


def test_cka_knows_rotation_and_scale_and_finds_the_layer() -> None:
    random = torch.Generator().manual_seed(0)
    x, other = torch.randn(400, 8, generator=random), torch.randn(400, 5, generator=random)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=random)).Q
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1, abs=1e-6)
    assert linear_cka(x, other) < 0.1
    layers = torch.stack([x, x.flip(0)])
    matrix = cka_matrix([layers[:, :200], layers[:, 200:]], [layers[:, :200], layers[:, 200:]])
    assert [[v > 0.9 for v in row] for row in matrix] == [[True, False], [False, True]]
