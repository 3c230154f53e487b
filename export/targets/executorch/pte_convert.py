"""A student's module -> an ExecuTorch program whose operations a delegate has taken as far as it can.

int8 is by PT2E and XNNPACK's quantiser: weight products and convolutions; the rest stays in float. XNNPACK computes an
int8 product only where input, weight and output are int8 (static), or where it measures the input itself, row by row,
and gives floats (dynamic).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.spec import Mode, Offline
from reuse_distill.export.targets.executorch.delegates import load
from reuse_distill.export.targets.vendor_packages import telling
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, samples_for
from torch import nn

_XNNPACK = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
_PT2E = "torchao.quantization.pt2e"
WEIGHTED = (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)
LEAST_SCALE = 2.0**-12  # XNNPACK's requantisation wants no smaller ratio
ALWAYS_IN_FLOAT = {
    "front-end.0": "waveform convolution or log-mel: its input has the full dynamic range of the microphone",
    "position": "positional convolution: 128 taps in one int8 sum lose the most fidelity",
}
ASKED = "the recipe keeps this block in float"
FRONT_END = "front end: one int8 scale for loud and quiet frames loses the quiet ones before they are normalised"
LEAST_SAMPLES = 1000  # what torch.export is told: from here on no frame count is a special case, nor one of steps


def block_of(module: str) -> str:
    """The student's block that a weighted module of ``StudentRows`` belongs to, as recipes name them."""
    if behind_mel := re.fullmatch(r"front_end\.after_mel\.(\d+)", module):  # counted from 0, which is the log-mel
        return f"front-end.{int(behind_mel[1]) + 1}"
    for pattern, name in (
        (r"front_end\.log_mel\.\w+$", "front-end.0"),
        (r"front_end\.convs\.(\d+)$", r"front-end.\1"),
        (r"post_extract_proj$", "input"),
        (r"position\.convs\.\d+$", "position"),
        (r"heads\..*$", "heads"),
        (r"reduction$", "layer.1.attention"),
    ):
        if match := re.fullmatch(pattern, module):
            return match.expand(name)
    if match := re.fullmatch(r"layers\.(\d+)\.(self_attn\.\w+|gate\.linear|fc[12])", module):
        return f"layer.{int(match[1]) + 1}.{'ffn' if match[2].startswith('fc') else 'attention'}"
    raise ValueError(f"{module} is in no block")


def weighted(module: nn.Module) -> dict[str, str]:
    """Name of every linear layer and convolution -> its block."""
    kinds = (nn.Linear, nn.Conv2d)
    return {name: block_of(name) for name, part in module.named_modules() if isinstance(part, kinds)}


def kept_in_float(blocks: Iterable[str], requested: Callable[[str], bool]) -> dict[str, str]:
    """Block -> why it stays in float, of those that do: always, or where ``requested`` says so."""
    kept = {}
    for block in blocks:
        if block in ALWAYS_IN_FLOAT:
            kept[block] = ALWAYS_IN_FLOAT[block]
        elif requested(block):
            kept[block] = FRONT_END if block.startswith("front-end") else ASKED
    return kept


def quantised(
    program: Any,
    captured: Capture,
    feeds: Iterable[dict[str, np.ndarray]],
    *,
    modules: frozenset[str],
    dynamic: bool,
) -> nn.Module:
    """The captured program with int8 weights in ``modules``; ranges of activations are min-max over ``feeds``.

    ``dynamic``: XNNPACK measures them itself, and ``feeds`` is not looked at.
    """
    quantiser = load(_XNNPACK).XNNPACKQuantizer()
    for operation in WEIGHTED:  # set_global would quantise every concatenation, whatever the filter says
        quantiser.set_operator_type(operation, _configuration(dynamic=dynamic))
    quantiser.set_filter_function(lambda node: _may_be_quantised(node, modules))
    pt2e = load(f"{_PT2E}.quantize_pt2e")
    with telling("PT2E could not quantise the student"), torch.no_grad():
        prepared = pt2e.prepare_pt2e(program.module(), quantiser)
        if dynamic:  # one run all the same: the ranges of the weights are taken in it
            prepared(*captured.example)
        for row in () if dynamic else feeds:
            prepared(*(torch.from_numpy(row[name]) for name in captured.input_names))
        converted: nn.Module = pt2e.convert_pt2e(prepared)
    return converted


def _may_be_quantised(node: Any, modules: frozenset[str]) -> bool:
    """The quantiser asks for every node of a pattern: for the operation, and for the weights that it takes."""
    if node.op != "call_function":
        return True
    return node.target in WEIGHTED and _module_of(node) in modules


