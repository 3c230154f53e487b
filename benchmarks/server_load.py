"""Load on `examples/python/server.py`: many clients in real time on loopback, one of which hardly reads.

    python benchmarks/server_load.py --clients 64 --seconds 600 --output benchmarks/results/server_load.json

Starts the server itself, counts every frame, measures from the moment that the last sample of a chunk was sent to the
moment that its frames came, looks at the server's memory, and ends it with SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ, frames_for
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

SERVER = Path(__file__).resolve().parents[1] / "examples" / "python" / "server.py"
WARM_UP_S = 1.0
PATIENCE_S = 600  # of the server with clients, on a machine that may be busy
HELD_BACK_S = 1.0  # a message that nobody takes for so long
# No time limits of the protocol: what is measured here is the server, on machines that may be busy.
PATIENT: dict[str, Any] = {"open_timeout": None, "ping_interval": None, "close_timeout": None}


@dataclass
class Client:
    """What one client saw."""

    expected: int = 0
    frames: int = 0
    in_order: bool = True
    told: int = -1
    lags_ms: list[float] = field(default_factory=list)
    closed: str = ""


class Start:
    """The moment when the last of several clients is connected."""

    def __init__(self, clients: int) -> None:
        self._missing, self._all, self._at_s = clients, asyncio.Event(), 0.0

    async def wait(self) -> float:
        """Return the moment (``perf_counter``), the same for all, once everybody has called this."""
        self._missing -= 1
        if not self._missing:
            self._at_s = time.perf_counter()
            self._all.set()
        await self._all.wait()
        return self._at_s


async def stream(url: str, wave: np.ndarray, start: Start, later_s: float, *, lookahead: int, push_s: float) -> Client:
    """Send ``wave`` (T,) in real time, ``later_s`` after the start of all; take every frame."""
    client = Client(expected=frames_for(len(wave)))
    pcm, size = (wave * 32767).astype("<i2"), int(push_s * SAMPLE_RATE_HZ)
    async with connect(url, compression=None, max_size=1 << 22, **PATIENT) as connection:
        start_s = await start.wait() + later_s

        async def send() -> None:
            for at in range(0, len(pcm), size):
                await asyncio.sleep(max(0.0, start_s + (at + size) / SAMPLE_RATE_HZ - time.perf_counter()))
                await connection.send(pcm[at : at + size].tobytes())
            await connection.send("end")

        sending = asyncio.create_task(send())
        try:
            async for message in connection:
                now_s = time.perf_counter()
                if isinstance(message, str):
                    client.told = json.loads(message)["frames"]
                    break
                index, count, _ = struct.unpack_from("<IHH", message)
                client.in_order &= index == client.frames
                client.frames += count
                # The last sample that the newest frame waits for, its look-ahead included.
                heard = HOP_SAMPLES * (index + count - 1 + lookahead) + 400
                if heard < len(wave) and heard > WARM_UP_S * SAMPLE_RATE_HZ:
                    sent = -(-heard // size) * size  # it came with the whole message that holds it
                    client.lags_ms.append(1000 * (now_s - start_s - sent / SAMPLE_RATE_HZ))
        except ConnectionClosed as error:
            client.closed = str(error)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await sending
    return client


async def hardly_reading(url: str, done: asyncio.Event) -> str:
    """Send as fast as it goes and read nothing until the others are ``done``; how it ended."""
    samples = np.zeros(SAMPLE_RATE_HZ, "<i2").tobytes()
    try:
        async with connect(url, compression=None, max_queue=1, **PATIENT) as connection:
            try:
                while not done.is_set():
                    await asyncio.wait_for(connection.send(samples), HELD_BACK_S)
                    await asyncio.sleep(0)
            except asyncio.TimeoutError:
                await done.wait()
                return "held back"
            finally:
                connection.transport.abort()  # it has not read what it was sent: a polite end would wait for that
    except ConnectionClosed as error:
        return f"cut off: {error}"
    return "not held back by then"


def memory_mb(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


async def load(
    url: str, pid: int, *, clients: int, seconds: float, slow: bool, lookahead: int, push_s: float
) -> dict[str, Any]:
    """Run all clients at once; what they saw, and the server's memory along the way."""
    wave, memory = speech_like(int(seconds * SAMPLE_RATE_HZ), seed=3), list[float]()

    async def watch() -> None:
        while True:
            memory.append(memory_mb(pid))
            await asyncio.sleep(min(5.0, seconds / 10))

    watching, done = asyncio.create_task(watch()), asyncio.Event()
    start = Start(clients)
    neighbour = asyncio.create_task(hardly_reading(url, done)) if slow else None
    runs = [stream(url, wave, start, i * 0.16 / clients, lookahead=lookahead, push_s=push_s) for i in range(clients)]
    seen = await asyncio.gather(*runs)
    watching.cancel()
    done.set()
    lags = np.concatenate([np.float64(client.lags_ms) for client in seen])
    half = max(1, len(memory) // 2)
    return {
        "clients": clients,
        "seconds": seconds,
        "message_ms": 1000 * push_s,
        "frames": sum(client.frames for client in seen),
        "frames_lost": sum(client.expected - client.frames for client in seen),
        "in_order": all(client.in_order and client.told == client.frames for client in seen),
        "closed_early": [client.closed for client in seen if client.closed],
        "slow_client": await neighbour if neighbour else "none",
        "lag_ms": {f"p{q}": round(float(np.percentile(lags, q)), 2) for q in (50, 90, 99)} if len(lags) else {},
        "lag_max_ms": round(float(lags.max()), 2) if len(lags) else None,
        "chunks_measured": len(lags),
        "memory_mb": {"first_half": round(max(memory[:half]), 1), "second_half": round(max(memory[half:] or [0]), 1)},
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Start the server, load it, end it with SIGTERM."""
    words = [sys.executable, str(SERVER), *([args.bundle] if args.bundle else []), "--port", "0"]
    words += ["--clients", str(args.clients + 1), "--threads", str(args.threads), "--slow", str(PATIENCE_S)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[2].rstrip(",")
            result = asyncio.run(
                load(
                    url,
                    server.pid,
                    clients=args.clients,
                    seconds=args.seconds,
                    slow=args.slow,
                    lookahead=4,
                    push_s=args.push / 1000,
                )
            )
            server.send_signal(signal.SIGTERM)
            last = server.communicate(timeout=300)[0].strip()
            return {**result, "exit_status": server.returncode, "server": last.splitlines()[-1] if last else ""}
        finally:
            if server.poll() is None:
                server.kill()


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--bundle", help="a streaming bundle with 4 frames of look-ahead (default: the shipped one)")
    p.add_argument("--clients", type=int, default=64)
    p.add_argument("--seconds", type=float, default=600.0)
    p.add_argument("--push", type=float, default=100.0, help="milliseconds of audio in a message (100)")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--no-slow", dest="slow", action="store_false", help="without the client that hardly reads")
    p.add_argument("--output", type=Path)
    args = p.parse_args()
    load_before = os.getloadavg()[0]
    result = {**run(args), "machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    result["load_average_before"] = round(load_before, 2)
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")
    good = result["frames_lost"] == 0 and result["in_order"] and result["exit_status"] == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
