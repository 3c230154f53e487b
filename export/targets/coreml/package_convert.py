"""torch -> ``.mlpackage``: export, conversion, and what the package says about itself in Xcode."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets.coreml.coreml_modules import HeldStep, friendly
from reuse_distill.export.targets.vendor_packages import coremltools, first_line, quiet, whole_sizes
from reuse_distill.runtime.bundle_format.manifest import AUDIO, State, retyped
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ

LONGEST_SECONDS = 60  # of an offline package's range of lengths
DEFAULT_SAMPLES = 2 * SAMPLE_RATE_HZ
# Sums over all time leave the range of half precision, and so does what is made of them, one number per channel.
IN_FLOAT = ("instance_norm", "reduce_sum", "rsqrt")
STATISTICS = ("add", "sub", "mul", "real_div", "clip")
# Reorders state updates and fails on its own list of operations when there are several (coremltools 9.0);
# our states are read first and written last, so there is nothing to reorder. The last one takes sizes through 16 bits
# where the system is iOS 17 or later: an utterance of more than 65,535 samples would be cut to another length.
SKIPPED_PASSES = {
    "common::canonicalize_inplace_pattern",
    "common::prefer_state_in_downstream",
    "common::add_int16_cast",
}
AUTHOR = "made by reuse-distill (rd-export --target coreml)"
LICENCE = "the licence of the checkpoint that the weights come from; see source in the bundle's manifest.json"
TITLES = {
    "offline": "Speech features of a whole utterance",
    "window": "Speech features of the middle of a sliding window (approximate)",
    "streaming": "Speech features of one chunk of a stream",
}
DESCRIPTIONS = {
    "wave": "mono samples at 16 kHz, -1 to 1; 320 samples per frame, the first frame needs 400",
    "frame_valid": "1 for every frame of the window that exists, 0 before the start and after the end",
    "samples": "320 C + 80 samples at 16 kHz, -1 to 1; the first 80 are the last 80 of the step before",
    "fresh": "1 for each of the C frames whose 400 samples all exist, 0 after the end",
    "features": "[streams, layers, frames, width], a frame is 20 ms",
    "position": "last frames before the positional convolution; zeros at the start",
    "position_validity": "1 where a frame of the look-ahead exists",
    "validity": "1 where a slot of the caches holds a frame",
    "keys": "cached keys of a layer that computes its attention map",
    "values": "cached values of a layer",
    "audio": "samples before those of this step; zeros at the start",
}


def convert(captured: Capture, *, half: bool, held: bool, system: str) -> Any:
    """The captured module as a coremltools model, in memory.

    half: compute in float16 (float32 otherwise). held: states as Core ML State. system: the oldest system that has to
    run it, such as ``iOS16``. Raises RdError with the converter's own message when the conversion fails.
    """
    ct = coremltools()
    import torch

    module = captured.whole(friendly(captured))
    if held and captured.states:
        module = HeldStep(
            module, captured.states, captured.example[len(captured.inputs) :], len(captured.outputs)
        ).eval()
    example = captured.example[: len(captured.inputs)] if held else captured.example
    try:
        with quiet(), torch.no_grad(), whole_sizes():
            program = torch.export.export(module, example, dynamic_shapes=_dynamic(captured))
            return ct.convert(
                program.run_decompositions({}),
                inputs=_inputs(ct, captured, half=half, held=held),
                outputs=_outputs(ct, captured, half=half, held=held),
                states=_states(ct, captured, example_from=len(captured.inputs)) if held else None,
                compute_precision=_precision(ct, captured, half=half),
                minimum_deployment_target=getattr(ct.target, system),
                pass_pipeline=pipeline(),
                skip_model_load=True,
            )
    except Exception as error:
        raise RdError(
            f"coremltools could not convert the student: {first_line(error)}",
            hint="see constraints.txt for the versions that this was verified with",
        ) from error


def pipeline() -> Any:
    """The converter's default passes without the skipped ones."""
    passes = coremltools().PassPipeline.DEFAULT
    passes.remove_passes(SKIPPED_PASSES)
    return passes


