"""The runner shows what it runs, keeps its status and stops at a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
from reuse_distill.runtime.errors import RdError

from demo import demo_steps as commands
from demo import run


@pytest.fixture
def fake_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs in place of the console scripts: `ends N` ends with status N."""
    script = tmp_path / "ends"
    script.write_text('#!/bin/sh\necho "said: $2"\nexit "$1"\n')
    script.chmod(0o755)
    (tmp_path / "python").touch()
    monkeypatch.setattr(commands.sys, "executable", str(tmp_path / "python"))
    return tmp_path


def test_command_is_shown_before_its_output(fake_scripts: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = commands.Runner(2)
    step = runner.run("say something", ["ends", "0", "two words"])
    assert (step.status, step.command) == (0, "ends 0 'two words'")
    out = capfd.readouterr().out
    assert out.index("[1/2] say something") < out.index("$ ends 0 'two words'") < out.index("said: two words")


def test_failure_stops_unless_accepted(fake_scripts: Path) -> None:
    runner = commands.Runner(2)
    assert runner.run("over budget", ["ends", "1"], accepted=(0, 1)).status == 1
    with pytest.raises(RdError, match="ended with status 2"):
        runner.run("breaks", ["ends", "2"], accepted=(0, 1))
    assert [step.status for step in runner.steps] == [1, 2]


@pytest.mark.parametrize("cores", [1, 2])
def test_commands_that_run_together_are_shown_apart(
    fake_scripts: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], cores: int
) -> None:
    monkeypatch.setattr(commands, "_cores", lambda: cores)
    runner = commands.Runner(2)
    both = [commands.DemoCommand(title, ["ends", "0", title]) for title in ("first", "second")]
    assert [step.title for step in runner.run_together(both)] == ["first", "second"]
    shown = ["[1/2] first", "$ ends 0 first", "said: first", "[2/2] second", "$ ends 0 second", "said: second"]
    out = capfd.readouterr().out
    assert sorted(shown, key=out.index) == shown


def test_a_failure_among_commands_that_run_together_waits_for_the_others(
    fake_scripts: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "_cores", lambda: 2)
    runner = commands.Runner(2)
    with pytest.raises(RdError, match="ended with status 3"):
        runner.run_together(
            [commands.DemoCommand("breaks", ["ends", "3"]), commands.DemoCommand("works", ["ends", "0", "ok"])]
        )
    assert [step.status for step in runner.steps] == [3, 0]
    assert "said: ok" in capfd.readouterr().out


def test_missing_script_names_the_way_out(fake_scripts: Path) -> None:
    with pytest.raises(RdError, match="rd-nothing is not installed") as caught:
        commands.Runner(1).run("x", ["rd-nothing"])
    assert "make demo" in str(caught.value)


def test_only_what_the_demo_made_is_emptied(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run.empty(out)
    (out / "old.txt").touch()
    run.empty(out)
    assert not (out / "old.txt").exists()
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.txt").touch()
    with pytest.raises(RdError, match="not made by the demo"):
        run.empty(precious)
    assert (precious / "chapter.txt").exists()


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("3", "3")])
def test_one_thread_unless_the_user_says_otherwise(
    fake_scripts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    given: str | None,
    used: str,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    (fake_scripts / "threads").write_text('#!/bin/sh\necho "threads: $OMP_NUM_THREADS"\n')
    (fake_scripts / "threads").chmod(0o755)
    commands.Runner(1).run("look", ["threads"])
    assert f"threads: {used}" in capfd.readouterr().out
