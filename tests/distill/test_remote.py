"""Data at an address: an S3 server that speaks the protocol (moto), its refusals, and servers that go away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from distill.cli import main
from distill.data import remote
from distill.data.batches import BatchReader, Position
from distill.data.remote import fetch
from distill.data.shar import INDEX
from distill.data.utterances import find_utterances
from distill.recipe import DataSettings, load_recipe
from distill.training import RunSettings, run
from distill.training.state import load_state, read_metrics
from runtime.errors import RdError


def losses(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "wall_s"} for row in read_metrics(folder)]


@pytest.fixture(scope="module")
def shards(audio_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lhotse")
    folder = tmp_path_factory.mktemp("prepared") / "shar"
    assert main(["prepare", str(audio_folder), "--shar", str(folder), "--shard-size", "2"]) == 0
    return folder


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Address of an S3 server on this host with the bucket ``speech``."""
    reason = "needs pip install 'moto[s3]' flask flask-cors 'smart_open[s3]'"
    for module in ("flask_cors", "moto.server", "smart_open.s3"):
        pytest.importorskip(module, reason=reason)
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    names = ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(names, (address, "key", "secret", "us-east-1"), strict=True):
            patch.setenv(f"AWS_{name}", value)
        patch.setattr(remote, "ATTEMPTS", 2)
        boto3.session.Session().client("s3").create_bucket(Bucket="speech")
        yield address
    server.stop()


@pytest.fixture(scope="module")
def google_store() -> Iterator[str]:
    """The bucket ``speech`` on a server on this host that speaks Google's protocol."""
    for module in ("gcp_storage_emulator", "smart_open.gcs"):
        pytest.importorskip(module, reason="needs pip install gcp-storage-emulator 'smart_open[gcs]'")
    from gcp_storage_emulator.server import create_server

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="speech")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield "gs://speech"
    server.stop()


def filled(store: str, audio: Path) -> str:
    """The utterances of ``shards`` at an address, written there by ``prepare``."""
    assert main(["prepare", str(audio), "--shar", f"{store}/set", "--shard-size", "2"]) == 0
    return f"{store}/set"


@pytest.fixture(scope="module")
def bucket(store: str, audio_folder: Path) -> str:
    return filled("s3://speech", audio_folder)


@pytest.fixture(scope="module")
def google_bucket(google_store: str, audio_folder: Path) -> str:
    return filled(google_store, audio_folder)


@pytest.fixture(params=["bucket", "google_bucket"])
def address(request: pytest.FixtureRequest) -> str:
    """The same shards in one kind of store and the other."""
    return request.getfixturevalue(request.param)


