"""Data: what is found, what is skipped, which batches, and that a batch is a function of its position."""

from __future__ import annotations

import dataclasses
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reuse_distill.distill.data.augment import Augmentation
from reuse_distill.distill.data.batches import BatchReader, Position, crop
from reuse_distill.distill.data.plan import plan_epoch
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import Utterance, find_utterances, fingerprint
from reuse_distill.distill.recipe import DataSettings
from reuse_distill.distill.training import launch
from reuse_distill.runtime.errors import RdError

SETTINGS = DataSettings(batch_size=3, batch_seconds=3.0, crop_seconds=0.8, buckets=2, bad_limit=0.5)


def test_folder_and_manifest_give_the_same_utterances(audio_folder: Path, tmp_path: Path) -> None:
    found = find_utterances(audio_folder)
    assert [u.path.name for u in found.utterances] == [f"{n}.wav" for n in range(8)]
    manifest = tmp_path / "m.csv"
    lines = [f"{audio_folder / f'{n}.wav'},{'train' if n < 5 else 'test'},s{n}" for n in range(8)]
    manifest.write_text("\n".join(["file,split,speaker", *lines]))
    assert len(find_utterances(manifest).utterances) == 8
    train = find_utterances(manifest, split="train")
    assert [u.speaker for u in train.utterances] == [f"s{n}" for n in range(5)]
    assert fingerprint(train)["sha256"] != fingerprint(found)["sha256"]


def test_damaged_and_short_files_are_listed_and_too_many_stop(audio_folder: Path, tmp_path: Path, make_sound) -> None:
    data = tmp_path / "data"
    shutil.copytree(audio_folder, data)
    (data / "text.wav").write_text("this is not audio at all, it is a line of text")
    soundfile.write(data / "short.wav", make_sound(0.02, 1), 16_000)
    scan = find_utterances(data, bad_limit=0.2)
    assert len(scan.utterances) == 8 and scan.bad == 1
    reasons = {s.path.name: s.reason for s in scan.skipped}
    assert "text" in reasons["text.wav"] and "320 samples" in reasons["short.wav"]
    with pytest.raises(RdError, match=r"1 of 10 files are damaged \(10\.0 %, the limit is 5 %\)"):
        find_utterances(data)


def test_nothing_found_and_wrong_manifests_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="no audio in"):
        find_utterances(tmp_path)
    with pytest.raises(RdError, match="there is no audio at"):
        find_utterances(tmp_path / "absent")
    (tmp_path / "short").mkdir()
    soundfile.write(tmp_path / "short/a.wav", [0.0] * 300, 16_000)
    with pytest.raises(RdError, match=r"1 files are skipped: .*a\.wav: 300 samples at 16 kHz, one frame needs 400"):
        find_utterances(tmp_path / "short")
    manifest = tmp_path / "m.csv"
    manifest.write_text("file;text\na.wav;x\n")
    with pytest.raises(RdError, match=r"has no column 'file'.*\n\nhint: columns are separated by commas"):
        find_utterances(manifest)
    manifest.write_text("text,file\nx,a.wav\ny\n")
    with pytest.raises(RdError, match="line 3 names no file"):
        find_utterances(manifest)
    manifest.write_text("file,split\na.wav,train\n")
    with pytest.raises(RdError, match="has no rows with 'dev' in the column 'split'"):
        find_utterances(manifest, split="dev")
    with pytest.raises(RdError, match=r"data\.split is 'dev', but .*short has no column 'split'"):
        find_utterances(tmp_path / "short", split="dev")
    manifest.write_text("file,split\n")
    with pytest.raises(RdError, match="has no rows"):
        find_utterances(manifest)
    manifest.write_text("files,text\na.wav,x\n")
    with pytest.raises(RdError, match=r"has no column 'file'.*\n\nhint: did you mean 'files'"):
        find_utterances(manifest)


def test_a_manifest_from_a_spreadsheet(audio_folder: Path, tmp_path: Path) -> None:
    """A byte order mark, other line ends."""
    text = "\ufefffile,speaker\r\n" + "".join(f"{path},ann\r\n" for path in sorted(audio_folder.glob("*.wav")))
    (tmp_path / "m.csv").write_bytes(text.encode())
    assert {u.speaker for u in find_utterances(tmp_path / "m.csv").utterances} == {"ann"}


