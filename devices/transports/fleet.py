"""Which devices one call measures: names of profiles or of registered devices, and how each is reached.

A fleet file registers devices under names of one's own:

    [device.shelf-orin-1]
    profile = "jetson-orin-nano"
    address = "ci@10.0.0.12:22"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reuse_distill.devices.device_profiles import DeviceProfile, find_profile, known_profiles, read_toml
from reuse_distill.devices.transports.android import APP, Adb, AndroidApp
from reuse_distill.devices.transports.devicectl import DeviceCtl
from reuse_distill.devices.transports.local import Local
from reuse_distill.devices.transports.ssh import Ssh, SshSettings
from reuse_distill.devices.transports.transport import Transport
from reuse_distill.runtime.errors import RdError, nearest

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True)
class Registered:
    """One entry of a fleet file."""

    profile: str
    address: str = ""


@dataclass(frozen=True)
class Device:
    """One device of a call: its name in results and baselines, what it is, and the way to it."""

    name: str
    profile: DeviceProfile
    transport: Transport


@dataclass(frozen=True)
class Access:
    """Settings that the ways to devices need beyond an address."""

    ssh: SshSettings = field(default_factory=SshSettings)
    adb_python: str = ""  # empty: the app measures
    android_app: str = APP
    apple_app: str = ""


def read_fleet(path: Path) -> dict[str, Registered]:
    """Read a fleet file. Raises RdError for unknown keys, profiles and unusable names."""
    from reuse_distill.runtime.untrusted_input import from_dict

    data = read_toml(path, what="fleet file")
    for key in data:
        if key != "device":
            raise RdError(f"{path}: unknown key {key!r}", hint="devices are written as [device.NAME]")
    fleet = {}
    for name, table in data.get("device", {}).items():
        if not _NAME.match(name):
            raise RdError(f"{path}: device name {name!r}", hint="letters, digits, dot, dash and underscore only")
        fleet[name] = from_dict(Registered, table, where=f"{path}: device.{name}")
        find_profile(fleet[name].profile)
    return fleet


def devices(
    words: Sequence[str], *, hosts: Sequence[str], fleet: dict[str, Registered], access: Access
) -> tuple[Device, ...]:
    """The devices of a call, from ``--device NAME[=ADDRESS]`` in order; ``hosts`` are the addresses for those that have
    none, in the same order. Raises RdError for unknown names (with the nearest), missing and left-over addresses."""
    left = list(hosts)
    chosen = []
    for text in words:
        name, _, address = text.partition("=")
        entry = fleet.get(name)
        if entry is None and name not in known_profiles():
            known = nearest(name, [*fleet, *known_profiles()])
            raise RdError(f"there is no device {name!r}", hint=f"{known} (rd-latency devices lists the profiles)")
        profile = find_profile(entry.profile if entry else name)
        address = address or (entry.address if entry else "")
        if not address and left and (profile.transport == "ssh" or profile.transport == "local"):
            address = left.pop(0)
        chosen.append(Device(name, profile, _transport(name, profile, address, access)))
    if left:
        raise RdError(f"--host {left[0]}: no device is left that needs an address")
    names = [device.name for device in chosen]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise RdError(f"--device {twice} is given twice", hint="register them under two names in a fleet file")
    return tuple(chosen)


def _transport(name: str, profile: DeviceProfile, address: str, access: Access) -> Transport:
    if profile.transport == "adb":
        serial = address.removeprefix("adb:")
        return Adb(serial, access.adb_python) if access.adb_python else AndroidApp(serial, access.android_app)
    if profile.transport == "devicectl":
        return DeviceCtl(device=address.removeprefix("devicectl:"), app=access.apple_app)
    if address:
        return Ssh.parse(address, access.ssh)
    if profile.transport == "local":
        return Local()
    raise RdError(
        f"--device {name}: no address",
        hint=f"--device {name}=user@address, --host user@address, or a fleet file",
    )
