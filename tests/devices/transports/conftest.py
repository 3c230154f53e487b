"""A real sshd on the loopback, started by the test with keys made by the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Target:
    """A running server and what a client needs to reach it."""

    port: int
    user: str
    identity: Path
    known_hosts: Path
    temporary: Path  # TMPDIR of everything that runs there
    server: subprocess.Popen

    def words(self, **changes: str) -> list[str]:
        """The words of `rd-latency` that lead there."""
        known_hosts = changes.get("known_hosts", str(self.known_hosts))
        python = changes.get("python", sys.executable)
        address = f"{self.user}@127.0.0.1:{self.port}"
        access = ["--identity", str(self.identity), "--known-hosts", known_hosts, "--remote-python", python]
        return ["--device", "raspberry-pi-5", "--host", address, *access]

    def left_behind(self) -> list[str]:
        return sorted(path.name for path in self.temporary.iterdir())

    def wait_clean(self, seconds: float = 30.0) -> list[str]:
        """What is still there when it has had time to clean up."""
        end = time.monotonic() + seconds
        while self.left_behind() and time.monotonic() < end:
            time.sleep(0.1)
        return self.left_behind()


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.fixture
def start_sshd(tmp_path: Path) -> Iterator[Callable[..., Target]]:
    """``start_sshd(temporary=FOLDER)`` starts a server whose sessions have that TMPDIR."""
    if SSHD is None or shutil.which("ssh-keygen") is None:
        pytest.skip("there is no sshd here (apt-get install openssh-server)")
    servers: list[subprocess.Popen] = []

    def start(*, temporary: Path | None = None) -> Target:
        target = _start(tmp_path, temporary=temporary)
        servers.append(target.server)
        return target

    yield start
    for server in servers:
        server.terminate()
        server.wait(timeout=10)


def _start(folder: Path, *, temporary: Path | None) -> Target:
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where a root sshd separates its privileges
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    host_key, identity = make_key(folder / "host_key"), make_key(folder / "identity")
    (folder / "authorized_keys").write_text((folder / "identity.pub").read_text())
    temporary = temporary or folder / "there"
    temporary.mkdir(exist_ok=True)
    port = _free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\n"
        f"KbdInteractiveAuthentication no\nSetEnv TMPDIR={temporary} OMP_NUM_THREADS=1\n"
    )
    log = (folder / "sshd.log").open("wb")
    server = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {' '.join((folder / 'host_key.pub').read_text().split()[:2])}\n")
    _wait_for(port, server, folder / "sshd.log")
    return Target(port, user, identity, known, temporary, server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text()[-200:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.skip("sshd does not answer here")


@pytest.fixture
def rd_latency() -> Callable[..., subprocess.Popen]:
    """Start `rd-latency` with the given words as a user would."""

    def start(*words: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "reuse_distill.devices.rd_latency", *map(str, words)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=env,
            cwd=ROOT,
        )

    return start
