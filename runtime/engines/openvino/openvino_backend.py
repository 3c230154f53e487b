"""An OpenVINO model as a backend: one compiled model per encoder, one inference request per bound stream.

A stateful model keeps states in its requests (``held_states``); ``run`` and ``bind`` set and read them at every call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.stepspec import StepSpec
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.engines.denormals import flushed, restored
from reuse_distill.runtime.engines.openvino.held_states import HeldStates, RequestStatePool, check_variables, held_ports
from reuse_distill.runtime.engines.openvino.openvino_device import (
    PRECISION_HINT,
    check_device,
    choose_precision,
    load_openvino,
    properties,
)
from reuse_distill.runtime.engines.providers import PlacedNode, count
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.runtime.streaming.state_pool import StatePool

FIRST_SAMPLES = samples_for(8)
STREAMS = "NUM_STREAMS"


class OpenvinoBackend:
    """A compiled model.

    Raises RdError where OpenVINO or the device is missing, a file is missing or damaged, or the processor cannot
    compute in the requested precision: OpenVINO itself would take another one without a word.
    """

    def __init__(
        self, bundle: Bundle, *, provider: str, threads: int, options: Mapping[str, str] | None = None
    ) -> None:
        openvino = load_openvino()
        self.artifact = bundle.artifact
        core = openvino.Core()
        self.provider, device = check_device(provider, core)
        requested = choose_precision(
            bundle.manifest, options or {}, core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        )
        model = read_model(core, self.artifact)
        variables = check_variables(model, bundle.manifest, self.artifact)
        self._states = bundle.manifest.states if variables else ()
        self._compiled = self._compile(core, model, device, properties(requested, threads, device, options or {}))
        self.precision = self._running_precision(openvino, requested)
        self.versions: Mapping[str, str] = {
            "openvino": openvino.__version__.split("-")[0],
            "inference_precision": self.precision,
            "numpy": np.__version__,
        }
        self.nodes = _nodes(self._compiled.get_runtime_model(), self.provider)
        self.placement = count(self.nodes)
        states_in, states_out = held_ports(self._states, variables)
        self.inputs = _ports(self._compiled.inputs) | states_in
        self.outputs = _ports(self._compiled.outputs) | states_out
        self._tensor = openvino.Tensor
        self._request, self._lock = self._compiled.create_infer_request(), threading.Lock()
        if device == "CPU":
            warm_up(self._compiled, self._request, self.artifact)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend.run``."""
        with self._lock:
            held = HeldStates(self._request, self._states, self._tensor)
            states_in = {state.input: state.name for state in self._states}
            for name, array in inputs.items():
                if name in states_in:
                    held.write(states_in[name], array)
                else:
                    self._request.set_tensor(name, self._tensor(np.ascontiguousarray(array), shared_memory=True))
            self._infer(self._request)
            states_out = {state.output: held.read(state.name) for state in self._states}
            plain = [name for name in self.outputs if name not in states_out]
            return {name: self._request.get_tensor(name).data.copy() for name in plain} | states_out

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """See ``Backend.bind``. The request reads and writes the arrays where they lie, but for states it keeps."""
        kept = {name for state in self._states for name in (state.input, state.output)}
        call, held = self.bind_held(
            {name: array for name, array in inputs.items() if name not in kept},
            {name: array for name, array in outputs.items() if name not in kept},
        )
        if not kept:
            return call

        def run() -> None:
            for state in self._states:
                held.write(state.name, inputs[state.input])
            call()
            for state in self._states:
                outputs[state.output][...] = held.read(state.name)

        return run

    def bind_held(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
    ) -> tuple[Callable[[], None], HeldStates]:
        """(a call that runs on these buffers, the states that it keeps from call to call).

        Only the model's own inputs and outputs; where they include the states there is nothing that is kept.
        """
        request = self._compiled.create_infer_request()
        for name, array in (*inputs.items(), *outputs.items()):
            request.set_tensor(name, self._tensor(array, shared_memory=True))

        # The request knows addresses only: the default argument keeps the arrays alive as long as the call.
        def run(_kept: object = (dict(inputs), dict(outputs))) -> None:
            self._infer(request)

        return run, HeldStates(request, self._states, self._tensor)

    def state_pool(self, spec: StepSpec, rows: int) -> StatePool:
        """Room for ``rows`` streams: in requests of their own where the model is stateful."""
        return RequestStatePool(spec, self, rows) if self._states else StatePool(spec, self, rows)

    def _compile(self, core: Any, model: Any, device: str, settings: Mapping[str, str]) -> Any:
        try:
            return restored(lambda: core.compile_model(model, device, dict(settings)))
        except RuntimeError as error:
            options = ", ".join(f"{key}={value}" for key, value in settings.items())
            raise RdError(
                f"{self.artifact}: OpenVINO cannot prepare it for {device}: {last_line(error)}",
                hint=f"it was given {options}",
            ) from error

    def _running_precision(self, openvino: Any, requested: str) -> str:
        """The precision that the compiled model computes in; raises RdError where it is not the one requested."""
        running = str(self._compiled.get_property(PRECISION_HINT).to_string())
        if running != requested:
            raise RdError(
                f"{self.artifact}: {requested} is requested, OpenVINO computes in {running} on {self.provider}",
                hint="set the provider option inference_precision=auto to accept what this device has",
            )
        return running

    def _infer(self, request: Any) -> None:
        try:
            flushed(request.infer)
        except RuntimeError as error:
            raise RdError(
                f"{self.artifact}: OpenVINO failed while running it: {last_line(error)}",
                hint="out of memory? stream in chunks",
            ) from error