def test_a_run_on_a_bucket_has_the_losses_of_the_folder_and_resumes(
    address: str, shards: Path, tiny_teacher: Path, small_recipe: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(str(small_recipe), ["data.mixed_shards=1"])  # two shards on this disk at a time, of four
    for name, data, stops in (("folder", str(shards), (None,)), ("bucket", address, (3, None))):
        for number, stop in enumerate(stops):
            settings = RunSettings(
                tiny_teacher, data, tmp_path / name, device="cpu", stop_after=stop, resume=number > 0
            )
            run(recipe, settings)
    assert losses(tmp_path / "bucket") == losses(tmp_path / "folder")
    assert len(losses(tmp_path / "bucket")) == 8


def test_prepare_writes_what_it_would_write_to_a_folder(address: str, shards: Path, tmp_path: Path, capsys) -> None:
    for path in shards.iterdir():
        fetch(f"{address}/{path.name}", tmp_path / path.name)
        if path.name == INDEX or path.suffix == ".tar":
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    ours, theirs = (find_utterances(folder).utterances for folder in (tmp_path, shards))
    assert [(u.path, u.seconds) for u in ours] == [(u.path, u.seconds) for u in theirs]
    assert main(["prepare", str(shards), "--shar", address]) == 2
    assert f"{address} already holds shards" in capsys.readouterr().err
    assert main(["prepare", str(shards), "--shar", "https://example.org/set"]) == 2
    assert "http is only read" in capsys.readouterr().err


@contextmanager
def keys_checked(store: str) -> Iterator[None]:
    """The server refuses keys that it does not know, which are all."""

    def unchecked(calls: int) -> None:
        address, plain = f"{store}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        request = urllib.request.Request(address, data=str(calls).encode(), headers=plain, method="POST")
        urllib.request.urlopen(request).close()

    unchecked(0)
    try:
        yield
    finally:
        unchecked(10**9)


def test_what_a_store_refuses_is_named_with_its_remedy(bucket: str, store: str, monkeypatch) -> None:
    for address, said in (
        (
            "s3://speech/none",
            r"(?s)s3://speech/none/shar_index\.json cannot be read: .*NoSuchKey.*hint: look at the address",
        ),
        ("s3://absent/set", r"(?s)NoSuchBucket.*hint: look at the address"),
        ("s3://k:secret@speech/set", r"an address has no credentials in it"),
    ):
        with pytest.raises(RdError, match=said) as caught:
            find_utterances(address)
        assert "secret" not in str(caught.value)
    with keys_checked(store), pytest.raises(RdError, match=r"(?s)InvalidAccessKeyId.*hint: look at the credentials"):
        find_utterances(bucket)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(RdError, match=r"(?s)Unable to locate credentials.*hint: look at the credentials"):
        find_utterances(bucket)


def test_a_server_that_goes_away_ends_the_reading_once(bucket: str, monkeypatch) -> None:
    """Not once per thread: the first failure is everybody's."""
    how = DataSettings(batch_size=2, batch_seconds=9.0, buckets=1, mixed_shards=1, workers=4)
    reader = BatchReader(find_utterances(bucket).utterances, how, seed=1)
    batches = reader.batches(Position())
    next(batches)
    tries = []
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("distill.data.shar.fetch", lambda *where: (tries.append(where), fetch(*where)))
    with pytest.raises(RdError, match=r"(?s)Could not connect.*hint: look at the network.*--resume"):
        list(islice(batches, 9))
    batches.close()
    assert len(tries) == 1


@pytest.fixture
def cut_short() -> Iterator[str]:
    """host:port of a server that promises 1000 bytes, sends 100, and is gone."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listening:
            connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: "x"\r\n\r\n' + bytes(100))

    thread = threading.Thread(target=answer)
    thread.start()
    yield "{}:{}".format(*listening.getsockname())
    thread.join()


def test_a_file_that_is_cut_short_is_not_taken_for_whole(cut_short: str, tmp_path: Path) -> None:
    address = f"http://{cut_short}/recording.000000.tar"
    with pytest.raises(RdError, match=r"(?s)tar cannot be fetched: 100 of 1000 bytes came.*hint: look at the network"):
        fetch(address, tmp_path / "part.tar")


def test_a_store_that_breaks_off_is_given_up(store: str, cut_short: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{cut_short}")
    with pytest.raises(RdError, match=r"(?s)tar cannot be fetched: Could not connect.*hint: look at the network"):
        fetch("s3://speech/set/recording.000000.tar", tmp_path / "part.tar")


def test_a_package_that_is_missing_is_named(monkeypatch) -> None:
    for module in ("smart_open", "boto3"):
        monkeypatch.setitem(sys.modules, module, None)
    for address, package in (
        ("s3://speech/set", r"reuse-distill\[objects\]"),
        ("gs://speech/set", r"smart_open\[gcs\]"),
    ):
        with pytest.raises(RdError, match=rf"(?s)is not installed.*hint: pip install '{package}'"):
            find_utterances(address)


@pytest.mark.slow
def test_a_killed_run_on_a_bucket_resumes_exactly(
    address: str, shards: Path, tiny_teacher: Path, small_recipe: Path, tmp_path: Path
) -> None:
    how = ["--steps", "150", "--device", "cpu", "training.checkpoint_every=7", "data.mixed_shards=1"]

    def command(data: str, output: Path) -> list[str]:
        return ["run", str(small_recipe), "--teacher", str(tiny_teacher), "--data", data, "--output", str(output), *how]

    killed = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-m", "distill.cli", *command(address, killed)], env=environment)
    deadline = time.monotonic() + 120
    while not (killed / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert 0 < load_state(killed)["step"] < 150
    assert main([*command(address, killed), "--resume"]) == 0
    assert main(command(str(shards), tmp_path / "whole")) == 0
    assert losses(killed) == losses(tmp_path / "whole")
