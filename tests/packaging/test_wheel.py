"""The wheel in an environment with nothing but its light dependencies, beside a user's own ``runtime.py``."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEECH = ROOT / "demo" / "speech" / "cora-3.flac"
LIGHT = ("numpy", "onnxruntime", "soundfile", "soxr", "shtab", *(["tomli"] if sys.version_info < (3, 11) else []))
HEAVY = ("torch", "onnx", "transformers", "lightning_fabric", "yaml", "safetensors", "scipy")

pytestmark = pytest.mark.slow


def needed(names: tuple[str, ...]) -> set[str]:
    """The distributions and everything that they require, as installed here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        found.add(name)
        waiting += [re.split(r"[ ;<>=!~\[(]", line, maxsplit=1)[0] for line in requires if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``env`` (the wheel and its light dependencies, linked from here) and a user's own modules."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    try:
        subprocess.run([sys.executable, "-m", "pip", "--version"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        pytest.skip("this environment has no pip")
    source = folder / "source"  # setuptools writes beside what it builds
    subprocess.run(["cp", "-r", *_tracked_folders(), str(_made(source))], check=True)
    subprocess.run([*build, str(source)], check=True, capture_output=True, timeout=600)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    site = next((folder / "env").glob("lib/python*/site-packages"))
    for name in needed(LIGHT):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))).resolve())
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "env" / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    for name in ("runtime", "export", "student", "devices", "distill"):
        (folder / f"{name}.py").write_text(f"OWNER = 'the user of {name}'\n")
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _tracked_folders() -> list[str]:
    """Top-level entries of the checkout that git knows: no environment, no caches."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    tops = sorted({line.split("/")[0] for line in listed.stdout.splitlines()})
    return [str(ROOT / top) for top in tops if (ROOT / top).exists()]


def run(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A program of the environment, in the user's folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    program = place / "env" / "bin" / words[0]
    return subprocess.run(
        [str(program), *words[1:]], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )


def test_nothing_heavy_is_there(place: Path) -> None:
    code = f"import importlib.util as u; print([n for n in {HEAVY} if u.find_spec(n)])"
    assert run(place, "python", "-c", code).stdout.strip() == "[]"


def test_a_users_own_modules_stay_the_users(place: Path) -> None:
    code = (
        "import runtime, export, reuse_distill as rd\n"
        "from reuse_distill import runtime as ours\n"
        "print(runtime.OWNER, '|', export.OWNER, '|', rd.load().selftest().passed, '|', ours.__file__)"
    )
    done = run(place, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    user, other, passed, file = done.stdout.strip().split(" | ")
    assert (user, other, passed) == ("the user of runtime", "the user of export", "True")
    assert "site-packages/reuse_distill/runtime" in file


def test_rd_stream_and_rd_latency_run(place: Path) -> None:
    done = run(place, "rd-stream", str(SPEECH), "--output", "out.jsonl")
    assert done.returncode == 0, done.stderr
    lines = (place / "out.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["index"] == len(lines) - 1 > 10
    done = run(place, "rd-stream", "--certify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(place.glob("env/**/certificate.json"))
    assert run(place, "rd-latency", "devices").returncode == 0
    done = run(place, "rd-latency", "--back-to-back", "--seconds", "2", "--json", "latency.json")
    assert done.returncode == 0, done.stderr
    assert (place / "latency.json").is_file()


@pytest.mark.parametrize("program", ["rd-stream", "rd-latency", "rd-export", "rd-distill"])
def test_every_program_explains_itself(program: str, place: Path) -> None:
    for option in ("--help", "--version"):
        done = run(place, program, option)
        assert done.returncode == 0, done.stderr
        assert program in done.stdout


@pytest.mark.parametrize("words", [["rd-export", "student", "--output", "bundle"], ["rd-distill", "recipes"]])
def test_what_needs_torch_says_so(words: list[str], place: Path) -> None:
    done = run(place, *words)
    assert done.returncode == 2
    assert re.match(r"error: \w+ is not installed.*\n\nhint: pip install", done.stderr), done.stderr
