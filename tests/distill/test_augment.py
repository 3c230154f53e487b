"""Noise and rooms: the ratio asked for, no delay, what the teacher hears, damaged recordings, and exact resume."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.data.augment import Augmentation, power_of, read_noise, reverberated
from reuse_distill.distill.data.batches import Batch, BatchReader, Position
from reuse_distill.distill.data.reading import read_first_channel, read_utterance
from reuse_distill.distill.data.shar import ShardStore
from reuse_distill.distill.data.utterances import Utterance, find_utterances
from reuse_distill.distill.recipe import DataSettings, TrainingRecipe, changed, load_recipe
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.distill.training.held_out import PLAIN
from reuse_distill.distill.training.objective import draw, on_device, teacher_targets
from reuse_distill.distill.training.run_folder import read_metrics
from reuse_distill.runtime.errors import RdError

SETTINGS = DataSettings(batch_size=3, batch_seconds=3.0, crop_seconds=0.8, buckets=2, bad_limit=0.5)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording longer than any utterance, and a short one at another rate."""
    folder, generator = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    soundfile.write(folder / "long.wav", 0.2 * generator.standard_normal(48_000).cumsum() / 99, 16_000)
    soundfile.write(folder / "short.wav", 0.05 * generator.standard_normal((9_000, 2)), 44_100)
    return folder


def response(direct: int, length: int, seed: int) -> np.ndarray:
    """Silence, a direct path of negative sign, and a tail that decays."""
    tail = np.random.default_rng(seed).standard_normal(length) * np.exp(-np.arange(length) / 900) * 0.1
    tail[:direct] = 0
    tail[direct] = -0.9
    return tail.astype(np.float32)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms")
    for number in range(2):
        soundfile.write(folder / f"{number}.wav", response(150 + 90 * number, 5_000, number), 16_000)
    return folder


def settings(**changes) -> DataSettings:
    return dataclasses.replace(SETTINGS, **changes)


def ratio_db(speech: np.ndarray, noise: np.ndarray) -> float:
    return 10 * np.log10(power_of(speech) / power_of(noise))


def test_the_ratio_measured_is_the_ratio_asked_for(noise: Path, make_sound) -> None:
    how = settings(noise=str(noise), noise_probability=1.0, teacher_hears="clean")
    exact = Augmentation(dataclasses.replace(how, noise_snr_range_db=(7.0, 7.0)), seed=1)
    drawn = Augmentation(dataclasses.replace(how, noise_snr_range_db=(-5.0, 10.0)), seed=1)
    measured = []
    for index in range(30):
        samples = make_sound(0.3 + 0.05 * index, index)
        heard, clean = exact.hear(samples, 0, index)
        assert ratio_db(clean, heard - clean) == pytest.approx(7.0, abs=1e-3)
        heard, clean = drawn.hear(samples, 0, index)
        assert clean is samples and heard.dtype == np.float32
        measured.append(ratio_db(clean, heard - clean))
    assert -5.01 < min(measured) < -1 and 6 < max(measured) < 10.01


def test_a_room_keeps_power_and_time(rooms: Path, make_sound) -> None:
    samples = make_sound(0.9, 4)
    only_delay = np.zeros(500, np.float32)
    only_delay[137] = -0.3
    np.testing.assert_allclose(reverberated(samples, only_delay), -samples, atol=1e-6)
    for number, path in enumerate(sorted(rooms.iterdir())):
        room = read_first_channel(Utterance(path, 5_000 / 16_000))
        heard = reverberated(samples, room)
        assert heard.shape == samples.shape and heard.dtype == np.float32
        assert power_of(heard) == pytest.approx(power_of(samples), rel=1e-5)
        expected = np.convolve(samples, room)[150 + 90 * number :][: len(samples)]
        assert np.corrcoef(heard, expected)[0, 1] > 0.99999
    assert not reverberated(np.zeros(800, np.float32), only_delay).any()


def test_of_several_microphones_the_first_is_taken(tmp_path: Path) -> None:
    pair = np.stack([response(200, 4_000, 1), -response(200, 4_000, 1)], axis=1)
    soundfile.write(tmp_path / "pair.wav", pair, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_first_channel(Utterance(tmp_path / "pair.wav", 0.25)), pair[:, 0])


