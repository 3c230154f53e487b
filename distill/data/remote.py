"""Files at an address, as the bytes they are: http(s), and object stores (s3://, gs://, …) through smart_open."""

from __future__ import annotations

import errno
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, TypeVar

from reuse_distill.runtime.errors import RdError, install_hint

T = TypeVar("T")

WEB = ("http://", "https://")
_INSTALL = {scheme: f"pip install 'smart_open[{extra}]'" for scheme, extra in (("gs", "gcs"), ("azure", "azure"))}
_CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_SERVERS = {"s3": " (AWS_ENDPOINT_URL, where it is not Amazon's)"}
# A server that is gone is given up within minutes: a run that stops can be resumed, one that hangs is found late.
CONNECT_S, READ_S, ATTEMPTS = 10, 60, 4
WAIT_S = 1.0  # before a second attempt over http, doubled before each further one
_PASSING = (408, 429, 500, 502, 503, 504)  # answers of a web server that may give another one the next time
_ABSENT = ("NoSuchBucket", "NoSuchKey", "404", "Not Found")
_REFUSED = (
    *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "redentials"),
    *("401", "Unauthorized", "403", "Forbidden"),
)

_ADDRESS = re.compile(r"\w+://[^\s\"']*")


class ShardError(RdError):
    """A shard that is not available: the run stops, where damaged audio would only be skipped.

    ``absent``: the store said that there is no such file.
    """

    def __init__(self, message: str, *, hint: str | None = None, absent: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.absent = absent


def is_remote(source: object) -> bool:
    """Whether ``source`` is an address such as https://… or s3://…"""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(source)) is not None


def read_bytes(location: str) -> bytes:
    """All bytes of the file at an address. Raises ShardError where they are not available."""
    return _attempted(location, "read", partial(_read, location))


def fetch(location: str, target: IO[bytes]) -> None:
    """The file at an address, as all that ``target`` holds. Raises ShardError where it does not arrive whole."""
    _attempted(location, "fetched", partial(_copy, location, target))


def upload(path: Path, location: str) -> None:
    """``path``, copied to an object store. Raises ShardError where that fails."""
    _attempted(location, "written", partial(_write, path, location))


def exists(location: str) -> bool:
    """Whether there is a (small) file at the address. Raises ShardError where the store does not say."""
    try:
        read_bytes(location)
    except ShardError as error:
        if error.absent:
            return False
        raise
    return True


def _read(location: str) -> bytes:
    with _open(location, "rb") as stream:
        return stream.read()


def _copy(location: str, target: IO[bytes]) -> None:
    target.seek(0)
    target.truncate()
    with _open(location, "rb") as source:
        shutil.copyfileobj(source, target, 1 << 20)
        promised = source.headers.get("Content-Length") if location.startswith(WEB) else None  # type: ignore[attr-defined]
    if promised is not None and target.tell() != int(promised):  # stores check this themselves
        raise ConnectionError(f"{target.tell()} of {promised} bytes came, then the server closed the connection")
    target.flush()


def _write(path: Path, location: str) -> None:
    with path.open("rb") as source, _open(location, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


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


def _attempted(location: str, done: str, action: Callable[[], T]) -> T:
    """``action``, over http again where its failure may pass; the clients of stores see to that themselves.

    Whatever it raises comes as a ShardError that names the address, the attempts and what to do.
    """
    if "@" in location.partition("://")[2].partition("/")[0]:
        raise ShardError(
            "an address has no credentials in it", hint="give them by the environment, such as AWS_PROFILE"
        )
    attempt = 0
    while True:
        attempt += 1
        try:
            return action()
        except ImportError as error:
            scheme = _scheme(location)
            how = install_hint("objects") if scheme == "s3" else _INSTALL.get(scheme, "pip install 'smart_open[all]'")
            missing = error.name or "what smart_open needs for it"
            raise ShardError(f"{location}: {missing} is not installed", hint=how) from None
        except Exception as error:  # every store has errors of its own
            if location.startswith(WEB) and attempt < ATTEMPTS and _may_pass(error):
                time.sleep(WAIT_S * 2 ** (attempt - 1))
                continue
            attempts = f" ({attempt} attempts)" if attempt > 1 else ""
            raise ShardError(
                f"{location} cannot be {done}: {_reason(error)}{attempts}",
                hint=_remedy(error, _scheme(location)),
                absent=_is_absent(error),
            ) from None


def _may_pass(error: Exception) -> bool:
    """Whether a web server that failed so may answer the next time: it is busy, or the connection broke."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _PASSING
    if isinstance(error, urllib.error.URLError):
        return not isinstance(error.reason, ssl.SSLCertVerificationError)
    if isinstance(error, http.client.InvalidURL):
        return False
    return isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException)


def _scheme(location: str) -> str:
    return location.partition("://")[0]


def _reason(error: Exception) -> str:
    error = getattr(error, "backend_error", error)  # smart_open keeps the store's own error there
    return " ".join(str(error).split()) or type(error).__name__


def _says(text: str, words: Iterable[str]) -> bool:
    """Whether one of the words is in it; a status only as a whole number, not within the port 40127."""
    return any(re.search(rf"\b{word}\b" if word.isdigit() else word, text) for word in words)


def _is_absent(error: Exception) -> bool:
    """Whether the store says that there is nothing at the address; a folder or a port may be called 404."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code == http.HTTPStatus.NOT_FOUND
    return _says(_ADDRESS.sub("", _reason(error)), _ABSENT)


def _remedy(error: Exception, scheme: str) -> str:
    text = _ADDRESS.sub("", str(error))  # a folder may be 404
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space in TMPDIR, then continue with --resume"
    if _says(text, _ABSENT):
        return "look at the address: the bucket, the folder and shar_index.json in it have to exist"
    if _says(text, _REFUSED):
        if scheme.startswith("http"):
            return "http is read without credentials: name a public address, or copy the shards to a folder"
        return f"look at the credentials ({_CREDENTIALS.get(scheme, 'in the environment')}) and their rights"
    return f"look at the network and the server{_SERVERS.get(scheme, '')}, then continue with --resume"
