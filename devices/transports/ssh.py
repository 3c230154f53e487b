"""A Linux device over the system's ssh client: host keys checked, one connection, nothing left behind.

Everything goes through one ssh process: ``device_runner.py`` (given on the command line) reads the packed sources and
the bundle from standard input, measures, prints the result and removes its one temporary folder. Standard input stays
open with a heartbeat; when it closes or falls silent (Ctrl-C here, a cut connection) the runner stops and cleans up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from reuse_distill.devices.measuring.measurement import Measurement, Request
from reuse_distill.devices.transports import device_runner
from reuse_distill.devices.transports.process import run
from reuse_distill.devices.transports.remote_runner import device_command, measured, pack
from reuse_distill.devices.transports.transport import Finished, Progress, Unreachable
from reuse_distill.runtime.errors import RdError

_ADDRESS = re.compile(
    r"^(?:(?P<user>[^@\s:-][^@\s:]*)@)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^@\s:\[\]-][^@\s:\[\]]*)(?::(?P<port>\d{1,5}))?$"
)


@dataclass(frozen=True)
class SshSettings:
    """What the ssh client is told beyond the address; the user's own ~/.ssh/config applies besides."""

    identity: str = ""
    known_hosts: str = ""
    python: str = "python3"
    connect_timeout_s: int = 15


@dataclass(frozen=True)
class Ssh:
    """One address."""

    user: str
    host: str
    port: int | None
    settings: SshSettings

    @classmethod
    def parse(cls, address: str, settings: SshSettings) -> Ssh:
        """``user@host:port``; user and port may be left to the ssh configuration, IPv6 goes in brackets."""
        match = _ADDRESS.match(address)
        if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
            raise RdError(f"--host {address!r} is not an address", hint="write user@host or user@host:port")
        host = match["host"].strip("[]")
        return cls(match["user"] or "", host, int(match["port"]) if match["port"] else None, settings)

    @property
    def address(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}" + (f":{self.port}" if self.port else "")

    def measure(
        self, bundle: Path, request: Request, *, limit_s: float, progress: Progress, cancel: Event
    ) -> Measurement:
        """See ``Transport``."""
        payload = pack(bundle)
        progress(f"copying {len(payload) / 1e6:.1f} MB to {self.address}")
        command = [*self.client(), device_command(self.settings.python, len(payload), request, limit_s)]
        finished = run(command, limit_s=limit_s + 60, progress=progress, cancel=cancel, payload=payload, heartbeat=True)
        return self._outcome(finished)

    def client(self) -> list[str]:
        """The ssh command up to the remote command: never a prompt, never an unknown host key."""
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": str(self.settings.connect_timeout_s),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "RequestTTY": "no",
        }
        if self.settings.known_hosts:
            options |= {"UserKnownHostsFile": self.settings.known_hosts, "GlobalKnownHostsFile": "/dev/null"}
        if self.settings.identity:
            options |= {"IdentityFile": self.settings.identity, "IdentitiesOnly": "yes"}
        command = ["ssh"]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        command += ["-p", str(self.port)] if self.port else []
        command += ["-l", self.user] if self.user else []
        return [*command, "--", self.host]

    def _outcome(self, finished: Finished) -> Measurement:
        answered = measured(finished, where=self.address, python=self.settings.python)
        if answered is None:
            raise self._unreachable(finished)
        return answered

    def _unreachable(self, finished: Finished) -> Unreachable:
        messages = "\n".join(finished.messages)
        if "Host key verification failed" in messages or "REMOTE HOST IDENTIFICATION HAS CHANGED" in messages:
            return Unreachable(
                f"{self.address}: the host key is not the one that is known",
                hint="compare it with the device's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then put it "
                "into known_hosts; it is never accepted unseen",
            )
        if "Permission denied" in messages:
            return Unreachable(
                f"{self.address}: permission denied",
                hint="is the key among its authorized_keys? (--identity FILE)",
            )
        if device_runner.HELLO in finished.stdout:
            return Unreachable(
                f"{self.address}: the connection was lost after {finished.seconds:.0f} s: {messages[-200:]}"
            )
        last = finished.messages[-1] if finished.messages else "no answer"
        return Unreachable(f"{self.address}: {last}", hint=f"try: ssh {self.address.replace(':', ' -p ')} true")
