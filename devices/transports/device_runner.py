"""Runs on the device, given to its Python on the command line: unpack, measure, clean up, whatever happens.

Standard library only and in Python 3.6's grammar, so that an old one can say that it is too old. Arguments:
size of the tar on standard input, limit in seconds, request. Standard input continues as a heartbeat; its end
or 20 s of silence mean that nobody is listening any more.
"""

import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HELLO = "RD-LATENCY-HELLO"
ERROR_MARK = "RD-LATENCY-ERROR "
EXIT_NOT_MEASURED = 4
SILENCE_S = 20.0
HEADROOM = 1.2


def main(argv: list) -> int:
    """Returns the exit status: the worker's, or 4 with an error line."""
    size, limit_s, request = int(argv[0]), float(argv[1]), argv[2]
    print(HELLO, flush=True)
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _leave)
    if sys.version_info < (3, 10):  # noqa: UP036 - the device may have an older one
        return fail(
            f"the device has Python {sys.version_info[0]}.{sys.version_info[1]}, 3.10 is needed",
            "name another with --remote-python",
        )
    folder = None
    try:
        parent = tempfile.gettempdir()
        free = shutil.disk_usage(parent).free
        if free < HEADROOM * size:
            return no_space(parent, free, size)
        folder = tempfile.mkdtemp(prefix="rd-latency.")
        unpack(size, folder)
        return work(folder, limit_s, request)
    except OSError as error:
        return fail(
            f"the device could not store the runner: {error}",
            f"free some space in {tempfile.gettempdir()}",
        )
    finally:
        for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)  # a second one must not stop the cleaning
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def no_space(parent: str, free: int, size: int) -> int:
    """Too little room for the runner and the bundle."""
    needed = HEADROOM * size / 1e6
    message = f"no space on the device: {free / 1e6:.1f} MB free in {parent}, {needed:.1f} MB needed"
    return fail(message, "free some space there, or point TMPDIR elsewhere")


def fail(message: str, hint: str) -> int:
    """One marked line that the near side understands."""
    print(ERROR_MARK + json.dumps({"message": message, "hint": hint}), flush=True)
    return EXIT_NOT_MEASURED


def unpack(size: int, folder: str) -> None:
    """Read exactly ``size`` bytes of standard input and unpack them: plain files below ``folder`` only."""
    data = io.BytesIO()
    while data.tell() < size:
        ready, _, _ = select.select([0], [], [], SILENCE_S)
        block = os.read(0, min(1 << 16, size - data.tell())) if ready else b""
        if not block:
            raise OSError(f"the connection ended after {data.tell()} of {size} bytes")
        data.write(block)
    data.seek(0)
    with tarfile.open(fileobj=data, mode="r:") as tar:
        for entry in tar:
            name = os.path.normpath(entry.name)
            if not entry.isfile() or name.startswith(("/", "..")):
                raise OSError(f"refused entry {entry.name!r}")
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(entry)
            if source is not None:
                path.write_bytes(source.read())


def work(folder: str, limit_s: float, request: str) -> int:
    """Run the worker until it ends, the near side is gone, or the limit has passed."""
    env = dict(os.environ, PYTHONPATH=folder, PYTHONDONTWRITEBYTECODE="1", TMPDIR=folder)
    command = [sys.executable, "-m", "reuse_distill.devices.worker", "bundle", "--request", request]
    worker = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return watch(worker, time.monotonic() + limit_s)
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def watch(worker: subprocess.Popen, end: float) -> int:
    """The worker's status; a line of its own for a limit, 1 where nobody listens any more."""
    heard = time.monotonic()
    while worker.poll() is None:
        ready, _, _ = select.select([0], [], [], 0.5)
        now = time.monotonic()
        if ready:
            if not os.read(0, 1 << 12):
                return 1
            heard = now
        if now - heard > SILENCE_S:
            return 1
        if now > end:
            return fail("not done in time, stopped", "give less --seconds")
    if worker.returncode < 0:
        return fail(f"the measuring process was killed by signal {-worker.returncode}", "was it out of memory?")
    return worker.returncode


def _leave(signum: int, frame: object) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
