"""A websocket server for features of many live streams: `pip install 'reuse-distill[server]'`, then

    python examples/python/server.py [BUNDLE] --port 8765

A client connects to ws://HOST:PORT/?rate=16000&format=s16le&channels=1, sends PCM in binary messages of any size and
the text `end` when it is done. It receives binary messages: first frame (uint32), frames (uint16), width (uint16), then
frames x width float32, all little endian; at last the text {"frames": N}. A server that is full or stops says so with
the close code (1013, 1001).

Steps run in one thread, the stream first whose frames are due first. A client that sends faster than real time is
simply not read from for a while; one that does not read what it gets stops being stepped, and is cut off in the end.
Neither costs the others anything. SIGTERM and SIGINT: no new clients, every stream gets the frames of what it has
sent, then the server is gone with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import struct
import sys
import threading
from urllib.parse import parse_qs, urlsplit

import numpy as np
from reuse_distill.runtime import SHIPPED, Encoder, Frames, RdError, ScheduledStream, StreamScheduler
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

TRY_AGAIN, GOING_AWAY, BAD_DATA, TOO_SLOW = 1013, 1001, 1007, 1008
LARGEST_MESSAGE = 1 << 20


def packed(frames: Frames) -> bytes:
    """Frames of one stream as the message that a client gets."""
    rows = np.ascontiguousarray(frames.features.reshape(-1, frames.features.shape[-1]), "<f4")
    return struct.pack("<IHH", frames.index, *rows.shape) + rows.tobytes()


class Server:
    """Clients of one scheduler."""

    def __init__(self, scheduler: StreamScheduler, *, most_clients: int, slow_s: float) -> None:
        self.scheduler, self.most_clients, self.slow_s = scheduler, most_clients, slow_s
        self.stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._clients = 0

    async def handle(self, connection: ServerConnection) -> None:
        """One client, from its first message to its last frame."""
        if self.stopping.is_set() or self._clients >= self.most_clients:
            await connection.close(TRY_AGAIN, "no room for another stream")
            return
        self._clients += 1
        changed = asyncio.Event()
        notify = lambda: self._loop.call_soon_threadsafe(changed.set)  # noqa: E731
        stream = None
        try:
            query = parse_qs(urlsplit(connection.request.path if connection.request else "").query)
            rate, channels = (
                int(query.get(name, [default])[0]) for name, default in (("rate", 16000), ("channels", 1))
            )
            pcm = query.get("format", ["s16le"])[0]
            stream = self.scheduler.open(rate, notify=notify)
            reading = asyncio.create_task(self._read(connection, stream, changed, pcm, channels))
            try:
                await self._write(connection, stream, changed, reading)
            finally:
                reading.cancel()
        except ConnectionClosed:
            pass
        except (RdError, ValueError) as error:
            await connection.close(BAD_DATA, str(error).splitlines()[0][:120])
        except asyncio.TimeoutError:
            await connection.close(TOO_SLOW, f"nothing was sent or read for {self.slow_s:g} s")
        finally:
            self._clients -= 1
            if stream is not None:
                stream.leave()

    async def _read(
        self, connection: ServerConnection, stream: ScheduledStream, changed: asyncio.Event, pcm: str, channels: int
    ) -> None:
        """Messages into the stream. While it has enough waiting no message is taken: TCP holds the client back."""
        stop = asyncio.create_task(self.stopping.wait())
        try:
            while not self.stopping.is_set():
                message = asyncio.create_task(connection.recv())
                message.add_done_callback(
                    lambda task: task.cancelled() or task.exception()
                )  # told below, or nobody asks
                done, _ = await asyncio.wait({message, stop}, timeout=self.slow_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    message.cancel()
                    raise asyncio.TimeoutError
                if message not in done:
                    message.cancel()
                    break
                data = message.result()
                if data == "end":
                    break
                while not stream.feed(data, format=pcm, channels=channels) and not self.stopping.is_set():
                    await asyncio.sleep(0.02)
        finally:
            stop.cancel()
            stream.end()
            changed.set()

    async def _write(
        self, connection: ServerConnection, stream: ScheduledStream, changed: asyncio.Event, reading: asyncio.Task[None]
    ) -> None:
        """Frames to the client until the last one."""
        sent = 0
        while True:
            changed.clear()
            finished = stream.finished
            for frames in stream.take():
                await asyncio.wait_for(connection.send(packed(frames)), self.slow_s)
                sent += len(frames)
            if reading.done() and not reading.cancelled() and (error := reading.exception()):
                raise error
            if stream.error is not None:
                raise stream.error
            if finished:
                break
            await changed.wait()
        await asyncio.wait_for(connection.send(json.dumps({"frames": sent})), self.slow_s)
        if self.stopping.is_set():
            await connection.close(GOING_AWAY, "the server stops")


async def run(args: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    encoder = Encoder.load(args.bundle, threads=args.threads)
    scheduler, stop_stepping = encoder.scheduler(waiting_s=args.waiting), threading.Event()
    server = Server(scheduler, most_clients=args.clients, slow_s=args.slow)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stopping.set)
    worker = threading.Thread(target=scheduler.serve, args=(stop_stepping,), name="steps")
    worker.start()
    try:
        async with serve(
            server.handle,
            args.host,
            args.port,
            compression=None,
            max_size=LARGEST_MESSAGE,
            max_queue=4,
            open_timeout=args.slow,
            ping_interval=None,  # answers to pings wait behind audio that is held back; `slow` ends dead clients
            close_timeout=args.slow,
        ) as listening:
            port = next(iter(listening.sockets)).getsockname()[1]
            print(f"listening on ws://{args.host}:{port}, up to {args.clients} streams of {encoder}", flush=True)
            await server.stopping.wait()
            while server._clients:
                await asyncio.sleep(0.02)
    finally:
        stop_stepping.set()
        worker.join()
    counts = scheduler.counts
    print(
        f"stopped: {counts.steps} steps in {counts.batches} batches, {counts.frames} frames, {counts.late} steps late, "
        f"the latest by {1000 * counts.worst_late_s:.0f} ms",
        flush=True,
    )


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("bundle", nargs="?", default=SHIPPED, help="a streaming bundle (default: the shipped one)")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8765, help="0: any free one (default 8765)")
    p.add_argument("--threads", type=int, default=1, help="of the engine")
    p.add_argument("--clients", type=int, default=64, help="most streams at once")
    p.add_argument("--waiting", type=float, default=2.0, help="seconds of audio that may wait per stream")
    p.add_argument(
        "--slow", type=float, default=30.0, help="seconds after which a client that sends or reads nothing is cut off"
    )
    try:
        asyncio.run(run(p.parse_args()))
    except RdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
