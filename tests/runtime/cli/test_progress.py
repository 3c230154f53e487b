"""runtime/cli/progress.py: what a person sees of a long run, and what a log file does not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from reuse_distill.runtime.cli.progress import Progress, duration, print_header, print_next, with_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(stream: io.StringIO, total: float | None, steps: int, step_s: float) -> list[str]:
    """What is drawn while ``steps`` steps of ``step_s`` seconds are done."""
    clock = Clock()
    with Progress("certify", total, unit="passes", stream=stream, clock=clock) as progress:
        for done in range(1, steps + 1):
            clock.now += step_s
            progress.update(done, f"pass {done}")
    return [line.rstrip() for line in stream.getvalue().split("\r") if line.strip()]


def test_time_left_of_a_long_run() -> None:
    lines = run(Terminal(), 40, 40, 3.0)
    assert lines[0] == "certify:   2% of 40 passes, 1 min 57 s left  pass 1"
    assert lines[9] == "certify:  25% of 40 passes, 1 min 30 s left  pass 10"
    assert lines[-1] == "certify: 100% of 40 passes, 0 s left  pass 40"


def test_a_short_run_shows_nothing() -> None:
    assert run(Terminal(), 40, 40, 0.2) == []


def test_a_run_without_a_known_length_shows_what_is_done() -> None:
    lines = run(Terminal(), None, 9, 2.0)
    assert lines[0] == "certify: 3 passes, 6 s so far  pass 3"


def test_the_line_is_cleared_and_never_longer_than_a_terminal() -> None:
    stream, clock = Terminal(), Clock()
    with Progress("x", 100, stream=stream, clock=clock) as progress:
        clock.now = 5.0
        progress.update(1, "a" * 300)
    drawn = stream.getvalue().split("\r")
    assert max(map(len, drawn)) == 79
    assert stream.getvalue().endswith("\r" + " " * 79 + "\r")


def test_nothing_goes_to_a_file() -> None:
    assert run(io.StringIO(), 40, 40, 3.0) == []


def test_lines_are_not_drawn_more_often_than_a_person_reads() -> None:
    assert len(run(Terminal(), 100_000, 10_000, 0.001)) <= 50


def test_items_pass_through(capsys) -> None:
    assert list(with_progress([1, 2, 3], "count")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_header_and_next_command_are_on_stderr(capsys) -> None:
    print_header("rd-stream", [("bundle", Path("b")), ("precision", "int8"), ("device", None)])
    print_next("rd-stream", Path("a talk.wav"), "bundle")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "rd-stream\n  bundle     b\n  precision  int8\nnext: rd-stream 'a talk.wav' bundle\n"
