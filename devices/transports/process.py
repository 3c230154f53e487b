"""A child process that can be fed, watched and stopped without leaving anything of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Event, Thread
from typing import IO

from reuse_distill.devices.transports.transport import Finished, Progress, Unreachable
from reuse_distill.devices.worker import PROGRESS_MARK
from reuse_distill.report.plain_text import one_line

HEARTBEAT_S = 2.0
GRACE_S = 15.0  # for the device side to clean up after the line has been closed
KEPT_LINES = 40
MAX_OUTPUT_BYTES = 17 << 20  # of a child: a whole answer of ``device_answer`` and some more
MAX_LINE_BYTES = 4096  # of a message; longer ones come in parts


def run(
    command: Sequence[str],
    *,
    limit_s: float,
    progress: Progress,
    cancel: Event,
    payload: bytes = b"",
    heartbeat: bool = False,
    env: dict[str, str] | None = None,
) -> Finished:
    """Run ``command``, feed it ``payload`` and, with ``heartbeat``, a byte every two seconds until it ends.

    On ``cancel`` or after ``limit_s`` standard input is closed (the device side cleans up and ends), then the process
    group is terminated. The child is in a session of its own: a Ctrl-C reaches it only through us. Raises
    KeyboardInterrupt when cancelled.
    """
    began = time.monotonic()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=env,
        )
    except FileNotFoundError:
        raise Unreachable(f"{command[0]} is not installed on this machine", hint=f"install {command[0]}") from None
    output: list[bytes] = []
    too_long = Event()
    messages: deque[str] = deque(maxlen=KEPT_LINES)
    closing = Event()
    workers = [
        Thread(target=_collect, args=(child.stdout, output, too_long), daemon=True),
        Thread(target=_listen, args=(child.stderr, messages, progress), daemon=True),
        Thread(target=_feed, args=(child.stdin, payload, heartbeat, closing), daemon=True),
    ]
    for worker in workers:
        worker.start()
    try:
        stop = lambda: cancel.is_set() or too_long.is_set() or time.monotonic() - began > limit_s  # noqa: E731
        ended = _wait(child, until=stop)
    finally:
        closing.set()
        _stop(child, gently=heartbeat)
        for worker in workers:
            worker.join(timeout=5.0)
    if cancel.is_set() and not ended:
        raise KeyboardInterrupt
    seconds, text = time.monotonic() - began, b"".join(output).decode("utf-8", errors="replace")
    stopped = not ended and not too_long.is_set()
    return Finished(child.returncode, text, tuple(messages), seconds, timed_out=stopped, too_long=too_long.is_set())


def _wait(child: subprocess.Popen[bytes], *, until: Callable[[], bool]) -> bool:
    """True when the child ended by itself, False when ``until`` came first."""
    while child.poll() is None:
        if until():
            return False
        time.sleep(0.05)
    return True


def _stop(child: subprocess.Popen[bytes], *, gently: bool) -> None:
    """Make sure that the child and its group are gone. Gently: it gets time to end after its input was closed."""
    steps: list[tuple[int | None, float]] = [(signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)]
    if gently:
        steps.insert(0, (None, GRACE_S))
    for signum, wait_s in steps:
        if child.poll() is not None:
            return
        if signum is not None:
            _signal(child, signum)
        try:
            child.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            continue


def _signal(child: subprocess.Popen[bytes], signum: int) -> None:
    try:
        os.killpg(child.pid, signum)
    except (ProcessLookupError, PermissionError):
        child.send_signal(signum)


def _collect(stream: IO[bytes], into: list[bytes], too_long: Event) -> None:
    """Keep what the child prints, up to ``MAX_OUTPUT_BYTES``; the rest is read and dropped until it is stopped."""
    kept = 0
    while block := stream.read1(1 << 16):  # type: ignore[attr-defined]
        kept += len(block)
        if kept > MAX_OUTPUT_BYTES:
            too_long.set()
        else:
            into.append(block)


def _listen(stream: IO[bytes], messages: deque[str], progress: Progress) -> None:
    while raw := stream.readline(MAX_LINE_BYTES):
        line = one_line(raw.decode("utf-8", errors="replace").strip())
        if line.startswith(PROGRESS_MARK):
            progress(line[len(PROGRESS_MARK) :])
        elif line:
            messages.append(line)


def _feed(stream: IO[bytes], payload: bytes, heartbeat: bool, closing: Event) -> None:
    try:
        with stream:
            for at in range(0, len(payload), 1 << 16):
                if closing.is_set():
                    return
                stream.write(payload[at : at + (1 << 16)])
            stream.flush()
            while heartbeat and not closing.wait(HEARTBEAT_S):
                stream.write(b".")
                stream.flush()
    except OSError:
        return  # the child has gone; its status tells why
