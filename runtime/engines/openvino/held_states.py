"""A stateful OpenVINO model: each inference request keeps the states of one stream, or of one batch of streams.

The model's variables (ReadValue, Assign) are the manifest's states under the name that ``make_stateful`` gives them,
input and output joined. A request starts with zeros, as a stream does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from reuse_distill.runtime.bundle_format.manifest import Manifest, State
from reuse_distill.runtime.bundle_format.stepspec import FRESH, SAMPLES, StepSpec
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.state_pool import StatePool
from reuse_distill.runtime.streaming.whole_states import WholeStatePool, appended_states

if TYPE_CHECKING:
    from reuse_distill.runtime.engines.openvino.openvino_backend import OpenvinoBackend

STATES, ENGINE = "states", "engine"  # field of manifest.device, and its value for a stateful model


def variable_id(state: State) -> str:
    """The name of the variable that holds ``state``."""
    return f"{state.input}{state.output}"


def is_stateful(manifest: Manifest) -> bool:
    """Whether the manifest says that the model keeps the states."""
    return (manifest.device or {}).get(STATES) == ENGINE


def check_variables(model: Any, manifest: Manifest, where: object) -> dict[str, Port]:
    """The model's variables as ports, by name; none where the states are inputs and outputs.

    Raises RdError where the manifest says that the model keeps its states and it has none, or others, or the other
    way round: states that nobody resets would run from one stream into the next.
    """
    ports = {port.name: port for port in (_port(variable.get_info()) for variable in model.get_variables())}
    expected = {variable_id(state): state for state in manifest.states} if is_stateful(manifest) else {}
    if set(ports) == set(expected):
        return ports
    if not expected:
        problem = f"the model keeps {len(ports)} states of its own, the manifest says that states are inputs"
    elif not ports:
        problem = "the manifest says that the model keeps its states, and it keeps none"
    else:
        names = ", ".join(sorted(set(ports) ^ set(expected))[:5])
        problem = f"the model keeps {len(ports)} states, the manifest has {len(expected)}; they differ in {names}"
    raise RdError(f"{where}: {problem}", hint="the two are not of one export: export the bundle again")


def _port(info: Any) -> Port:
    """A variable as its file has it; what the file leaves open is not what a manifest may say."""
    shape = info.data_shape
    known = shape.rank.is_static
    sizes = tuple(size.get_length() if size.is_static else "?" for size in shape) if known else ("?",)
    try:
        kind = np.dtype(info.data_type.to_dtype()).name
    except (RuntimeError, TypeError, KeyError):  # text, or no type at all
        kind = "unknown"
    return Port(str(info.variable_id), kind, sizes)


class HeldStates:
    """The variables of one request under the names of the manifest's states."""

    def __init__(self, request: Any, states: Sequence[State], tensor: Any) -> None:
        variables = {variable.name: variable for variable in request.query_state()}
        self._variables = {state.name: variables[variable_id(state)] for state in states}
        self._tensor = tensor

    def reset(self) -> None:
        """All of them to zero."""
        for variable in self._variables.values():
            variable.reset()

    def read(self, name: str) -> np.ndarray:
        """A copy of the state ``name`` [B, ...]."""
        return np.array(self._variables[name].state.data)

    def write(self, name: str, value: np.ndarray) -> None:
        """Set the state ``name``; the engine takes a copy."""
        self._variables[name].state = self._tensor(np.array(value, order="C"))


class RequestStatePool(WholeStatePool):
    """``StatePool`` for a stateful model: rows of one batch share a request, and no state leaves it between steps."""

    def __init__(self, spec: StepSpec, backend: OpenvinoBackend, rows: int) -> None:
        moved = appended_states(spec)
        if moved or spec.batch is None or len(spec.choices) > 1:
            raise RdError(
                "a stateful model needs whole states, a fixed batch and steps of one size; this manifest has "
                f"{', '.join(moved) or 'no states'} to append, batch {spec.batch}, steps of {list(spec.choices)}",
                hint="export the bundle again",
            )
        for state in spec.states:
            port, shape = backend.inputs[state.input], (spec.batch, *state.row_shape)
            if port.shape != shape:
                raise RdError(
                    f"state {state.name}: the model's variable is {list(port.shape)}, the manifest says {list(shape)}",
                    hint="export the bundle again",
                )
        batches = -(-rows // spec.batch)
        super().__init__(spec, backend, batches * spec.batch)
        self._batch, buffers = spec.batch, self.buffers()
        self._calls, self._held = [], []
        for number in range(batches):
            part = slice(number * spec.batch, (number + 1) * spec.batch)
            inputs = {SAMPLES: buffers.samples[part], FRESH: buffers.fresh[part]}
            outputs = {name: array[part] for name, array in buffers.outputs.items()}
            call, held = backend.bind_held(inputs, outputs)
            self._calls.append(call)
            self._held.append(held)

    def starts_batch(self, row: int) -> bool:
        """Whether a request begins at ``row``."""
        return row % self._batch == 0

    def run(self, first: int, last: int, chunk: int | None = None) -> None:
        """One step of the request that holds the rows [first, last), all of its rows."""
        self._calls[first // self._batch]()

    def reset(self, row: int) -> None:
        """Row ``row`` back to the start of a stream: zeros."""
        if self._batch == 1:
            self._held[row].reset()
            return
        super().reset(row)

    def absorb(self, row: int, source: StatePool, source_row: int, chunk: int | None = None) -> None:
        """Take the state of ``source_row`` after the last step of ``source``; a request's own is there already."""
        if source is not self or source_row != row:
            self.copy_states(row, source, source_row)

    def absorb_range(self, first: int, last: int, chunk: int | None = None) -> None:
        """Nothing: the step itself has replaced the states."""

    def read_row(self, row: int) -> list[np.ndarray]:
        """Copies of the states of ``row``."""
        held = self._held[row // self._batch]
        return [np.array(held.read(state.name)[row % self._batch]) for state in self.spec.states]

    def write_row(self, row: int, states: Sequence[np.ndarray]) -> None:
        """Make the states of ``row`` these: a request's states are written whole."""
        held = self._held[row // self._batch]
        for state, value in zip(self.spec.states, states, strict=True):
            whole = value[None] if self._batch == 1 else held.read(state.name)
            if self._batch > 1:
                whole[row % self._batch] = value
            held.write(state.name, whole)


def held_ports(states: Sequence[State], variables: Mapping[str, Port]) -> tuple[dict[str, Port], dict[str, Port]]:
    """Variables under the names that the manifest gives a state's input and output."""
    pairs = [(state, variables[variable_id(state)]) for state in states if variable_id(state) in variables]
    inputs = {state.input: Port(state.input, port.dtype, port.shape) for state, port in pairs}
    return inputs, {state.output: Port(state.output, port.dtype, port.shape) for state, port in pairs}
