"""Preparing data, and lhotse Shar from a folder and from a server: the same batches, exact from any position."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.data.batches import BatchReader, Position
from reuse_distill.distill.data.plan import plan_shards
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.shar import ShardStore, is_shar, shard_names
from reuse_distill.distill.data.utterances import find_utterances, fingerprint
from reuse_distill.distill.recipe import DataSettings, load_recipe
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.runtime.errors import RdError

SETTINGS = DataSettings(batch_size=3, batch_seconds=3.0, buckets=2, mixed_shards=2, speeds=(0.9, 1.0, 1.1))


@pytest.fixture
def server(shards: Path) -> Iterator[tuple[str, list[str]]]:
    """The shards at an http address, and what was requested."""
    asked: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    handler = functools.partial(Quiet, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}", asked
        http_server.shutdown()


def test_librispeech_becomes_a_manifest(librispeech: Path, capsys) -> None:
    path = librispeech / "manifest.csv"
    assert main(["prepare", str(librispeech), "--output", str(path)]) == 0
    assert "6 utterances" in capsys.readouterr().err
    lines = path.read_text().splitlines()
    assert lines[0] == "file,speaker,text,split,seconds"
    assert lines[1] == "dev-clean/174/50/174-50-0000.flac,174,WORDS OF 174-50-0000,dev-clean,0.600"
    found = find_utterances(path).utterances
    assert {u.speaker for u in found} == {"84", "174"} and found[0].label == "WORDS OF 174-50-0000"
    path.unlink()


def test_a_plain_folder_becomes_a_manifest_and_mistakes_are_named(audio_folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["prepare", str(audio_folder), "--output", str(tmp_path / "m.csv")]) == 0
    assert len(find_utterances(tmp_path / "m.csv").utterances) == 8
    assert main(["prepare", str(audio_folder)]) == 2
    assert "hint: --output MANIFEST.csv, --shar FOLDER, or both" in capsys.readouterr().err
    assert main(["prepare", str(audio_folder), "--shar", str(audio_folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "absent"), "--output", str(tmp_path / "n.csv")]) == 2


def test_prepare_leaves_out_what_a_shard_cannot_hold(audio_folder: Path, tmp_path: Path, capsys) -> None:
    """DamagedFiles inside of a file shows only when it is decoded; nothing is written above the limit."""
    data = Path(shutil.copytree(audio_folder, tmp_path / "data"))
    soundfile.write(data / "broken.wav", [0.1] * 9_000 + [np.nan], 16_000, subtype="FLOAT")
    command = ["prepare", str(data), "--shar", str(tmp_path / "shar"), "--bad-limit"]
    assert main([*command, "0.1"]) == 2
    assert "1 of 9 files are damaged" in capsys.readouterr().err and not (tmp_path / "shar").exists()
    assert main([*command, "0.2"]) == 0
    assert "broken.wav: sample 9000 is nan" in capsys.readouterr().err
    assert len(find_utterances(tmp_path / "shar").utterances) == 8
    for limit in ("nan", "5", "-1"):
        assert main([*command, limit]) == 2
        assert f"error: --bad-limit {limit}" in capsys.readouterr().err


def test_prepare_refuses_what_its_output_would_misname(
    shards: Path, audio_folder: Path, tmp_path: Path, capsys
) -> None:
    lhotse = pytest.importorskip("lhotse")
    whole = lhotse.Recording.from_file(audio_folder / "5.wav").to_cut()
    lhotse.CutSet.from_cuts([whole.truncate(duration=0.5)]).to_file(tmp_path / "cuts.jsonl")
    for source in (shards, tmp_path / "cuts.jsonl"):
        assert main(["prepare", str(source), "--output", str(tmp_path / "m.csv")]) == 2
        assert "m.csv cannot hold pieces of recordings or of shards" in capsys.readouterr().err
    assert main(["prepare", str(shards), "--shar", str(tmp_path / "again")]) == 2
    assert "these are shards already" in capsys.readouterr().err
    assert main(["prepare", str(audio_folder), "--output", str(tmp_path)]) == 2
    assert "Is a directory; the one written before is untouched\n\nhint: name a place" in capsys.readouterr().err
    assert not (tmp_path / "m.csv").exists() and not (tmp_path / "again").exists()


def test_shards_hold_what_the_files_hold(librispeech: Path, shards: Path) -> None:
    assert is_shar(shards) and not is_shar(librispeech) and is_shar("s3://bucket/folder")
    assert len(shard_names(shards)) == 3
    found, files = find_utterances(shards).utterances, sorted(librispeech.rglob("*.flac"))
    assert [(u.speaker, u.label) for u in found] == [(f.name.split("-")[0], f"WORDS OF {f.stem}") for f in files]
    for utterance, file in zip(found, files, strict=True):
        assert np.array_equal(read_utterance(utterance), soundfile.read(file, dtype="float32")[0])
    assert fingerprint(find_utterances(shards))["hashed"] == "names and seconds"


def test_lhotse_reads_what_was_written(librispeech: Path, shards: Path) -> None:
    from lhotse import CutSet

    index = json.loads((shards / "shar_index.json").read_text())["fields"]
    fields = {name: [shards / file for file in files] for name, files in index.items()}
    cuts = list(CutSet.from_shar(fields=fields))
    assert [cut.supervisions[0].speaker for cut in cuts] == ["174"] * 3 + ["84"] * 3
    assert abs(cuts[0].load_audio()[0] - soundfile.read(sorted(librispeech.rglob("*.flac"))[0])[0]).max() < 1e-4


def test_a_plan_takes_few_shards_at_a_time() -> None:
    shards = [f"s{n // 10}" for n in range(70)]
    seconds = np.random.default_rng(0).uniform(1, 9, 70).tolist()
    how = {"batch_size": 4, "batch_seconds": 40.0, "buckets": 2, "seed": 3}
    plan = plan_shards(shards, seconds, mixed=2, **how, epoch=1)
    assert sorted(i for batch in plan for i in batch) == list(range(70))
    assert all(len({shards[i] for i in batch}) <= 2 for batch in plan)
    order = [shards[i] for batch in plan for i in batch]
    open_at_once = [len({s for s in order[:n] if s in order[n:]}) for n in range(1, 70)]
    assert max(open_at_once) <= 2
    assert any(len({shards[i] for i in batch}) == 2 for batch in plan)
    assert (
        plan
        == plan_shards(shards, seconds, mixed=2, **how, epoch=1)
        != plan_shards(shards, seconds, mixed=2, **how, epoch=2)
    )


def test_a_server_gives_the_batches_of_the_folder_from_any_position(
    shards: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server

    def read(source: str | Path, start: Position, count: int) -> list:
        reader = BatchReader(find_utterances(source).utterances, SETTINGS, seed=5)
        stream = reader.batches(start)
        found = list(islice(stream, count))
        stream.close()
        return found

    local, remote = read(shards, Position(), 9), read(address, Position(), 9)
    later = read(address, local[4].position, 3)
    for batches in (remote, [*local[:4], *later, *local[7:]]):
        for ours, theirs in zip(local, batches, strict=True):
            assert ours.position == theirs.position and torch.equal(ours.wave, theirs.wave)
    assert local[-1].position.epoch >= 1
    assert any(path.endswith("recording.000001.tar") for path in asked)


def test_few_shards_are_kept_and_none_has_a_name(server: tuple[str, list[str]], tmp_path: Path, monkeypatch) -> None:
    """So nothing is left in TMPDIR, however a process ends."""
    address, asked = server
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = ShardStore(keep=1)
    found = find_utterances(address).utterances
    asked.clear()
    for utterance in (found[0], found[1], found[2], found[0]):
        read_utterance(utterance, store)
    assert [path[-6:] for path in asked] == ["00.tar", "01.tar", "00.tar"]
    assert len(store._shards) == 1 and not list(tmp_path.iterdir())


def test_a_run_on_shards_resumes_exactly(
    shards: Path, tiny_teacher: Path, small_recipe: Path, tmp_path: Path, losses
) -> None:
    recipe = load_recipe(str(small_recipe), ["data.mixed_shards=2", "data.speeds=[0.9, 1.1]", "data.noise_snr_db=20.0"])
    for name, stops in (("whole", (None,)), ("halves", (3, None))):
        for number, stop in enumerate(stops):
            settings = RunSettings(
                tiny_teacher, str(shards), tmp_path / name, device="cpu", stop_after=stop, resume=number > 0
            )
            run(recipe, settings)
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    assert len(losses(tmp_path / "whole")) == 8


def test_damage_and_strange_indexes_are_named(shards: Path, server: tuple[str, list[str]], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    found = find_utterances(copy).utterances
    (copy / "recording.000000.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(RdError, match="not a readable shard"):  # the run stops: it is no matter of one file
        list(BatchReader(found, SETTINGS, seed=1).one_epoch(0))
    (copy / "cuts.000001.jsonl.gz").write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(RdError, match="not readable cuts of a shard"):
        find_utterances(copy)
    (copy / "recording.000002.tar").unlink()
    with pytest.raises(RdError, match=r"cuts\.000002\.jsonl\.gz has no recording\.000002\.tar"):
        find_utterances(copy)
    index, text = shards / "shar_index.json", (shards / "shar_index.json").read_text()
    try:
        for name in ("pipe:touch x", "../../secret"):
            index.write_text(json.dumps({"fields": {"cuts": [name], "recording": []}}))
            with pytest.raises(RdError, match="is not the name of a file beside it"):
                find_utterances(server[0])
    finally:
        index.write_text(text)
