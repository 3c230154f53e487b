"""One stream of a package: by the evaluator anywhere, by Core ML itself on a Mac."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.targets.coreml.coreml_vendor import coremltools, quiet
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.vendor_packages import first_line
from reuse_distill.runtime.errors import RdError


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
