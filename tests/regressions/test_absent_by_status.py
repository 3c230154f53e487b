"""Whether a remote file is absent: what the store answered counts, not a 404 in a name, a port or a message."""

from __future__ import annotations

import urllib.error

import pytest
from reuse_distill.distill.data import remote
from reuse_distill.distill.data.remote import ShardError, exists


def answering(error: Exception):
    def read(location: str) -> bytes:
        raise error

    return read


@pytest.mark.parametrize("code", [401, 403])
def test_a_refusal_at_an_address_with_404_in_it_is_no_absence(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    address = "http://127.0.0.1:4040/404/shar_index.json"
    refusal = urllib.error.HTTPError(address, code, "refused, request 404", {}, None)  # type: ignore[arg-type]
    monkeypatch.setattr(remote, "_read", answering(refusal))
    with pytest.raises(ShardError, match=str(code)):
        exists(address)


def test_a_store_that_breaks_off_is_no_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_read", answering(OSError("s3://bucket/404/x: connection reset on port 40404")))
    with pytest.raises(ShardError, match="connection reset"):
        exists("s3://bucket/404/x")


def test_an_absent_file_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://127.0.0.1:8000/shar_index.json"
    absent = urllib.error.HTTPError(address, 404, "Not Found", {}, None)  # type: ignore[arg-type]
    monkeypatch.setattr(remote, "_read", answering(absent))
    assert not exists(address)
    monkeypatch.setattr(remote, "_read", answering(OSError("An error occurred (NoSuchKey) when calling GetObject")))
    assert not exists("s3://bucket/shar_index.json")
