"""runtime/cli/command_line.py: what all four programs answer alike."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from reuse_distill.runtime import __version__
from reuse_distill.runtime.cli.command_line import SHELLS, Command, CommandParser

PROGRAMS = {
    "rd-distill": "reuse_distill.distill.cli",
    "rd-export": "reuse_distill.export.rd_export",
    "rd-stream": "reuse_distill.runtime.rd_stream",
    "rd-latency": "reuse_distill.devices.rd_latency",
}
# Nothing of these may be needed for help, version, completion or a usage error.
HEAVY = ["numpy", "torch", "onnx", "onnxruntime", "transformers", "lightning_fabric", "lhotse", "scipy", "yaml"]
HEAVY += ["soundfile"]
BLOCKED = """
import contextlib, io, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise ImportError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
from {module} import main
answers = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as stopped:
            status = stopped.code
    answers.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


class Answer(NamedTuple):
    status: int | None
    out: str
    err: str


@cache
def answers(program: str) -> dict[tuple[str, ...], Answer]:
    """What the program answers to all commands of this file, in one process without the heavy packages."""
    commands = [words for name, words in COMMANDS if name == program]
    code = BLOCKED.format(heavy=set(HEAVY), module=PROGRAMS[program])
    run = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True)
    return {tuple(words): Answer(*answer) for words, answer in zip(commands, json.loads(done.stdout), strict=True)}


def blocked(program: str, *words: str) -> Answer:
    return answers(program)[words]


HELP = [(program, [word]) for program in PROGRAMS for word in ("--help", "help")] + [
    ("rd-export", ["set", "--help"]),
    ("rd-export", ["finish", "--help"]),
    ("rd-export", ["check", "--help"]),
    ("rd-latency", ["devices", "--help"]),
    ("rd-latency", ["estimate", "--help"]),
    *[("rd-distill", [command, "--help"]) for command in ("run", "recipes", "prepare", "evaluate")],
]


MISTYPED = [
    ("rd-stream", ["a.wav", "--ouput", "x.npy"], "unknown option --ouput", "did you mean --output?"),
    ("rd-export", ["student", "--outptu", "b"], "unknown option --outptu", "did you mean --output?"),
    (
        "rd-export",
        ["s", "--output", "b", "--target", "onxx"],
        "--target: unknown value 'onxx'",
        "did you mean 'onnx'",
    ),
    (
        "rd-export",
        ["chekc", "bundle"],
        "'chekc' is neither a command of rd-export nor a path",
        "did you mean 'check'",
    ),
    ("rd-export", ["check", "--devcie", "x"], "unknown option --devcie", "did you mean --device?"),
    ("rd-latency", ["device"], "'device' is neither a command of rd-latency nor a path", "did you mean 'devices'"),
    ("rd-latency", ["b", "--buget", "x"], "unknown option --buget", "did you mean --budget?"),
    ("rd-distill", ["evalute", "s"], "unknown command 'evalute'", "did you mean 'evaluate'"),
    ("rd-distill", ["run", "r", "--taecher", "t"], "unknown option --taecher", "did you mean --teacher?"),
    (
        "rd-distill",
        ["run", "r", "--device", "gpu"],
        "--device: unknown value 'gpu'",
        "did you mean 'cpu'? one of auto, cpu, cuda",
    ),
    ("rd-stream", ["a.wav", "--threads", "x"], "--threads: 'x' is not a whole number", "see rd-stream --help"),
    ("rd-latency", ["b", "--seconds", "1m"], "--seconds: '1m' is not a number", "see rd-latency --help"),
    (
        "rd-latency",
        ["b", "--streams", "many"],
        "--streams: 'many' is neither a whole number nor auto",
        "see rd-latency --help",
    ),
    ("rd-distill", ["--hlep"], "unknown option --hlep", "did you mean --help?"),
    ("rd-distill", [], "no command", "one of run, targets, "),
]
WITHOUT_TORCH = {"rd-export": ["student", "--output", "bundle"], "rd-distill": ["recipes"]}
COMMANDS = [
    *HELP,
    *[(program, words) for program, words, _, _ in MISTYPED],
    *[(program, ["--version"]) for program in PROGRAMS],
    *[(program, ["--print-completion", shell]) for program in PROGRAMS for shell in SHELLS],
    *WITHOUT_TORCH.items(),
]


@pytest.mark.parametrize(("program", "words"), HELP, ids=lambda value: value if isinstance(value, str) else value[0])
def test_help_needs_none_of_the_heavy_packages(program: str, words: list[str]) -> None:
    status, out, err = blocked(program, *words)
    assert (status, err) == (0, "")
    assert program in out


