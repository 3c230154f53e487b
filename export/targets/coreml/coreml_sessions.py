"""One stream of a package: by the evaluator anywhere, by Core ML itself on a Mac; or behind the runtime's own streams.

The backend is slow (NumPy, operation by operation), on any machine: it shows that a stream can continue in a package
where another engine left it, and the other way round, with the bytes of ``Stream.snapshot`` and nothing else.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.targets.coreml.coreml_vendor import coremltools, quiet
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.coreml.mil_program import MilType
from reuse_distill.export.targets.vendor_packages import first_line
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import Bundle, read_bundle
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.engines.engine_choice import check_ports
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.state_layout import engine_keeps_states

PROVIDER = "evaluator"


class EvaluatorSession:
    """The NumPy evaluator, with the states that the package keeps itself."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator, self.states = evaluator, evaluator.new_states()

    def run(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        outputs = self.evaluator.run(inputs, states=self.states, also=names)
        return {name: outputs[name] for name in names}


class PredictionSession:
    """Core ML's own prediction; needs a Mac."""

    def __init__(self, package: Path) -> None:
        if not can_predict():
            raise RdError(
                f"Core ML predicts on a Mac only, this is {platform.system()}",
                hint="the evaluator gives the package's numbers on any machine",
            )
        try:
            with quiet():
                self.model: Any = coremltools().models.MLModel(str(package))
                self.state: Any = self.model.make_state() if self.model.get_spec().description.state else None
        except Exception as error:
            raise RdError(f"{package.name}: Core ML could not load it: {first_line(error)}") from error

    def run(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        outputs = self.model.predict(dict(inputs), state=self.state) if self.state else self.model.predict(dict(inputs))
        return {name: np.asarray(outputs[name]) for name in names}


def can_predict() -> bool:
    """Whether this machine is a Mac."""
    return platform.system() == "Darwin"


class EvaluatorBackend:
    """``runtime.engines.backend.Backend`` of a package whose states are inputs and outputs."""

    def __init__(self, bundle: Bundle) -> None:
        self._evaluator = Evaluator.load(bundle.artifact)
        program = self._evaluator.program
        results = {name: kind for one in program.operations for name, kind in zip(one.outputs, one.types, strict=True)}
        self.inputs = {name: _port(name, kind) for name, kind in program.inputs.items()}
        self.outputs = {name: _port(name, results[name]) for name in program.outputs}
        self.provider = PROVIDER
        self.placement: Mapping[str, int] | None = None
        self.versions: Mapping[str, str] = {"numpy": np.__version__}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend``."""
        results = self._evaluator.run(inputs)
        return {name: np.ascontiguousarray(results[name]) for name in self.outputs}

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """See ``Backend``."""

        def step() -> None:
            for name, value in self.run(inputs).items():
                outputs[name][...] = value

        return step


def _port(name: str, kind: MilType) -> Port:
    return Port(name, np.dtype(kind.dtype).name, tuple("?" if size < 0 else size for size in kind.shape))


def evaluated(path: str | os.PathLike[str]) -> Encoder:
    """An encoder of the bundle at ``path`` that the evaluator runs.

    Raises RdError for another target or kind, and where Core ML keeps the states itself.
    """
    bundle = read_bundle(path)
    manifest = bundle.manifest
    if manifest.target != "coreml" or manifest.kind != "streaming":
        raise RdError(f"{bundle.path}: {manifest.kind} for {manifest.target}, a stream for coreml is needed")
    if engine_keeps_states(manifest):
        raise RdError(
            f"{bundle.path}: Core ML keeps its states itself, so that they cannot be moved",
            hint="export it with --states tensors",
        )
    backend = EvaluatorBackend(bundle)
    check_ports(bundle, backend)
    return Encoder(bundle, provider=PROVIDER, threads=1, backend=backend)
