"""Packages of vendors: imported when needed, quiet, their failures in their own words, and one repaired."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

from reuse_distill.runtime.errors import RdError, install_hint

VERIFIED = "see constraints.txt for the versions that this was verified with"


def imported(module: str, *, hint: str) -> Any:
    """``module`` of a vendor's package; raises RdError with ``hint``, which names the extra, where it is missing."""
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise RdError(f"{error.name or module} is not installed", hint=hint) from None


def coremltools() -> Any:
    """The converter's module; raises RdError that names the extra where it is missing."""
    return imported("coremltools", hint=install_hint("export", "coreml"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the packages tell about themselves: loggers, warnings, progress bars, and straight to stderr."""
    level = logging.root.manager.disable
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():  # noqa: PTH123
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
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


@contextlib.contextmanager
def whole_sizes() -> Iterator[None]:
    """While converting: a size divided by a number stays a whole number.

    coremltools 9.0 makes floats of it, and half precision knows no size above 2048 exactly.
    """
    coremltools()
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    name = "floordiv"  # of sizes; tensors are divided by floor_divide
    before = _TORCH_OPS_REGISTRY.get_func(name)

    def floordiv(context: Any, node: Any) -> None:
        size, number = (context[i] if isinstance(i, str) else i for i in node.inputs)
        context.add(Builder.floor_div(x=size, y=number, name=node.name))

    register_torch_op(floordiv, override=True)
    try:
        yield
    finally:
        _TORCH_OPS_REGISTRY.set_func_by_name(before, name)
