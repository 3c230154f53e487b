"""coremltools, imported when it is needed and without its own messages."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from reuse_distill.runtime.errors import RdError, install_hint


def coremltools() -> Any:
    """The converter's module; raises RdError that names the extra where it is missing."""
    try:
        with quiet():
            import coremltools
    except ImportError as error:
        raise RdError(f"{error.name} is not installed", hint=install_hint("export", "coreml")) from None
    return coremltools


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """coremltools draws progress bars and warns about its own optional parts: not the user's concern."""
    loggers = [
        logging.getLogger(name) for name in ("coremltools", "torch.export", "torch.__trace", "torch.utils._pytree")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


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
