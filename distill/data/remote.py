"""Files at an address, as the bytes they are: http(s), and object stores (s3://, gs://, …) through smart_open."""

from __future__ import annotations

import errno
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from runtime.errors import RdError

WEB = ("http://", "https://")
_PACKAGES = {"s3": "reuse-distill[objects]", "gs": "smart_open[gcs]", "azure": "smart_open[azure]"}
_CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_SERVERS = {"s3": " (AWS_ENDPOINT_URL, where it is not Amazon's)"}
# A server that is gone is given up within minutes: a run that stops can be resumed, one that hangs is found late.
CONNECT_S, READ_S, ATTEMPTS = 10, 60, 4
_ABSENT = ("NoSuchBucket", "NoSuchKey", "404", "Not Found")
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "Forbidden", "redentials")


class ShardError(RdError):
    """A shard that cannot be had: the run stops, where damaged audio would only be skipped."""


def is_remote(source: object) -> bool:
    """Whether ``source`` is an address such as https://… or s3://…"""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(source)) is not None


def read_bytes(location: str) -> bytes:
    """All bytes of the file at an address. Raises ShardError where they cannot be had."""
    with _named(location, "read"), _open(location, "rb") as stream:
        return stream.read()


def fetch(location: str, path: Path) -> None:
    """The file at an address, copied to ``path``. Raises ShardError where it does not arrive whole."""
    with _named(location, "fetched"), _open(location, "rb") as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        promised = source.headers.get("Content-Length") if location.startswith(WEB) else None  # type: ignore[attr-defined]
        if promised is not None and target.tell() != int(promised):  # stores check this themselves
            raise OSError(f"{target.tell()} of {promised} bytes came, then the server closed the connection")


def upload(path: Path, location: str) -> None:
    """``path``, copied to an object store. Raises ShardError where that fails."""
    with _named(location, "written"), path.open("rb") as source, _open(location, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def exists(location: str) -> bool:
    """Whether there is a (small) file at the address. Raises ShardError where the store does not say."""
    try:
        read_bytes(location)
    except ShardError as error:
        if "NoSuchKey" in error.message or "404" in error.message:
            return False
        raise
    return True


def _open(location: str, mode: str) -> IO[bytes]:
    if location.startswith(WEB):
        return urllib.request.urlopen(location, timeout=READ_S)  # noqa: S310  (http or https, as just checked)
    import smart_open

    # Without compression="disable" a .gz would come unpacked from a store, and as it is from a folder.
    return smart_open.open(location, mode, compression="disable", transport_params=_transport(location))


def _transport(location: str) -> dict[str, Any]:
    if not location.startswith("s3://"):
        return {}
    return {"client": _client(frozenset(item for item in os.environ.items() if item[0].startswith("AWS_")))}


@lru_cache(maxsize=1)
def _client(_environment: frozenset[tuple[str, str]]) -> Any:
    """Amazon's client, shared by threads; another one where what it is made from has changed."""
    import boto3
    from botocore.config import Config

    how = Config(connect_timeout=CONNECT_S, read_timeout=READ_S, retries={"total_max_attempts": ATTEMPTS})
    return boto3.session.Session().client("s3", config=how)  # boto3's default session is not safe in threads


@contextmanager
def _named(location: str, done: str) -> Iterator[None]:
    """Whatever a store raises, as a ShardError that names the address and what to do."""
    if "@" in location.partition("://")[2].partition("/")[0]:
        raise ShardError(
            "an address has no credentials in it", hint="give them by the environment, such as AWS_PROFILE"
        )
    try:
        yield
    except ImportError as error:
        package = _PACKAGES.get(_scheme(location), "smart_open[all]")
        missing = error.name or "what smart_open needs for it"
        raise ShardError(f"{location}: {missing} is not installed", hint=f"pip install '{package}'") from None
    except Exception as error:  # every store has errors of its own
        raise ShardError(
            f"{location} cannot be {done}: {_reason(error)}", hint=_remedy(error, _scheme(location))
        ) from None


def _scheme(location: str) -> str:
    return location.partition("://")[0]


def _reason(error: Exception) -> str:
    error = getattr(error, "backend_error", error)  # smart_open keeps the store's own error there
    return " ".join(str(error).split()) or type(error).__name__


def _remedy(error: Exception, scheme: str) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "free space in TMPDIR, then continue with --resume"
    if any(word in text for word in _ABSENT):
        return "look at the address: the bucket, the folder and shar_index.json in it have to exist"
    if any(word in text for word in _REFUSED):
        return f"look at the credentials ({_CREDENTIALS.get(scheme, 'in the environment')}) and their rights"
    return f"look at the network and the server{_SERVERS.get(scheme, '')}, then continue with --resume"
