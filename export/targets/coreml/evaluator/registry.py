"""Which function computes which MIL operation. A function gets the arguments by name and returns the value(s)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Arguments = dict[str, Any]  # arrays, strings, and tuples of arrays for variadic arguments
Function = Callable[[Arguments], Any]

OPERATIONS: dict[str, Function] = {}


def operation(*names: str) -> Callable[[Function], Function]:
    """Register the function as the one for the operations called ``names``."""

    def register(function: Function) -> Function:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return register
