"""Data at an address: an S3 server that speaks the protocol (moto), its refusals, and servers that go away."""

from __future__ import annotations

import contextlib
import http.server
import io
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

import pytest
from reuse_distill.distill.cli import main
from reuse_distill.distill.data import remote
from reuse_distill.distill.data.batches import BatchReader, Position
from reuse_distill.distill.data.remote import fetch, read_bytes
from reuse_distill.distill.data.shar import INDEX
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.recipe import DataSettings, load_recipe
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.distill.training.run_folder import load_state
from reuse_distill.runtime.errors import RdError


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
def bucket(store: str, librispeech: Path) -> str:
    return filled("s3://speech", librispeech)


@pytest.fixture(scope="module")
def google_bucket(google_store: str, librispeech: Path) -> str:
    return filled(google_store, librispeech)


@pytest.fixture(params=["bucket", "google_bucket"])
def address(request: pytest.FixtureRequest) -> str:
    """The same shards in one kind of store and the other."""
    return request.getfixturevalue(request.param)


def test_a_run_on_a_bucket_has_the_losses_of_the_folder_and_resumes(
    address: str, shards: Path, tiny_teacher: Path, small_recipe: Path, tmp_path: Path, losses
) -> None:
    recipe = load_recipe(str(small_recipe), ["data.mixed_shards=1"])  # two shards on this disk at a time, of three
    for name, data, stops in (("folder", str(shards), (None,)), ("bucket", address, (3, None))):
        for number, stop in enumerate(stops):
            settings = RunSettings(
                tiny_teacher, data, tmp_path / name, device="cpu", stop_after=stop, resume=number > 0
            )
            run(recipe, settings)
    assert losses(tmp_path / "bucket") == losses(tmp_path / "folder")
    assert len(losses(tmp_path / "bucket")) == 8


def test_prepare_writes_what_it_would_write_to_a_folder(
    address: str, librispeech: Path, shards: Path, tmp_path: Path, capsys
) -> None:
    for path in shards.iterdir():
        with (tmp_path / path.name).open("wb") as file:
            fetch(f"{address}/{path.name}", file)
        if path.name == INDEX or path.suffix == ".tar":
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    ours, theirs = (find_utterances(folder).utterances for folder in (tmp_path, shards))
    assert [(u.path, u.seconds) for u in ours] == [(u.path, u.seconds) for u in theirs]
    assert main(["prepare", str(librispeech), "--shar", address]) == 2
    assert f"{address} already holds shards" in capsys.readouterr().err
    assert main(["prepare", str(librispeech), "--shar", "https://example.org/set"]) == 2
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


@pytest.fixture
def nobody() -> Iterator[str]:
    """host:port that is taken, and where nobody answers; 401 in the port is no answer either."""
    with socket.socket() as taken:
        for port in range(40100, 40200):
            with contextlib.suppress(OSError):
                taken.bind(("127.0.0.1", port))
                break
        yield "{}:{}".format(*taken.getsockname())


def test_a_server_that_goes_away_ends_the_reading_once(bucket: str, nobody: str, monkeypatch) -> None:
    """Not once per thread: the first failure is everybody's."""
    failed = []

    def fetching(shard: str, target: IO[bytes]) -> None:
        try:
            fetch(shard, target)
        except RdError:
            failed.append(shard)
            raise

    monkeypatch.setattr("reuse_distill.distill.data.shar.fetch", fetching)
    how = DataSettings(batch_size=2, batch_seconds=9.0, buckets=1, mixed_shards=1, workers=4)
    reader = BatchReader(find_utterances(bucket).utterances, how, seed=1)
    batches = reader.batches(Position())
    next(batches)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{nobody}")
    with pytest.raises(RdError, match=r"(?s)Could not connect.*hint: look at the network.*--resume"):
        list(islice(batches, 9))
    batches.close()
    assert len(failed) == 1


@dataclass
class Answers:
    """What a web server answers, in order: a status, or how many of 1000 promised bytes come. Then all of them."""

    address: str = ""
    planned: list[int] = field(default_factory=list)
    given: int = 0