def test_lhotse_cuts_are_pieces_of_recordings(audio_folder: Path, tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    recording = lhotse.Recording.from_file(audio_folder / "5.wav")
    whole = recording.to_cut()
    path = tmp_path / "cuts.jsonl.gz"
    lhotse.CutSet.from_cuts([whole, whole.truncate(offset=0.25, duration=0.5).with_id("part")]).to_file(path)
    scan = find_utterances(path)
    full, part = (read_utterance(u) for u in scan.utterances)
    assert len(part) == 8000 and np.array_equal(part, full[4000:12000])


def test_of_a_long_recording_only_the_cut_is_decoded(tmp_path: Path, make_sound) -> None:
    samples = make_sound(3.0, 1, 48_000)
    samples[-1] = np.nan  # outside the cut: whoever decodes all of it finds this
    soundfile.write(tmp_path / "long.wav", samples, 48_000, subtype="FLOAT")
    cut = Utterance(tmp_path / "long.wav", 0.5, start_s=1.0, whole=False)
    assert len(read_utterance(cut)) == 8000
    for start_s in (2.8, 4.0):
        with pytest.raises(RdError, match=rf"s from {start_s:.2f} s on, its cut is 0.50 s long|damaged|samples"):
            read_utterance(dataclasses.replace(cut, start_s=start_s))


def test_held_out_batches_are_read_ahead(audio_folder: Path, monkeypatch) -> None:
    reader = BatchReader(find_utterances(audio_folder).utterances, DataSettings(batch_size=1, workers=3), seed=0)
    plain = [(b.names, counted) for b, counted in reader.one_epoch(0)]
    assert [names[0] for names, _ in plain] == [str(reader.utterances[i[0]].path) for i in reader.plan(0)]
    asked, read = [], reader._read
    monkeypatch.setattr(reader, "_read", lambda *job: asked.append(job) or read(*job))
    epoch = reader.one_epoch(0)
    next(epoch)
    assert len(asked) > 1
    epoch.close()
    assert len(asked) < len(plain), "closed early, the rest is not read"


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    seconds=st.lists(st.floats(0.1, 30), min_size=1, max_size=60),
    size=st.integers(1, 9),
    limit=st.floats(1, 60),
    buckets=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_a_plan_has_every_utterance_once_within_the_limits(seconds, size, limit, buckets, seed) -> None:
    plan = plan_epoch(seconds, batch_size=size, batch_seconds=limit, buckets=buckets, seed=seed, epoch=1)
    assert sorted(i for batch in plan for i in batch) == list(range(len(seconds)))
    for batch in plan:
        assert len(batch) <= size
        assert len(batch) == 1 or max(seconds[i] for i in batch) * len(batch) <= limit
    again = plan_epoch(seconds, batch_size=size, batch_seconds=limit, buckets=buckets, seed=seed, epoch=1)
    assert plan == again


def test_buckets_save_padding_and_epochs_differ() -> None:
    seconds = np.random.default_rng(0).uniform(1, 20, 400).tolist()

    def padded(buckets: int) -> float:
        plan = plan_epoch(seconds, batch_size=8, batch_seconds=1e9, buckets=buckets, seed=0, epoch=0)
        return sum(max(seconds[i] for i in b) * len(b) for b in plan)

    assert padded(20) < 1.06 * sum(seconds) < 1.4 * sum(seconds) < padded(1)
    same = {"batch_size": 8, "batch_seconds": 1e9, "buckets": 4, "seed": 0}
    assert plan_epoch(seconds, **same, epoch=0) != plan_epoch(seconds, **same, epoch=1)


def reader(folder: Path, **changes) -> BatchReader:
    return BatchReader(find_utterances(folder).utterances, dataclasses.replace(SETTINGS, **changes), seed=7)


def test_batches_from_a_position_are_the_batches_of_the_whole_run(audio_folder: Path) -> None:
    whole = list(islice(reader(audio_folder).batches(Position()), 9))
    at = reader(audio_folder).after(whole[3].position, 1)
    later = list(islice(reader(audio_folder, workers=1).batches(at), 5))
    for expected, got in zip(whole[4:], later, strict=True):
        assert expected.position == got.position and expected.names == got.names
        assert torch.equal(expected.wave, got.wave) and torch.equal(expected.lengths, got.lengths)
    assert whole[-1].position.epoch >= 2, "the run went through several epochs"


def test_two_processes_share_the_batches_of_one(audio_folder: Path) -> None:
    one = list(islice(reader(audio_folder).batches(Position()), 6))
    two = [list(islice(reader(audio_folder).batches(Position(), rank=r, ranks=2), 3)) for r in (0, 1)]
    for number, batch in enumerate(one):
        assert torch.equal(batch.wave, two[number % 2][number // 2].wave)


def test_a_file_damaged_inside_is_left_out_and_listed(audio_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(audio_folder, data)
    broken, _ = soundfile.read(data / "2.wav", dtype="float32")
    broken[500] = np.nan
    soundfile.write(data / "2.wav", broken, 16_000, subtype="FLOAT")
    source = reader(data)
    names = [name for batch in islice(source.batches(Position()), 6) for name in batch.names]
    assert not any(name.endswith("2.wav") for name in names)
    assert "nan" in source.skipped[0].reason
    with pytest.raises(RdError, match="1 of 8 files are damaged"):
        list(islice(reader(data, bad_limit=0.05).batches(Position()), 6))


def test_what_processes_find_damaged_counts_once_and_in_all_of_them(audio_folder: Path, monkeypatch) -> None:
    found = find_utterances(audio_folder).utterances
    readers = [BatchReader(found, dataclasses.replace(SETTINGS, bad_limit=0.25), seed=7) for _ in range(2)]
    monkeypatch.setattr(
        launch, "gathered", lambda _, own: [[d.skipped.copy() for d in r.damaged_files] for r in readers]
    )
    for number, reader in ((0, readers[0]), (0, readers[1]), (5, readers[1])):
        reader.damaged.note(number, RdError("is noise"))
    assert [reader.damaged.unshared for reader in readers] == [1, 2]
    for reader in readers:
        launch.share(None, reader.damaged_files)
        assert reader.damaged.unshared == 0 and [s.path.name for s in reader.skipped] == ["0.wav", "5.wav"]
    for number, reader in ((1, readers[0]), (2, readers[1])):  # each knows of three, and bears two
        with pytest.raises(RdError, match="3 of 8 files are damaged"):
            reader.damaged.note(number, RdError("is noise"))
        with pytest.raises(RdError, match=r"[34] of 8 files are damaged"):
            launch.share(None, reader.damaged_files)


def test_processes_keep_step_where_nothing_of_a_batch_can_be_read(audio_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(audio_folder, tmp_path / "data"))
    how = DataSettings(batch_size=1, bad_limit=0.5)
    broken = BatchReader(find_utterances(data).utterances, how, seed=0).plan(0)[2][0]
    path = sorted(data.iterdir())[broken]
    soundfile.write(path, np.full(len(soundfile.read(path)[0]), np.nan), 16_000, subtype="FLOAT")

    def read(rank: int) -> list:
        reader = BatchReader(find_utterances(data).utterances, how, seed=0)
        return list(islice(reader.batches(Position(), rank=rank, ranks=2), 4))

    first, second = read(0), read(1)
    assert [b.position.batch for b in first] == [0, 2, 4, 6] and [b.position.batch for b in second] == [1, 3, 5, 7]
    assert first[1].names == second[1].names != [str(path)], "batch 3 stands in for batch 2"


def test_other_rates_and_channels_become_16_khz_mono(tmp_path: Path, make_sound) -> None:
    stereo = np.stack([make_sound(1.0, 1, 44_100)] * 2, axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 44_100)
    samples = read_utterance(Utterance(tmp_path / "a.wav", 1.0))
    assert samples.shape == (16_000,) and samples.dtype == np.float32


def test_crop_and_augment_are_drawn_from_their_generator() -> None:
    samples = np.arange(1000, dtype=np.float32)
    assert crop(samples, 0, np.random.default_rng(0))[0] is samples
    piece, _ = crop(samples, 100, np.random.default_rng(1))
    assert len(piece) == 100 and np.array_equal(np.diff(piece), np.ones(99))
    how = dataclasses.replace(SETTINGS, gain_db=6.0, noise_snr_db=10.0)
    a, b, other = (Augmentation(how, seed=1).hear(samples, epoch, 0)[0] for epoch in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, samples) and not np.array_equal(a, other)
    assert Augmentation(SETTINGS, seed=1).hear(samples, 0, 0)[0] is samples


def test_pinned_batches_are_the_same_in_page_locked_memory(audio_folder: Path, monkeypatch) -> None:
    locked = []

    def pin(wave: torch.Tensor) -> torch.Tensor:  # the real one needs CUDA
        locked.append(wave)
        return wave.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    plain, pinned = (reader(audio_folder).batches(Position(), pin=pin) for pin in (False, True))
    one, other = next(plain), next(pinned)
    assert torch.equal(one.wave, other.wave) and one.names == other.names
    assert any(torch.equal(wave, other.wave) for wave in locked)
    plain.close()
    pinned.close()