def warm_up(compiled: Any, request: Any, where: Path) -> None:
    """Call a model of utterances of any length with 8 frames of silence, before anything else.

    OpenVINO (seen with 2026.4.1 on a CPU) joins attention into one kernel at the first call, and a kernel that was
    made for one frame gives wrong features for 8 frames and more from then on. Each of its parallel streams has a
    kernel of its own: raises RdError where more than one is requested, which an encoder has no use for here.
    """
    inputs = compiled.inputs
    shape = inputs[0].get_partial_shape()
    if len(inputs) != 1 or shape.rank.is_dynamic or shape.rank.get_length() != 2 or shape[1].is_static:
        return  # a window or a step: its frames are fixed
    streams = compiled.get_property(STREAMS)
    if str(streams) != "1":
        raise RdError(
            f"{where}: {STREAMS} is {streams}; a model of utterances of any length is run in 1",
            hint=f"leave the option {STREAMS} out",
        )
    rows = shape[0].get_length() if shape[0].is_static else 1
    flushed(lambda: request.infer({0: np.zeros((rows, FIRST_SAMPLES), np.float32)}))


def read_model(core: Any, file: Path) -> Any:
    """The model of an ``.xml``; raises RdError where it or its ``.bin`` is missing, damaged or too new."""
    weights = file.with_suffix(".bin")
    for part in (file, weights):
        if not part.is_file():
            raise RdError(
                f"{file.parent}: {part.name} is missing; an OpenVINO model is {file.name} and {weights.name}",
                hint="copy both files, or export the bundle again",
            )
    try:
        return core.read_model(str(file))
    except RuntimeError as error:
        raise RdError(
            f"{file}: OpenVINO {load_openvino().__version__.split('-')[0]} cannot read it: {last_line(error)}",
            hint="export the bundle again, or install the version that its manifest names under tools",
        ) from error


def last_line(error: Exception) -> str:
    """The reason in one of OpenVINO's errors, below the source lines that it passed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _nodes(model: Any, provider: str) -> tuple[PlacedNode, ...]:
    """Every operation that the device executes, named with the element type that its kernel computes in."""
    nodes = []
    for operation in model.get_ordered_ops():
        info = operation.get_rt_info()
        kind = info["layerType"].astype(str)
        if kind not in ("Const", "Input", "Output"):
            name = f"{kind} in {info['runtimePrecision'].astype(str)}"
            nodes.append(PlacedNode(operation.get_friendly_name(), name, provider))
    return tuple(nodes)


def _ports(ports: Any) -> dict[str, Port]:
    known = {}
    for port in ports:
        name = port.get_any_name()
        shape = tuple(d.get_length() if d.is_static else "?" for d in port.get_partial_shape())
        known[name] = Port(name, np.dtype(port.get_element_type().to_dtype()).name, shape)
    return known