def save(model: Any, package: Path) -> None:
    """Write the package without the converter's own debugging notes."""
    shutil.rmtree(package, ignore_errors=True)
    with quiet():
        model.save(str(package))
    model_file = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    if not (package / "Manifest.json").is_file() or not model_file.is_file():
        shutil.rmtree(package, ignore_errors=True)
        raise RdError(f"{package.name}: coremltools wrote no package", hint="free some disk space and try again")
    (package / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def _dynamic(captured: Capture) -> Any:
    """Only the offline length is open: a step with an open number of streams would keep the neural engine out."""
    from torch.export import Dim

    if captured.states or not captured.dynamic_axes:
        return None
    return ({1: Dim.DYNAMIC},)


def _inputs(ct: Any, captured: Capture, *, half: bool, held: bool) -> list[Any]:
    shapes = [tuple(tensor.shape) for tensor in captured.example]
    kinds = [np.float32] * len(captured.inputs) + [np.dtype(one.dtype).type for one in _typed(captured, half)]
    if captured.dynamic_axes and not captured.states:
        length = ct.RangeDim(RECEPTIVE_FIELD_SAMPLES, LONGEST_SECONDS * SAMPLE_RATE_HZ, default=DEFAULT_SAMPLES)
        shapes = [(1, length)]
    rows = list(zip(captured.input_names, shapes, kinds, strict=True))
    return [
        ct.TensorType(name=name, shape=shape, dtype=kind)
        for name, shape, kind in (rows[: len(captured.inputs)] if held else rows)
    ]


def _outputs(ct: Any, captured: Capture, *, half: bool, held: bool) -> list[Any]:
    outputs = [
        ct.TensorType(name=port.name, dtype=np.int32 if port.dtype == "int32" else np.float32)
        for port in captured.outputs
    ]
    if held:
        return outputs
    states = _typed(captured, half)
    return outputs + [ct.TensorType(name=state.output, dtype=np.dtype(state.dtype).type) for state in states]


def _typed(captured: Capture, half: bool) -> tuple[State, ...]:
    return retyped(captured.states, "float16" if half else "float32")


def _states(ct: Any, captured: Capture, *, example_from: int) -> list[Any]:
    pairs = zip(captured.states, captured.example[example_from:], strict=True)
    return [
        ct.StateType(wrapped_type=ct.TensorType(shape=tuple(tensor.shape), dtype=np.float16), name=state.name)
        for state, tensor in pairs
    ]


def _precision(ct: Any, captured: Capture, *, half: bool) -> Any:
    if not half:
        return ct.precision.FLOAT32
    samples, in_float = {state.output for state in captured.states if state.role == AUDIO}, list[set[int]]()

    def selected(op: Any) -> bool:
        if not in_float:  # before the first operation is looked at, the program is as it was converted
            in_float.append(_log_mel_and_samples(op.enclosing_block, samples))
        return id(op) not in in_float[0] and not _stays_in_float(op)

    return ct.transform.FP16ComputePrecision(op_selector=selected)


def _log_mel_and_samples(block: Any, samples: set[str]) -> set[int]:
    """Operations up to and with a log-mel's logarithm, and those that hand samples on: half precision has not the range
    of the one, nor the resolution of the others. A logarithm of a softmax is a head's."""
    logs = [op for op in block.operations if op.op_type == "log" and not _of_softmax(op)]
    waiting = [*logs, *(var.op for var in block.outputs if var.name in samples)]
    kept: set[int] = set()
    while waiting:
        op = waiting.pop()
        if op is not None and id(op) not in kept:
            kept.add(id(op))
            for given in op.inputs.values():
                waiting += [
                    var.op for var in (given if isinstance(given, list | tuple) else (given,)) if var is not None
                ]
    return kept


def _of_softmax(op: Any) -> bool:
    return op.x.op is not None and bool(op.x.op.op_type == "softmax")


def _stays_in_float(op: Any) -> bool:
    """Norms over time and their statistics [1, C, 1]; the log-softmax of heads, whose small shares are 0 in half."""
    if op.op_type == "softmax":
        return any(child.op_type == "log" for child in op.outputs[0].child_ops)
    if op.op_type == "log":
        return _of_softmax(op)
    shape = tuple(op.outputs[0].shape or [])
    return op.op_type in IN_FLOAT or (op.op_type in STATISTICS and len(shape) == 3 and shape[-1] == 1)


def describe(model: Any, captured: Capture, spec: ExportSpec) -> None:
    """Fill in the metadata of a coremltools model, in place."""
    specification = model.get_spec().description
    roles = {name: state.role for state in captured.states for name in (state.input, state.output)}
    heads = {o.name: f"output of a {o.kind} head, [streams, frames, {o.columns}]" for o in spec.task_contracts}
    model.author, model.license, model.short_description = AUTHOR, LICENCE, TITLES[spec.mode.name]
    for port in specification.input:
        model.input_description[port.name] = DESCRIPTIONS[roles.get(port.name, port.name)]
    for port in specification.output:
        role = roles.get(port.name, port.name)
        model.output_description[port.name] = DESCRIPTIONS.get(role) or heads[role]
    shape = captured.geometry
    model.user_defined_metadata.update(
        {
            "reuse-distill.mode": spec.mode.name,
            "reuse-distill.precision": spec.precision,
            "reuse-distill.layers": ",".join(map(str, spec.layers)),
            "reuse-distill.features": spec.features,
            "reuse-distill.chunk_frames": str(shape.chunk_frames),
            "reuse-distill.lookahead_frames": str(shape.lookahead_frames),
            "reuse-distill.left_frames": str(shape.left_frames),
            "reuse-distill.right_frames": str(shape.right_frames),
        }
    )
