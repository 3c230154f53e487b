"""What docs/ci.md and the CI kit tell people to do, done."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from reuse_distill.devices.cli.latency_options import parse
from reuse_distill.devices.judging.budgets import read_budget
from reuse_distill.devices.measuring.measurement import METRICS
from reuse_distill.devices.transports.fleet import Access, devices, read_fleet

ROOT = Path(__file__).resolve().parents[2]
SET = {
    "BUNDLE": "my bundle", "DEVICES": "shelf-orin-1 shelf-pi-5", "FLEET": "fleet.toml", "BUDGET": "budget.toml",
    "BASELINE": "base.json", "MODE": "back-to-back", "STREAMS": "8", "REMOTE_PYTHON": "/opt/python", "IDENTITY": "key",
}  # fmt: skip


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs/ci.md").read_text(), re.S)


def test_the_fleet_and_the_budget_of_the_page_are_what_the_program_reads(tmp_path):
    fleet_text, budget_text = blocks("toml")
    (tmp_path / "fleet.toml").write_text(fleet_text)
    (tmp_path / "budget.toml").write_text(budget_text)
    fleet = read_fleet(tmp_path / "fleet.toml")
    (device,) = devices(["shelf-orin-1"], hosts=(), fleet=fleet, access=Access())
    assert device.transport.address == "ci@10.0.0.12" and device.profile.name == "jetson-orin-nano"
    facts = {
        "device": "shelf-orin-1",
        "kind": "streaming",
        "precision": "int8",
        "mode": "paced",
        "streams": 1,
    }
    limits = read_budget(tmp_path / "budget.toml").limits(facts)
    assert limits["p99"] == 40 and limits["peak_memory"] == 250e6


def test_the_page_names_every_limit_there_is():
    text = (ROOT / "docs/ci.md").read_text()
    named = re.search(r"Keys: `([^`]+)`", text)
    assert named and set(named[1].split()) == set(METRICS)


def scripts():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github/workflows/latency.yml").read_text())
    steps = workflow["jobs"]["measure"]["steps"]
    github = next(step for step in steps if step.get("name") == "Measure and judge")
    assert set(github["env"]) == set(SET)
    gitlab = yaml.safe_load((ROOT / "ci/gitlab-latency.yml").read_text())["latency"]
    assert set(gitlab["variables"]) == set(SET)
    return {"bash": github["run"], "sh": gitlab["script"][0]}


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_ci_kit_calls_the_program_with_words_that_it_takes(tmp_path, shell):
    stand_in = tmp_path / "rd-latency"
    stand_in.write_text(f'#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done > {tmp_path}/words\nexit 1\n')
    stand_in.chmod(0o755)
    env = {**os.environ, **SET, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([shell, "-e", "-c", scripts()[shell]], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # the job is red when rd-latency is
    options = parse((tmp_path / "words").read_text().splitlines())
    assert options.bundle == Path("my bundle") and options.devices == ("shelf-orin-1", "shelf-pi-5")
    assert options.request.mode == "back-to-back" and options.request.streams == 8
    assert options.access.ssh.python == "/opt/python" and options.access.ssh.identity == "key"
    assert options.baseline == Path("base.json") and options.junit == Path("latency/junit.xml")