def test_noise_is_repeated_where_it_is_short_and_looked_for_where_it_is_silent(tmp_path: Path) -> None:
    store, generator = ShardStore(), np.random.default_rng(1)
    ramp = np.linspace(0.1, 0.9, 1_600, dtype=np.float32)
    soundfile.write(tmp_path / "ramp.wav", ramp, 16_000, subtype="FLOAT")
    piece = read_noise(Utterance(tmp_path / "ramp.wav", 0.1), store, generator, count=4_000)
    assert len(piece) == 4_000 and np.array_equal(piece[:1_600], piece[1_600:3_200])
    assert np.array_equal(np.sort(piece[:1_600]), ramp)
    click = np.zeros(160_000, np.float32)
    click[90_000] = 0.5
    soundfile.write(tmp_path / "click.wav", click, 16_000, subtype="FLOAT")
    assert read_noise(Utterance(tmp_path / "click.wav", 10.0), store, generator, count=800)[0] == 0.5
    soundfile.write(tmp_path / "nothing.wav", np.zeros(16_000), 16_000)
    with pytest.raises(RdError, match="is silent"):
        read_noise(Utterance(tmp_path / "nothing.wav", 1.0), store, generator, count=800)


def batches(folder: Path, count: int = 9, **changes) -> list[Batch]:
    return list(
        islice(BatchReader(find_utterances(folder).utterances, settings(**changes), seed=7).batches(Position()), count)
    )


def test_a_clean_teacher_hears_the_same_gain_and_speed(audio_folder: Path, noise: Path, rooms: Path) -> None:
    common = {"gain_db": 6.0, "speeds": (0.9, 1.1)}
    own = {"noise": str(noise), "rooms": str(rooms), "noise_snr_db": 20.0}
    plain = batches(audio_folder, **common)
    for ours, clean in zip(batches(audio_folder, **common, **own, teacher_hears="clean"), plain, strict=True):
        assert clean.clean is None and clean.for_teacher is clean.wave
        assert torch.equal(ours.for_teacher, clean.wave) and torch.equal(ours.lengths, clean.lengths)
        assert not torch.equal(ours.wave, clean.wave)
    for ours, same in zip(batches(audio_folder, **common, **own), plain, strict=True):
        assert ours.for_teacher is ours.wave and not torch.equal(ours.wave, same.wave)


