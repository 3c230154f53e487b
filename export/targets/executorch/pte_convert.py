"""A student's module -> an ExecuTorch program whose operations a delegate has taken as far as it can."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.spec import Mode, Offline
from reuse_distill.export.targets.executorch.executorch_vendor import load
from reuse_distill.export.targets.vendor_packages import telling
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, samples_for
from torch import nn

LEAST_SAMPLES = 1000  # what torch.export is told: from here on no frame count is a special case, nor one of steps


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

    The range that is asked for begins with one frame; what the module leaves of it is read off the finished program.
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
