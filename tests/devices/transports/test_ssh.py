"""The whole way over ssh, against a real server on the loopback: the right verdict and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import venv
from pathlib import Path

import pytest
from reuse_distill.devices.transports.ssh import Ssh, SshSettings
from reuse_distill.runtime.errors import RdError

LONG = ("--seconds", 60)


def wait_for_work(target, process) -> None:
    """Until the device side has unpacked the runner and measures."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        if any(Path(target.temporary).glob("rd-latency.*/bundle/manifest.json")) and workers(target):
            time.sleep(1.0)
            return
        time.sleep(0.1)
    raise AssertionError("the device side never began to measure")


def workers(target) -> list[int]:
    """Processes that work in the device side's temporary folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve().is_relative_to(target.temporary):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_full_run_brings_the_measurement_back_and_leaves_nothing(start_sshd, rd_latency, streaming_bundle, tmp_path):
    target, budget = start_sshd(), tmp_path / "budget.toml"
    budget.write_text('p99 = "10 s"\npeak_memory = "4 GB"\n')
    words = ["--seconds", 1, "--budget", budget, "--json", tmp_path / "out.json"]
    process = rd_latency(streaming_bundle, *target.words(), *words)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4, (out, err)  # 25 chunks: p99 is unmeasured, and not passed
    data = json.loads((tmp_path / "out.json").read_text())
    outcome = data["outcomes"][0]
    assert outcome["address"] == f"{target.user}@127.0.0.1:{target.port}"
    assert len(outcome["measurement"]["samples"][0]["latency_ms"]) == 25
    assert outcome["measurement"]["bundle"]["chunk_frames"] == 2
    assert {check["metric"]: check["verdict"] for check in outcome["checks"]} == {
        "p99": "unmeasured",
        "peak_memory": "pass",
    }
    assert target.left_behind() == []


def test_ctrl_c_in_the_middle_stops_the_far_side(start_sshd, rd_latency, streaming_bundle):
    target = start_sshd()
    process = rd_latency(streaming_bundle, *target.words(), *LONG)
    wait_for_work(target, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    assert target.left_behind() == []  # it waited for the cleaning
    assert workers(target) == []


def test_connection_cut_in_the_middle_is_unreachable_and_the_far_side_cleans_up(
    start_sshd, rd_latency, streaming_bundle
):
    target = start_sshd()
    process = rd_latency(streaming_bundle, *target.words(), *LONG)
    wait_for_work(target, process)
    os.kill(session_of(target), signal.SIGKILL)  # the server's side of this one connection
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, (out, err)
    assert "unreachable" in out and "connection was lost" in out
    assert target.wait_clean() == []
    assert workers(target) == []


def session_of(target) -> int:
    """The sshd process that holds the connection: child of the listener."""
    pids = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(target.server.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(pids) == 1
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", pids[0]], capture_output=True, text=True).stdout.split()
    for pid in children:  # where the server separates privileges the user's half has the pipes
        if "sshd" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(int(pid), signal.SIGKILL)
    return int(pids[0])


def test_near_side_killed_outright_leaves_nothing_there(start_sshd, rd_latency, streaming_bundle):
    target = start_sshd()
    process = rd_latency(streaming_bundle, *target.words(), *LONG)
    wait_for_work(target, process)
    process.kill()
    process.communicate(timeout=30)
    assert target.wait_clean() == []
    assert workers(target) == []


def test_wrong_host_key_is_unreachable_and_nothing_is_sent(start_sshd, rd_latency, streaming_bundle, tmp_path):
    target = start_sshd()
    other = tmp_path / "other_known_hosts"
    other.write_text(f"[127.0.0.1]:{target.port} {' '.join((tmp_path / 'identity.pub').read_text().split()[:2])}\n")
    process = rd_latency(streaming_bundle, *target.words(known_hosts=str(other)))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, (out, err)
    assert "host key is not the one that is known" in out
    assert target.left_behind() == []


def test_unknown_host_key_is_never_accepted(start_sshd, rd_latency, streaming_bundle, tmp_path):
    target, empty = start_sshd(), tmp_path / "empty_known_hosts"
    empty.write_text("")
    process = rd_latency(streaming_bundle, *target.words(known_hosts=str(empty)))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, (out, err)
    assert empty.read_text() == ""


def test_no_python_there_is_not_measured(start_sshd, rd_latency, streaming_bundle):
    target = start_sshd()
    process = rd_latency(streaming_bundle, *target.words(python="python3-not-there"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, (out, err)
    assert "there is no python3-not-there" in out
    assert target.left_behind() == []


def test_no_numpy_there_is_not_measured_and_says_what_to_install(start_sshd, rd_latency, streaming_bundle, tmp_path):
    target, bare = start_sshd(), tmp_path / "bare"
    venv.create(bare)
    process = rd_latency(streaming_bundle, *target.words(python=str(bare / "bin" / "python")))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, (out, err)
    assert "the device lacks a module" in out and "pip install numpy" in out
    assert target.left_behind() == []


def test_no_space_there_is_not_measured(start_sshd, rd_latency, streaming_bundle, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        target = start_sshd(temporary=small)
        process = rd_latency(streaming_bundle, *target.words())
        out, err = process.communicate(timeout=60)
        assert process.returncode == 4, (out, err)
        assert "no space on the device" in out and str(small) in out
        assert target.left_behind() == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_one_dead_device_does_not_hide_the_other(start_sshd, rd_latency, streaming_bundle, tmp_path):
    target, fleet = start_sshd(), tmp_path / "fleet.toml"
    fleet.write_text(
        f'[device.alive]\nprofile = "raspberry-pi-5"\naddress = "{target.user}@127.0.0.1:{target.port}"\n'
        '[device.dead]\nprofile = "jetson-orin-nano"\naddress = "nobody@127.0.0.1:1"\n'
    )
    words = [
        "--fleet",
        fleet,
        "--device",
        "dead",
        "--device",
        "alive",
        "--seconds",
        1,
        "--json",
        tmp_path / "out.json",
    ]
    access = target.words()[4:]
    process = rd_latency(streaming_bundle, *words, *access)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, (out, err)
    verdicts = {o["device"]: o["verdict"] for o in json.loads((tmp_path / "out.json").read_text())["outcomes"]}
    assert verdicts == {"dead": "unreachable", "alive": "pass"}
    assert "Connection refused" in out and "latency p50" in out


@pytest.mark.parametrize(
    "address", ["", "a b", "-oProxyCommand=x", "user@", "host:0", "host:99999", "u@-oFoo", "host:22:33"]
)
def test_unusable_addresses_are_refused(address):
    with pytest.raises(RdError, match="is not an address"):
        Ssh.parse(address, SshSettings())


def test_addresses_keep_user_host_and_port():
    ssh = Ssh.parse("ci@[::1]:2222", SshSettings(identity="key"))
    assert (ssh.user, ssh.host, ssh.port) == ("ci", "::1", 2222)
    command = ssh.client()
    assert command[-2:] == ["--", "::1"]
    assert "StrictHostKeyChecking=yes" in command and "BatchMode=yes" in command
