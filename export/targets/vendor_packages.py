"""Packages of vendors: imported when needed, quiet, their failures in their own words."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

from reuse_distill.runtime.errors import RdError

VERIFIED = "see constraints.txt for the versions that this was verified with"


def imported(module: str, *, hint: str) -> Any:
    """``module`` of a vendor's package; raises RdError with ``hint``, which names the extra, where it is missing."""
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise RdError(f"{error.name or module} is not installed", hint=hint) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the packages tell about themselves: on their loggers, as warnings and straight to stderr."""
    level = logging.root.manager.disable
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():  # noqa: PTH123
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            with contextlib.redirect_stdout(nowhere):
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            logging.disable(level)


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Quiet, and any failure of the vendor's tool as an RdError with the first line of its own message."""
    try:
        with quiet():
            yield
    except (RdError, OSError):
        raise
    except Exception as error:
        raise RdError(f"{what}: {first_line(error)}", hint=VERIFIED) from error


def first_line(error: BaseException) -> str:
    """What a vendor's tool itself failed on, under its own layers of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