def _module_of(node: Any) -> str:
    """Path of the innermost module that a node was captured in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).removeprefix("L['self'].").removeprefix("inner.") if stack else ""


def _configuration(*, dynamic: bool) -> Any:
    """int8 per output channel for weights, int8 per tensor for activations, min-max."""
    observers, quantiser = load(_PT2E), load(f"{_PT2E}.quantizer")
    if dynamic:
        return load(_XNNPACK).get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    activations = quantiser.QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=observers.MinMaxObserver.with_args(eps=LEAST_SCALE),
    )
    weights = quantiser.QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=observers.PerChannelMinMaxObserver.with_args(eps=LEAST_SCALE),
    )
    return quantiser.QuantizationConfig(activations, activations, weights, None, False)


def exported(module: nn.Module, captured: Capture, mode: Mode) -> Any:
    """``module`` as torch.export captures it: any length up to the longest of ``mode``, where it has one.

    The example is as long as that: what torch assumes of its size then holds for everything shorter.
    """
    longest = _longest_samples(captured, mode)
    example = captured.example if longest is None else (torch.zeros(1, longest),)
    with telling("torch.export could not capture the student"), torch.no_grad():
        return torch.export.export(module, example, dynamic_shapes=_dynamic_shapes(captured, longest), strict=False)


def exported_from_one_frame(module: nn.Module, captured: Capture, mode: Mode) -> Any:
    """As ``exported``, for a delegate that holds its callers to the range of lengths: see ``one_frame_is_not_special``.

    The range that is requested begins with one frame; what the module leaves of it is read off the finished program.
    """
    longest = _longest_samples(captured, mode)
    example = captured.example if longest is None else (torch.zeros(1, longest),)
    shapes = None if longest is None else ({1: torch.export.Dim.DYNAMIC(min=RECEPTIVE_FIELD_SAMPLES, max=longest)},)
    with telling("torch.export could not capture the student"), torch.no_grad():
        return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def one_frame_is_not_special() -> Iterator[None]:
    """While exporting and lowering: torch makes special cases of sizes 0 and 1, so one frame would be out of range."""
    from torch.fx.experimental import _config

    with _config.patch(backed_size_oblivious=True):
        yield


def lowered(program: Any, partitioners: Sequence[Any]) -> Any:
    """The program with what ``partitioners`` take handed to their delegates, in the order given."""
    exir = load("executorch.exir")
    with telling("ExecuTorch could not lower the student"), torch.no_grad():
        return exir.to_edge_transform_and_lower(
            program, transform_passes=[_shape_pass()], partitioner=list(partitioners)
        )


def save(edge: Any, file: Path) -> None:
    """Write the finished program. Inputs stay where the caller has them: a step's caches are not copied in."""
    exir, passes = load("executorch.exir"), load("executorch.exir.passes")
    with telling("ExecuTorch could not write the program"):
        planning = passes.MemoryPlanningPass(alloc_graph_input=False)
        finished = edge.to_executorch(exir.ExecutorchBackendConfig(memory_planning_pass=planning))
        with file.open("wb") as stream:
            finished.write_to_file(stream)


def _longest_samples(captured: Capture, mode: Mode) -> int | None:
    """The longest utterance; None where a call has a fixed size."""
    return int(mode.max_seconds * SAMPLE_RATE_HZ) if captured.dynamic_axes and isinstance(mode, Offline) else None


def _dynamic_shapes(captured: Capture, longest: int | None) -> Any:
    if longest is None:
        return None
    least = max(LEAST_SAMPLES, samples_for(captured.geometry.step_frames + 1))
    samples = torch.export.Dim("T", min=least, max=longest)
    return tuple(dict.fromkeys(captured.dynamic_axes.get(name, {}), samples) for name in captured.input_names)


def _shape_pass() -> Any:
    """What only changes the shape becomes a view with at most one free size.

    Delegates take those, and outside of delegates they cost nothing.
    """
    base, dialects = load("executorch.exir.pass_base"), load("executorch.exir.dialects._ops")
    aten = dialects.ops.edge.aten
    views = (aten.view_copy.default, aten.unsqueeze_copy.default, aten.squeeze_copy.dims, aten.squeeze_copy.dim)

    class ShapePass(base.ExportPass):  # type: ignore[name-defined]
        def call_operator(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], meta: Any) -> Any:
            if op in views:
                shape = [size if isinstance(size, int) else -1 for size in meta["val"].shape]
                if shape.count(-1) <= 1:
                    return super().call_operator(aten.view_copy.default, (args[0], shape), {}, meta)
            return super().call_operator(op, args, kwargs, meta)

    return ShapePass()
