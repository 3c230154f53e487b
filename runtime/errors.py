"""The one error that users see: what is wrong, both values, and what to do about it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from types import FrameType

EXIT_USAGE = 2
EXIT_TERMINATED = 128 + signal.SIGTERM


class RdError(Exception):
    """A mistake or an obstacle that the user can put right.

    ``message`` names the thing and both values (found and expected); ``hint`` says what to do.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = printable(message)  # names and values in it may come from an untrusted file
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else printable(hint)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n\nhint: {self.hint}"


CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """``text`` with control characters (escape sequences of a terminal, carriage returns) written as ``\\x1b``."""
    return text.translate(CONTROL)


def install_hint(*extras: str) -> str:
    """How to install what ``extras`` of this package bring: also from a checkout that is on no package index."""
    return f'pip install ".[{",".join(extras)}]" in the checkout, or pip install "reuse-distill[{",".join(extras)}]"'


def nearest(name: str, known: Sequence[str]) -> str:
    """``did you mean 'x'?`` for the shortest name that begins so, else the nearest one, or the list of known names."""
    begin = sorted((other for other in known if name and other.startswith(name)), key=len)
    close = begin or get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def cli(main: Callable[[Sequence[str] | None], int]) -> Callable[[Sequence[str] | None], int]:
    """Turn ``RdError`` into ``error: …``, a blank line, ``hint: …`` on stderr and exit status 2.

    A full disk, a closed stream and a lack of memory are reported in the same way; a reader of our output that has gone
    is no error; SIGTERM ends a command as Ctrl-C does, so that nothing half written is left behind.
    """

    @wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            with _terminated_like_ctrl_c():
                return main(argv)
        except RdError as error:
            return _report(f"error: {error}")
        except Terminated:
            _say("stopped by SIGTERM")
            return EXIT_TERMINATED
        except KeyboardInterrupt as error:
            _say(f"\nstopped{f': {error}' if str(error) else ''}")
            return 130
        except MemoryError:
            return _report("error: not enough memory\n\nhint: stream instead of whole utterances, or shorter pieces")
        except BrokenPipeError:
            # The reader of our output has gone (`rd-stream … | head`): not an error of ours. Without another place
            # for what is still buffered, Python would complain about it when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if error.errno is None:  # not the system's: a mistake of the program
                raise
            where = "" if error.filename is None else f"{printable(str(error.filename))}: "
            return _report(f"error: {where}{error.strerror or error}")

    return wrapped


class Terminated(BaseException):
    """SIGTERM has come; raised in the main thread."""


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """SIGTERM raises ``Terminated`` inside the block, where nobody else handles it and this is the main thread."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _report(text: str) -> int:
    _say(text)
    return EXIT_USAGE


def _say(text: str) -> None:
    if sys.stderr is not None:  # closed: nobody reads it
        print(text, file=sys.stderr)
