"""examples/python/server.py under load: no lost frame, held-back neighbours, a clean end."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import SHIPPED

pytest.importorskip("websockets")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def load_test() -> ModuleType:
    """benchmarks/server_load.py as a module."""
    spec = importlib.util.spec_from_file_location("server_load", ROOT / "benchmarks" / "server_load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["server_load"] = module
    spec.loader.exec_module(module)
    return module


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(
        **{"bundle": None, "clients": 64, "seconds": 2.0, "threads": 1, "slow": True, "push": 100.0, **changes}
    )


def check(result: dict, clients: int, frames: int) -> None:
    assert result["frames_lost"] == 0 and result["in_order"] and not result["closed_early"], result
    assert result["frames"] == clients * frames
    assert result["exit_status"] == 0 and result["server"].startswith("stopped: "), result


def test_64_clients_lose_no_frame(load_test: ModuleType) -> None:
    """In real time on loopback, beside one that sends as much as it can and reads nothing; ended with SIGTERM."""
    check(load_test.run(options(seconds=1.0)), 64, 49)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_64_clients_for_ten_minutes(load_test: ModuleType) -> None:
    result = load_test.run(options(seconds=600.0))
    check(result, 64, 29_999)
    assert result["slow_client"] == "held back" or result["slow_client"].startswith("cut off")
    memory = result["memory_mb"]
    assert memory["second_half"] <= 1.05 * memory["first_half"] + 5, "memory grows"


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = [sys.executable, str(ROOT / "examples" / "python" / "server.py"), "--port", "0", "--clients", "2"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[2].rstrip(",")
        if process.poll() is None:
            process.kill()


def test_sigterm_gives_every_stream_what_it_has_sent(server) -> None:
    """The features are those of the samples sent so far, the connection says why it ends, the status is 0."""
    from websockets.asyncio.client import connect

    process, url = server
    wave = speech_like(20_000, seed=1)
    pcm = (wave * 32767).astype("<i2")

    async def client() -> tuple[list[np.ndarray], int | None]:
        rows: list[np.ndarray] = []
        async with connect(url) as connection:
            await connection.send(pcm.tobytes())
            rows.append(await connection.recv())
            process.send_signal(signal.SIGTERM)
            async for message in connection:
                rows.append(message)
        return rows, connection.close_code

    messages, code = asyncio.run(asyncio.wait_for(client(), 120))
    found = [
        np.frombuffer(message, "<f4", offset=8).reshape(struct.unpack_from("<HH", message, 4))
        for message in messages
        if isinstance(message, bytes)
    ]
    expected = Encoder.load(SHIPPED).extract(pcm)
    assert np.abs(np.concatenate(found) - expected).max() <= 1e-6
    assert messages[-1] == f'{{"frames": {len(expected)}}}' and code == 1001
    assert process.wait(60) == 0


def test_refusals_name_their_reason(server) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    _, url = server

    async def ends_with(path: str, data: bytes) -> tuple[int | None, str]:
        async with connect(url + path) as connection:
            try:
                await connection.send(data)
                while True:
                    await connection.recv()
            except ConnectionClosed:
                return connection.close_code, connection.close_reason or ""

    async def full() -> int | None:
        async with connect(url) as one, connect(url) as two:
            await one.ping(), await two.ping()
            async with connect(url) as third:
                await third.wait_closed()
                return third.close_code

    code, reason = asyncio.run(ends_with("?format=s24be", bytes(300)))
    assert code == 1007 and "s24be" in reason
    assert asyncio.run(ends_with("?rate=17", bytes(300)))[0] == 1007
    assert asyncio.run(full()) == 1013
