"""The one error that users see: what is wrong, both values, and what to do about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import wraps

EXIT_USAGE = 2


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


def nearest(name: str, known: Sequence[str]) -> str:
    """``did you mean 'x'?`` for the shortest name that begins so, else the nearest one, or the list of known names."""
    begin = sorted((other for other in known if name and other.startswith(name)), key=len)
    close = begin or get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"


def cli(main: Callable[[Sequence[str] | None], int]) -> Callable[[Sequence[str] | None], int]:
    """Turn ``RdError`` into ``error: …``, a blank line, ``hint: …`` on stderr and exit status 2."""

    @wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except RdError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USAGE
        except KeyboardInterrupt as error:
            print(f"\nstopped{f': {error}' if str(error) else ''}", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader of our output has gone (`rd-stream … | head`): not an error of ours. Without another place
            # for what is still buffered, Python would complain about it when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if error.filename is None:
                raise
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            return EXIT_USAGE

    return wrapped