@pytest.mark.parametrize("program", PROGRAMS)
def test_version(program: str) -> None:
    assert blocked(program, "--version").out == f"{program} {__version__}\n"


@pytest.mark.parametrize("program", WITHOUT_TORCH)
def test_what_needs_torch_says_so_without_it(program: str) -> None:
    done = blocked(program, *WITHOUT_TORCH[program])
    assert done.status == 2
    assert "is not installed" in done.err and "hint: pip install" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("program", "words", "message", "hint"), MISTYPED)
def test_a_mistyped_word_is_named_with_the_nearest(program: str, words: list[str], message: str, hint: str) -> None:
    done = blocked(program, *words)
    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith(f"error: {message}\n\nhint: {hint}")


def test_commands_stand_in_the_help() -> None:
    for program, commands in {"rd-export": ("set", "finish", "check"), "rd-latency": ("devices", "estimate")}.items():
        text = blocked(program, "--help").out
        for command in commands:
            assert re.search(rf"^  {command} +\w", text, re.MULTILINE), text


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_completion_scripts_know_commands_and_options(program: str, shell: str) -> None:
    done = blocked(program, "--print-completion", shell)
    assert done.status == 0, done.err
    words = {
        "rd-distill": ("evaluate", "recipes", "teacher"),
        "rd-export": ("finish", "check", "calibration", "executorch"),
        "rd-stream": ("provider", "certify"),
        "rd-latency": ("estimate", "devices", "save-baseline"),
    }[program]
    assert [word for word in words if word not in done.out] == []


def bash_completions(script: Path, line: str) -> list[str]:
    """What bash offers at the end of ``line``."""
    code = f"""
source {script}
COMP_LINE={line!r}; COMP_WORDS=({line}{' ""' if line.endswith(" ") else ""}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p rd-export | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    return done.stdout.split()


def test_bash_completes(tmp_path: Path) -> None:
    script = tmp_path / "rd-export.bash"
    script.write_text(blocked("rd-export", "--print-completion", "bash").out)
    assert bash_completions(script, "rd-export --tar") == ["--target"]
    assert "executorch" in bash_completions(script, "rd-export --target exec")
    assert bash_completions(script, "rd-export fin") == ["finish"]
    assert bash_completions(script, "rd-export check --jet") == ["--jetpack"]


def test_an_option_that_begins_another_is_taken() -> None:
    parser = CommandParser(prog="x")
    parser.add_argument("--output")
    assert parser.parse_args(["--out", "a"]).output == "a"
    assert parser.parse_args(["--out=a"]).output == "a"


def test_words_after_two_dashes_and_words_with_spaces_are_no_options(capsys) -> None:
    parser = CommandParser(prog="x")
    parser.add_argument("words", nargs="*")
    assert parser.parse_args(["--", "--no-option"]).words == ["--no-option"]
    assert parser.parse_args(["--not an option"]).words == ["--not an option"]


def test_a_path_that_looks_like_a_command_is_a_path(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "chekc").mkdir()
    monkeypatch.chdir(tmp_path)
    parser = CommandParser(prog="x", commands={"check": Command("checks", lambda: CommandParser(prog="x check"))})
    parser.add_argument("path")
    assert parser.parse_args(["chekc"]).path == "chekc"
    with pytest.raises(SystemExit):
        parser.parse_args(["chec"])


def test_names_of_presets_and_formats_are_those_of_the_code() -> None:
    """Parsers name them without importing what they belong to."""
    pytest.importorskip("torch")
    from reuse_distill.export.export_options import JETPACK_NAMES, PRESET_NAMES, REGISTRY
    from reuse_distill.export.quantise.options import PRESETS
    from reuse_distill.export.targets import find_target
    from reuse_distill.export.targets.tensorrt.jetpack_rules import JETPACKS
    from reuse_distill.runtime.audio.samples import PCM_DTYPES
    from reuse_distill.runtime.rd_stream import PCM_FORMATS

    assert tuple(PRESETS) == PRESET_NAMES
    assert tuple(JETPACKS) == JETPACK_NAMES
    assert tuple(PCM_DTYPES) == PCM_FORMATS
    assert all(find_target(name) for name in REGISTRY)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_and_command_has_help(program: str) -> None:
    module = {
        "rd-distill": "reuse_distill.distill.cli",
        "rd-export": "reuse_distill.export.export_options",
        "rd-stream": "reuse_distill.runtime.rd_stream",
        "rd-latency": "reuse_distill.devices.cli.latency_options",
    }[program]
    name = {"rd-export": "export_parser", "rd-latency": "measure_parser"}.get(program, "parser")
    parser = getattr(importlib.import_module(module), name)()
    assert [action.dest for action in parser._actions if not action.help] in ([], ["command"])
