"""A program that Core ML's delegate takes whole, in numbers: its package runs in the evaluator of MIL operations.

No Apple device has a part in this. What it shows is that the package in the finished file computes the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.executorch.coreml_payload import Package, read_package
from reuse_distill.export.targets.executorch.pte_program import COREML, bind, deserialised, payload
from reuse_distill.runtime.errors import RdError

TYPES = {"FLOAT": "float32", "HALF": "float16"}  # ExecuTorch's names
# What overflows in half precision: sums over all time.
OVER_TIME = ("instance_norm", "reduce_sum", "reduce_mean")


class PackageSession:
    """One stream of a program; states are the caller's, as tensors. Ports go by the program's order, as on a device."""

    def __init__(self, file: Path, captured: Capture) -> None:
        package, inputs, outputs = whole_package(file)
        self.evaluator = Evaluator(package.program)
        self.inputs = dict(zip(captured.input_names, inputs, strict=True))
        self.outputs = dict(zip(captured.output_names, outputs, strict=True))

    def run(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Outputs by the manifest's names; other names are those of values inside the package."""
        ports = {name: self.outputs.get(name, name) for name in names}
        given = {self.inputs[name]: value for name, value in inputs.items()}
        outputs = self.evaluator.run(given, also=ports.values())
        return {name: outputs[port] for name, port in ports.items()}


def whole_package(file: Path) -> tuple[Package, tuple[str, ...], tuple[str, ...]]:
    """The one package of a program, and its ports in the order of the program's own inputs and outputs.

    Raises RdError where something of the program is outside of it.
    """
    program, plan = deserialised(file)
    calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    if [type(call).__name__ for call in calls] != ["DelegateCall"] or plan.delegates[0].id != COREML:
        raise RdError(
            f"{file.name}: Core ML's delegate did not take the whole program, so it cannot be compared here",
            hint="export with --delegate xnnpack, or --target coreml",
        )
    package = read_package(payload(program, plan.delegates[0]))
    values = bind(package, calls[0])
    read = {values[name]: name for name in package.inputs}
    written = {values[name]: name for name in package.outputs}
    if set(read) != set(plan.inputs) or not set(plan.outputs) <= set(written):
        raise RdError(f"{file.name}: its inputs and outputs are not those of its Core ML package")
    _check_types(file, plan, package, values)
    return package, tuple(read[i] for i in plan.inputs), tuple(written[i] for i in plan.outputs)


def _check_types(file: Path, plan: Any, package: Package, values: Mapping[str, int]) -> None:
    """Raises RdError where the package and the program around it say different types of a tensor."""
    rows = [zip(operation.outputs, operation.types, strict=True) for operation in package.program.operations]
    types = package.program.inputs | {name: kind for row in rows for name, kind in row}
    for name, index in values.items():
        declared = TYPES.get(plan.values[index].val.scalar_type.name, "another type")
        if types[name].dtype != declared:
            raise RdError(
                f"{file.name}: {name} is {types[name].dtype} in the Core ML package, {declared} in the program"
            )


def check_sums(package: Package) -> None:
    """Raises RdError where the package sums over time in half precision: the evaluator sums in float, a device not."""
    for operation in package.program.operations:
        if operation.kind in OVER_TIME and operation.types[0].dtype == "float16":
            raise RdError(
                f"--precision fp16 is not possible with --delegate coreml for this student: {operation.kind} over all "
                "time overflows half precision, and ExecuTorch's delegate keeps no operation in float",
                hint="use --target coreml --precision fp16, which does, or --precision fp32",
            )


def check_lengths(package: Package, least: int, most: int) -> None:
    """Raises RdError unless the package takes these lengths in samples: Core ML refuses others, the evaluator none."""
    limits = package.ranges.get(package.inputs[0], ((0, 0),))[-1]
    if not (0 < limits[0] <= least and limits[1] >= most):
        raise RdError(
            f"the Core ML package takes {limits[0]} to {limits[1]} samples, {least} to {most} are needed",
            hint="report this with the versions in constraints.txt",
        )
