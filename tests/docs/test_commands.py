"""What the README and the documentation tell people to type is taken by the programs; what they link to exists."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from reuse_distill.devices.cli.latency_options import devices_parser, estimate_parser
from reuse_distill.devices.cli.latency_options import parse as parse_latency
from reuse_distill.devices.judging.budgets import read_budget
from reuse_distill.devices.rehearsal.rehearse_options import rehearse_parser
from reuse_distill.export.export_options import export_command, export_parsers
from reuse_distill.runtime.rd_stream import parser as stream_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ("rd-distill", "rd-export", "rd-stream", "rd-latency")


def commands() -> list[tuple[str, str]]:
    """(page, command) for every line of a code block that starts with one of our programs, but for synopses."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.strip().removeprefix("$ ")
                if command.startswith(tuple(f"{script} " for script in SCRIPTS)) and not set("…[|$") & set(command):
                    found.append((page.name, command.split("  #")[0]))
    return found


def parse_distill(words: Sequence[str]) -> None:
    parser = importlib.import_module("reuse_distill.distill.cli").parser()
    rest = parser.parse_known_args(words)[1]
    assert all(re.fullmatch(r"[a-z_.]+=.+", word) for word in rest), rest


def parse_export(words: Sequence[str]) -> None:
    command, rest = export_command(words)
    export_parsers()[command].parse_args(rest)


def parse_stream(words: Sequence[str]) -> None:
    stream_parser().parse_args([word for word in words if word not in ("<", ">")])


def parse_devices(words: Sequence[str]) -> None:
    if words[0] == "devices":
        devices_parser().parse_args(words[1:])
        return
    if words[0] == "estimate":
        estimate_parser().parse_args(words[1:])
        return
    if words[0] == "rehearse":
        rehearse_parser().parse_args(words[1:])
        return
    given = parse_latency(words)
    shipped = {path.stem for path in (ROOT / "devices" / "profiles").glob("*.toml")}
    assert given.fleet is not None or {name.split("=")[0] for name in given.devices} <= shipped


PARSERS: dict[str, Callable[[Sequence[str]], None]] = {
    "rd-distill": parse_distill,
    "rd-export": parse_export,
    "rd-stream": parse_stream,
    "rd-latency": parse_devices,
}


def test_every_program_is_shown_in_the_readme() -> None:
    shown = {command.split()[0] for page, command in commands() if page == "README.md"}
    assert shown == set(SCRIPTS)


@pytest.mark.parametrize(("page", "command"), commands())
def test_command_is_taken(page: str, command: str) -> None:
    program, *words = shlex.split(command)
    PARSERS[program](words)


@pytest.mark.parametrize("script", SCRIPTS)
def test_program_is_installed_and_explains_itself(script: str) -> None:
    path = shutil.which(script, path=str(Path(sys.executable).parent))
    assert path, f"{script} is not beside {sys.executable}"
    shown = subprocess.run([path, "--help"], capture_output=True, text=True, check=True, timeout=120)
    assert script in shown.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {
        target
        for page in PAGES
        for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)\b(?!=)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named <= targets
    assert {"demo", "test", "test-all", "check", "bench", "clean"} <= targets


def test_recipes_that_are_named_ship() -> None:
    shipped = {path.stem for path in (ROOT / "distill" / "recipes").glob("*.yaml")}
    named = {shlex.split(c)[2] for _, c in commands() if c.startswith("rd-distill run ")}
    assert {name for name in named if not name.endswith(".yaml")} <= shipped


def test_the_demo_budget_is_a_budget_that_can_fail() -> None:
    budget = read_budget(ROOT / "demo" / "budget.toml")
    assert all(entry.limits for entry in budget.entries)


def test_constraints_pin_exactly_and_meet_what_the_project_asks_for() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9a-zA-Z.]+)( ; python_version >= \"3\.11\")?", line)
            assert match, line
            pins[match[1].lower().replace("_", "-")] = match[2]
    toml = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    asked = re.findall(r'^\s*"([A-Za-z0-9-]+)>=', toml, re.MULTILINE)
    optional = {"torchaudio", "sounddevice", "tomli", "coremltools", "executorch", "tensorrt", "setuptools"}
    assert {name.lower() for name in asked} - set(pins) <= optional
