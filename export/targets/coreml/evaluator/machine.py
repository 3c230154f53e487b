"""Runs a MIL program in NumPy.

What it says about half precision: every operation computes in float32 on its arguments as they are stored, and its
result is rounded to the type that the program declares for it. Real processors sum in whatever width they have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Each registers its operations.
import reuse_distill.export.targets.coreml.evaluator.arithmetic
import reuse_distill.export.targets.coreml.evaluator.layout  # noqa: F401
from reuse_distill.export.targets.coreml.evaluator.registry import OPERATIONS
from reuse_distill.export.targets.coreml.mil_program import MilOperation, MilProgram, MilType, read_program
from reuse_distill.runtime.errors import RdError

STATE_OPERATIONS = ("read_state", "write_state")


class Evaluator:
    """A loaded package. States of a stream are passed in and written to; none is kept here."""

    def __init__(self, program: MilProgram) -> None:
        unknown = sorted({o.kind for o in program.operations} - {*OPERATIONS, *STATE_OPERATIONS})
        if unknown:
            raise RdError(
                f"the evaluator does not know the MIL operation {', '.join(unknown)}",
                hint="it knows what our own exports use; compare this package on a Mac",
            )
        self.program = program
        self.constants = {name: _stored(value) for name, value in program.constants.items()}
        live, constant = [], set(self.constants)
        for operation in program.operations:
            if operation.arguments and constant.issuperset(_names(operation)):
                self.constants.update(self._computed(operation, self.constants))
                constant.update(operation.outputs)
            else:
                live.append(operation)
        self.live = tuple(live)

    @classmethod
    def load(cls, package: Path) -> Evaluator:
        """Raises RdError that names an operation which is not known."""
        return cls(read_program(package))

    def new_states(self) -> dict[str, np.ndarray]:
        """Zeros for every state that the program keeps itself."""
        return {name: np.zeros(kind.shape, kind.dtype) for name, kind in self.program.states.items()}

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        states: dict[str, np.ndarray] | None = None,
        also: Iterable[str] = (),
    ) -> dict[str, np.ndarray]:
        """Outputs by name, and the values called ``also``; ``states`` is updated in place.

        Raises RdError where an input is missing or has another shape or type than the program declares.
        """
        results = {*self.program.outputs, *also}
        values: dict[str, Any] = {**self.constants, **self._checked(inputs)}
        last = {name: index for index, operation in enumerate(self.live) for name in _names(operation)}
        for index, operation in enumerate(self.live):
            if operation.kind == "read_state":
                values[operation.outputs[0]] = _held(states, operation)
            elif operation.kind == "write_state":
                _held(states, operation)
                assert states is not None  # noqa: S101  (_held has seen to it)
                states[operation.arguments["input"][0]] = values[operation.arguments["data"][0]]
            else:
                values.update(self._computed(operation, values))
            for name in _names(operation):
                if last.get(name) == index and name not in results:
                    values.pop(name, None)
        return {name: values[name] for name in results}

    def _computed(self, operation: MilOperation, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        arguments = {}
        for key, names in operation.arguments.items():
            operands = tuple(_wide(values[name]) for name in names)
            arguments[key] = operands if key == "values" else operands[0]
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                result = OPERATIONS[operation.kind](arguments)
                results = result if isinstance(result, tuple) else (result,)
                pairs = zip(operation.outputs, operation.types, results, strict=True)
                return {name: np.asarray(value).astype(kind.dtype, copy=False) for name, kind, value in pairs}
        except NotImplementedError as error:
            raise RdError(f"{operation.name}: the evaluator does not know {error}") from None

    def _checked(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, kind in self.program.inputs.items():
            if name not in inputs:
                raise RdError(f"input {name} is missing; the package takes {', '.join(self.program.inputs)}")
            _check_input(name, inputs[name], kind)
        return {name: inputs[name] for name in self.program.inputs}


def _check_input(name: str, value: np.ndarray, kind: MilType) -> None:
    fits = value.ndim == len(kind.shape) and all(b in (-1, a) for a, b in zip(value.shape, kind.shape, strict=True))
    if not fits or value.dtype != kind.dtype:
        raise RdError(f"input {name} is {value.dtype} {value.shape}, the package takes {kind.dtype} {kind.shape}")


def _held(states: dict[str, np.ndarray] | None, operation: MilOperation) -> np.ndarray:
    name = operation.arguments["input"][0]
    if states is None or name not in states:
        raise RdError(f"state {name} was not given", hint="start from Evaluator.new_states()")
    return states[name]


def _names(operation: MilOperation) -> list[str]:
    return [name for names in operation.arguments.values() for name in names]


def _stored(value: Any) -> Any:
    return value if isinstance(value, str) else np.asarray(value)


def _wide(value: Any) -> Any:
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float16 else value