def test_shares_and_epochs(audio_folder: Path, noise: Path, rooms: Path) -> None:
    def changed_rows(**how) -> list[bool]:
        found = batches(audio_folder, 40, noise=str(noise), rooms=str(rooms), teacher_hears="clean", **how)
        return [bool((b.wave[i] != b.for_teacher[i]).any()) for b in found for i in range(len(b.names))]

    assert not any(changed_rows(noise_probability=0.0, rooms_probability=0.0))
    assert all(changed_rows(noise_probability=1.0, rooms_probability=0.0))
    assert all(changed_rows(noise_probability=0.0, rooms_probability=1.0))
    some = changed_rows(noise_probability=0.3, rooms_probability=0.0)
    assert 0.15 < np.mean(some) < 0.45
    always = Augmentation(settings(noise=str(noise), noise_probability=1.0), seed=0)
    samples = read_utterance(find_utterances(audio_folder).utterances[0])
    heard = [always.hear(samples, epoch, index)[0] for epoch, index in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert np.array_equal(heard[0], heard[3])
    assert not np.array_equal(heard[0], heard[1]) and not np.array_equal(heard[0], heard[2])


def damaged(folder: Path, noise: Path) -> Path:
    """The noise with a third recording that no scan finds fault with."""
    shutil.copytree(noise, folder)
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    return folder


def test_damaged_noise_is_left_out_the_same_way_and_listed(audio_folder: Path, noise: Path, tmp_path: Path) -> None:
    how = settings(noise=str(damaged(tmp_path / "noise", noise)), noise_probability=1.0)
    utterances = find_utterances(audio_folder).utterances
    whole, again = (BatchReader(utterances, how, seed=7) for _ in range(2))
    first = list(islice(whole.batches(Position()), 6))
    [skipped] = whole.augmentation.skipped
    assert skipped.path.name == "nan.wav" and "sample 0 is nan" in skipped.reason and skipped.bad
    later = next(again.batches(first[4].position))  # this reader has not met the damage yet
    assert torch.equal(later.wave, first[4].wave)
    with pytest.raises(RdError, match="1 of 3 files are damaged"):
        list(islice(BatchReader(utterances, dataclasses.replace(how, bad_limit=0.1), seed=7).batches(Position()), 6))
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    only = settings(noise=str(tmp_path / "silent.wav"), noise_probability=1.0, bad_limit=1.0)
    with pytest.raises(RdError, match=r"(?s)none of the 1 files can be read.*is silent"):
        next(BatchReader(utterances, only, seed=7).batches(Position()))


def test_mistakes_are_named(tmp_path: Path, small_recipe: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("noise", "rooms"):
        with pytest.raises(RdError, match=rf"data\.{name}: no audio in .*empty"):
            Augmentation(settings(**{name: str(tmp_path / "empty")}), seed=0)
        with pytest.raises(RdError, match=rf"(?s)data\.{name} is s3://speech/x.*copy them to a folder"):
            Augmentation(settings(**{name: "s3://speech/x"}), seed=0)
    for override, said in (
        ("data.teacher_hears=noisy", r"data\.teacher_hears is 'noisy'"),
        ("data.noise_probability=2", r"(?s)data\.noise_probability is 2.*within 0\.\.1"),
        ("data.rooms_probability=-1", r"data\.rooms_probability is -1"),
        ("data.noise_snr_range_db=[20, 5]", r"(?s)data\.noise_snr_range_db is \[20\.0, 5\.0\].*the smaller first"),
        ("data.noise_snr_range_db=[5]", "two numbers"),
        ("data.noise_snr_range_db=[5, .inf]", r"within -100\.\.100"),
        ("data.room=x", r"(?s)unknown key 'room'.*did you mean 'rooms'"),
    ):
        with pytest.raises(RdError, match=said):
            load_recipe(str(small_recipe), [override])


def test_validation_is_without_augmentation(noise: Path, rooms: Path, small_recipe: Path, make_sound) -> None:
    recipe = load_recipe(str(small_recipe), [f"data.noise={noise}", f"data.rooms={rooms}", "data.noise_snr_db=3.0"])
    samples = make_sound(0.5, 1)
    heard, taught = Augmentation(changed(recipe, data=PLAIN).data, seed=0).hear(samples, 0, 0)
    assert heard is samples and taught is samples
    assert Augmentation(recipe.data, seed=0).hear(samples, 0, 0)[0] is not samples


class Listener:
    """A teacher that only remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[torch.Tensor] = []

    def hidden_states(self, wave, lengths, mask=None) -> torch.Tensor:
        self.heard.append(wave)
        return wave

    def both(self, wave, lengths, mask) -> tuple[torch.Tensor, torch.Tensor]:
        self.heard.append(wave)
        return wave, wave

    def run(self, wave, lengths, *, maps):
        self.heard.append(wave)
        return type("Run", (), {"layers": wave})


@pytest.mark.parametrize("kind", ["masking", "hint", "star", "heads"])
def test_the_teacher_of_every_loss_hears_the_clean_input(
    audio_folder: Path, noise: Path, small_recipe: Path, kind: str
) -> None:
    recipe, teacher = load_recipe(str(small_recipe), [f"loss.kind={kind}"]), Listener()
    [batch] = batches(audio_folder, 1, noise=str(noise), noise_probability=1.0, teacher_hears="clean")
    moved, draws = on_device(batch, draw(recipe, batch, layers=2), torch.device("cpu"))
    teacher_targets(recipe, teacher, moved, draws)
    assert all(torch.equal(wave, batch.clean) for wave in teacher.heard) and teacher.heard


def test_a_run_in_noise_resumes_exactly_and_knows_its_noise(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, noise: Path, rooms: Path, tmp_path: Path
) -> None:
    bad = damaged(tmp_path / "noise", noise)
    how = [f"data.noise={bad}", f"data.rooms={rooms}", "data.teacher_hears=clean", "data.bad_limit=0.5"]
    recipe = load_recipe(str(small_recipe), [*how, "data.noise_probability=0.8"])
    plain = RunSettings(tiny_teacher, audio_folder, tmp_path / "whole", device="cpu")
    halves = dataclasses.replace(plain, output=tmp_path / "halves")
    run(recipe, plain)
    run(recipe, dataclasses.replace(halves, stop_after=3))
    run(recipe, dataclasses.replace(halves, resume=True))
    whole, resumed = ([row["loss"] for row in read_metrics(tmp_path / name)] for name in ("whole", "halves"))
    assert whole == resumed and len(whole) == 8
    record = json.loads((tmp_path / "whole/run.json").read_text())
    assert record["noise"]["utterances"] == 3 and record["rooms"]["utterances"] == 2
    rows = list(csv.DictReader((tmp_path / "whole/skipped.csv").open()))
    assert [(Path(row["file"]).name, row["kind"]) for row in rows] == [("nan.wav", "damaged")]


def test_noise_rooms_and_a_teacher_that_moved_are_the_same_and_others_are_refused(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, noise: Path, rooms: Path, tmp_path: Path, losses
) -> None:
    def recipe(place: Path) -> TrainingRecipe:
        how = [f"data.noise={place / 'noise'}", f"data.rooms={place / 'rooms'}", "data.noise_probability=0.8"]
        return load_recipe(str(small_recipe), [*how, "training.steps=4"])

    for name, source in (("noise", noise), ("rooms", rooms), ("teacher", tiny_teacher)):
        shutil.copytree(source, tmp_path / "here" / name)
    here, there = tmp_path / "here", tmp_path / "there"
    begun = RunSettings(here / "teacher", audio_folder, tmp_path / "run", device="cpu", stop_after=2)
    run(recipe(here), begun)
    here.rename(there)
    (there / "teacher").rename(there / "hubert")
    moved = dataclasses.replace(begun, teacher=there / "hubert", resume=True, stop_after=None)
    shutil.copy(there / "noise/short.wav", there / "noise/more.wav")
    with pytest.raises(RdError, match=r"noise\.utterances: 2 -> 3; recipe\.data\.noise: .*here/noise -> .*there/noise"):
        run(recipe(there), moved)
    (there / "noise/more.wav").unlink()
    samples, rate = soundfile.read(there / "rooms/0.wav")
    soundfile.write(there / "rooms/0.wav", -samples, rate)
    with pytest.raises(RdError, match=r"recipe\.data\.rooms: .*here/rooms -> .*there/rooms; rooms\.sha256: \w+ -> \w+"):
        run(recipe(there), moved)
    shutil.copy(rooms / "0.wav", there / "rooms/0.wav")
    run(recipe(there), moved)
    run(recipe(there), dataclasses.replace(begun, teacher=tiny_teacher, output=tmp_path / "whole", stop_after=None))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_real_noise_and_rooms(speech_dir: Path, tmp_path: Path, make_sound) -> None:
    """Measured on recordings: the ratio, the power, and where the sound is in time (cross-correlation)."""
    folder, samples = speech_dir / "noise_rir", make_sound(4.0, 2)
    for name, pattern in (("noise", "noise*.flac"), ("rooms", "rir*.flac")):
        (tmp_path / f"{name}.csv").write_text("\n".join(["file", *map(str, sorted(folder.glob(pattern)))]))
    how = settings(noise=str(tmp_path / "noise.csv"), noise_probability=1.0, teacher_hears="clean")
    noisy = Augmentation(dataclasses.replace(how, noise_snr_range_db=(3.0, 3.0)), seed=0)
    assert noisy.noise is not None and len(noisy.noise.scan.utterances) == 5
    for index in range(20):
        heard, clean = noisy.hear(samples, 0, index)
        assert ratio_db(clean, heard - clean) == pytest.approx(3.0, abs=1e-3)
    for room in find_utterances(tmp_path / "rooms.csv").utterances:
        heard = reverberated(samples, read_first_channel(room))
        assert power_of(heard) == pytest.approx(power_of(samples), rel=1e-4)
        spectra = [np.fft.rfft(x, 2 * len(samples)) for x in (heard, samples)]
        whitened = spectra[0] * spectra[1].conj() / np.abs(spectra[0] * spectra[1])
        lag = int(np.abs(np.fft.irfft(whitened)).argmax())
        assert min(lag, 2 * len(samples) - lag) <= 16, f"{room.path}: {lag} samples away"  # 1 ms of a frame's 20