@pytest.fixture
def web(monkeypatch) -> Iterator[Answers]:
    """A server with one file, and nothing waited for between attempts."""
    answers = Answers()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.given += 1
            answer = answers.planned.pop(0) if answers.planned else 1000
            if 400 <= answer < 600:
                self.send_error(answer)
                return
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.send_header("ETag", '"x"')
            self.end_headers()
            self.wfile.write(b"x" * answer)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(remote, "WAIT_S", 0.0)
    monkeypatch.setattr(remote, "ATTEMPTS", 3)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        answers.address = f"http://127.0.0.1:{server.server_port}/recording.000000.tar"
        yield answers
        server.shutdown()


def test_a_web_server_that_fails_twice_is_asked_three_times(web: Answers, nobody: str) -> None:
    target = io.BytesIO()
    for planned in ([503, 100], [100, 500], [429, 0]):
        web.planned[:], web.given = planned, 0
        fetch(web.address, target)
        assert target.getvalue() == b"x" * 1000 and web.given == 3
        web.planned[:], web.given = planned, 0
        assert read_bytes(web.address) == b"x" * 1000 and web.given == 3
    web.planned[:] = [503] * 9
    said = r"(?s)recording\.000000\.tar cannot be fetched: HTTP Error 503.*\(3 attempts\)\n\nhint: look at the network"
    with pytest.raises(RdError, match=said):
        fetch(web.address, target)
    web.planned[:] = [100] * 9
    with pytest.raises(RdError, match=r"(?s)tar cannot be fetched: 100 of 1000 bytes came.*\(3 attempts\)"):
        fetch(web.address, target)
    with pytest.raises(RdError, match=rf"http://{nobody}/a cannot be read: .*refused.*\(3 attempts\)"):
        read_bytes(f"http://{nobody}/a")


@pytest.mark.parametrize(
    ("status", "hint"), [(404, "look at the address"), (403, "http is read without credentials"), (501, "look at the")]
)
def test_what_a_web_server_refuses_is_not_asked_for_again(web: Answers, status: int, hint: str) -> None:
    web.planned[:] = [status] * 9
    with pytest.raises(RdError, match=rf"(?s)cannot be read: HTTP Error {status}: [^(]*hint: {hint}"):
        read_bytes(web.address)
    assert web.given == 1


def test_a_store_that_breaks_off_is_given_up(store: str, web: Answers, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.address)
    web.planned[:] = [100, *[404] * 9]
    with pytest.raises(RdError, match=r"(?s)tar cannot be fetched: .*404.*hint: look at the address"):
        fetch("s3://speech/set/recording.000000.tar", io.BytesIO())
    assert web.given < 10


def test_a_package_that_is_missing_is_named(monkeypatch) -> None:
    for module in ("smart_open", "boto3"):
        monkeypatch.setitem(sys.modules, module, None)
    for address, package in (
        ("s3://speech/set", r"\"\.\[objects\]\" in the checkout"),
        ("gs://speech/set", r"'smart_open\[gcs\]'"),
    ):
        with pytest.raises(RdError, match=rf"(?s)is not installed.*hint: pip install {package}"):
            find_utterances(address)


@pytest.mark.slow
def test_a_killed_run_on_a_bucket_resumes_exactly(
    address: str, shards: Path, tiny_teacher: Path, small_recipe: Path, tmp_path: Path, losses, kill_a_run
) -> None:
    how = ["--steps", "150", "--device", "cpu", "training.checkpoint_every=7", "data.mixed_shards=1"]

    def command(data: str, output: Path) -> list[str]:
        return ["run", str(small_recipe), "--teacher", str(tiny_teacher), "--data", data, "--output", str(output), *how]

    killed = tmp_path / "killed"
    kill_a_run(command(address, killed), killed)
    assert 0 < load_state(killed)["step"] <= 40
    assert main([*command(address, killed), "--resume"]) == 0
    assert main(command(str(shards), tmp_path / "whole")) == 0
    assert losses(killed) == losses(tmp_path / "whole")
