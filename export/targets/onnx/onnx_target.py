"""ONNX: the portable artifact, and the source of several others."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import json
import logging
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.proof import ProofGraph, read_onnx
from reuse_distill.export.quantise.blocks import NAME_SCOPES
from reuse_distill.export.quantise.calibration import check_same, feeds
from reuse_distill.export.quantise.options import with_activations
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, PLAIN, Recipe, recipe_json
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets import Job, Made, Opened, Target, of_layers
from reuse_distill.export.targets.onnx.cast_fp16 import cast_to_fp16
from reuse_distill.export.targets.onnx.free_chunk import SIZES, free_chunk
from reuse_distill.export.targets.onnx.layer_probe import LayerProbe
from reuse_distill.export.targets.onnx.overflow import (
    COMPARED_AS,
    comparable,
    compared_as_unsigned,
    products_overflow,
)
from reuse_distill.export.targets.onnx.qdq import Ranges, kept_ranges
from reuse_distill.export.targets.onnx.small_weights import quantise_small
from reuse_distill.export.targets.onnx.split_gelu import split_widest_gelu
from reuse_distill.export.targets.onnx.static_int8 import OPERATORS, quantise_static
from reuse_distill.export.targets.vendor_packages import first_line
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.manifest import retyped
from reuse_distill.runtime.errors import RdError, install_hint
from reuse_distill.runtime.untrusted_input import to_dict

OPSET = 20  # the first with Gelu as one operator
ARTIFACT = "model.onnx"
METADATA = "reuse-distill"  # prefix of the keys in metadata_props


class OnnxTarget(Target):
    """ONNX for ONNX Runtime on any processor."""

    precisions = ("fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights")
    unpacked = ("fp16", "int8-weights")
    several_chunks = True

    def __init__(self) -> None:
        self._opened = Opened[Encoder]()

    def recipe_values(self, recipe: Recipe) -> dict[str, Any]:
        """Static int8 can be had in every way, the others with blocks in float; activations in int8 are unsigned."""
        presets = {"preset": with_activations("uint8")}
        if recipe.calibrates:
            return {**dict.fromkeys(PLAIN), **presets}
        if recipe.activations == "int8-dynamic":
            as_it_comes = {"symmetric_activations": (None, False), **presets}
            return {"in_float": None, "per_channel": None, "reduce_range": None, **as_it_comes}
        return {"in_float": None} if recipe.quantises else {}

    def adapt(self, spec: ExportSpec) -> ExportSpec:
        """Weights in 7 bits where a plain int8 is made on a processor whose products of 8 bits overflow."""
        plain = spec.given is None and spec.preset is None and spec.recipe.activations != "float"
        return dataclasses.replace(spec, seven_bits=True) if plain and products_overflow() else spec

    def make(self, job: Job, candidate: str) -> Made:
        plain = job.scratch / ARTIFACT
        if not plain.exists():
            convert(job.captured, plain)
        return finish(plain, job, candidate)

    def read_graph(self, artifact: Path) -> ProofGraph:
        return read_onnx(artifact)

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        return of_layers(self.encoder(bundle, job).extract(wave), job.spec)

    def measured_by(self, job: Job) -> str | None:
        """The runtime, but for int8 that is made for other processors and would overflow on this one."""
        return COMPARED_AS if compared_as_unsigned(job.spec.recipe) else None

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]]:
        compared = comparable(bundle, job.scratch, job.spec.recipe)
        return LayerProbe.of_onnx(compared / ARTIFACT, job.captured, job.depth).run

    def encoder(self, bundle: Path, job: Job) -> Encoder:
        """The artifact as it is compared, loaded once for all recordings."""
        recipe = job.spec.recipe
        return self._opened.of(bundle, lambda: Encoder.load(comparable(bundle, job.scratch, recipe), provider="cpu"))

    def placement(self, job: Job) -> dict[str, Any] | None:
        nodes = Encoder.load(job.folder, provider="cpu").placement
        if nodes is None:
            return None
        operators = {name: Counter(n.op for n in nodes if n.provider == name) for name in {n.provider for n in nodes}}
        return {
            provider: {"nodes": sum(count.values()), "operators": dict(count.most_common())}
            for provider, count in operators.items()
        }


def finish(plain: Path, job: Job, candidate: str) -> Made:
    """From the plain fp32 file to the artifact at the requested precision, with its contract in the file itself."""
    made = _at_precision(plain, job, candidate)
    note_contract(job.folder / ARTIFACT, job.captured)
    return made


def note_contract(artifact: Path, captured: Capture) -> None:
    """Write geometry, states, the input's contract and its rules into the file's metadata_props: it stands alone."""
    import onnx

    model = onnx.load(str(artifact))
    facts = {
        "geometry": to_dict(captured.geometry),
        "states": [to_dict(state) for state in captured.states],
        "input": {name: value for name, value in to_dict(captured.contract).items() if name != "rules"},
    }
    onnx.helper.set_model_props(
        model,
        {
            **{f"{METADATA}.{name}": json.dumps(value) for name, value in facts.items()},
            f"{METADATA}.rules": "\n".join(captured.contract.rules),
        },
    )
    onnx.save(model, str(artifact))


def _at_precision(plain: Path, job: Job, candidate: str) -> Made:
    artifact, states = job.folder / ARTIFACT, job.captured.states
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")
    if job.spec.precision == "fp32":
        shutil.copyfile(plain, artifact)
        return Made(ARTIFACT, states, packages=packages)
    if job.spec.precision == "fp16":
        done = cast_to_fp16(plain, artifact, job.captured)
        return Made(ARTIFACT, retyped(states, "float16"), done, packages=packages)
    recipe = job.spec.recipe_of(candidate)
    if not recipe.calibrates:
        done = quantise_small(plain, artifact, recipe, depth=job.depth)
        return Made(ARTIFACT, states, {**done, "recipe": recipe_json(recipe)}, packages=packages)
    ranges = calibrated_ranges(plain, job, recipe)
    job.say(f"quantising, front end in {'float' if recipe.keeps_in_float(FRONT_END) else 'int8'}")
    done = quantise_static(plain, artifact, ranges, recipe, depth=job.depth)
    split = None if states else split_widest_gelu(artifact)
    return Made(ARTIFACT, states, {**done, "gelu_in_parts": split, **calibrated_with(job, recipe)}, packages=packages)


def calibrated_ranges(plain: Path, job: Job, recipe: Recipe) -> Ranges:
    """Ranges of the plain graph's activations, measured once per export; raises RdError without calibration audio."""
    if job.calibration is None:
        raise RdError("int8 needs speech to calibrate with", hint="add --calibration AUDIO (a folder, 20 s or more)")
    check_same(recipe, job.calibration)
    job.say(f"calibrating with {job.calibration.seconds:.0f} s of audio")
    return kept_ranges(job.scratch, plain, feeds(job.captured, job.spec, job.calibration), recipe, OPERATORS)


def calibrated_with(job: Job, recipe: Recipe) -> dict[str, Any]:
    """The recipe and its calibration set as the manifest tells them."""
    assert job.calibration is not None  # noqa: S101  (calibrated_ranges has seen to it)
    details = job.calibration.describe()
    return {
        "calibration": details,
        "recipe": recipe_json(dataclasses.replace(recipe, calibration=job.calibration.note())),
    }


def convert(capture: Capture, file: Path) -> None:
    """Write the captured module as one ONNX file, weights inside.

    Raises RdError when the package is missing or the conversion fails (with the converter's own message).
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
        import torch
    except ImportError as error:
        raise RdError(f"{error.name} is not installed", hint=install_hint("export")) from None
    try:
        with _quiet(), _seldom_collecting(), torch.no_grad():
            if capture.chunks:
                model = free_chunk(*(_converted(capture, capture.example_of(size)) for size in SIZES))
            else:
                model = _converted(capture, capture.example)
    except RdError:
        raise
    except Exception as error:
        raise RdError(
            f"torch.onnx could not convert the student: {first_line(error)}",
            hint="see constraints.txt for the versions that this was verified with",
        ) from error
    _name_axes(model, capture)
    _forget_the_machine(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def _converted(capture: Capture, example: tuple[Any, ...]) -> Any:
    """The ONNX model of the captured module with inputs like ``example``."""
    import torch

    program = torch.onnx.export(
        capture.whole(),
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=capture.input_names,
        output_names=capture.output_names,
        dynamic_shapes=_dynamic_shapes(capture),
    )
    return program.model_proto


def _forget_the_machine(model: Any) -> None:
    """Drop what the converter notes beside nodes and values, a tenth of a small file: source lines with the paths of
    this machine, above all. The scopes stay: they tell the blocks of a recipe."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        kept = [entry for entry in holder.metadata_props if entry.key.endswith(NAME_SCOPES)]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)


def _dynamic_shapes(capture: Capture) -> Any:
    """torch.export's dynamic shapes in the form that the module's signature needs."""
    if not capture.dynamic_axes:
        return None
    from torch.export import Dim

    longest = capture.contract.longest_samples or 16_000 * 3600
    symbols = {"T": Dim("T", min=1000, max=longest), "B": Dim("B", min=1, max=1024)}
    shapes = [
        {axis: symbols[symbol] for axis, symbol in capture.dynamic_axes.get(name, {}).items()}
        for name in capture.input_names
    ]
    if not capture.states:
        return tuple(shapes)
    fixed = len(capture.inputs)
    return (*shapes[:fixed], tuple(shapes[fixed:]))


def _name_axes(model: Any, capture: Capture) -> None:
    """Give inputs and outputs the axis names of the manifest."""
    ports = {port.name: port.shape for port in (*capture.inputs, *capture.outputs)}
    for state in capture.states:
        ports[state.input] = state.shape
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, ports.get(value.name, ()), strict=False):
            if isinstance(size, str):
                dim.ClearField("dim_value")
                dim.dim_param = size


@contextlib.contextmanager
def _seldom_collecting() -> Any:
    """Python looks for garbage after 100,000 new objects instead of 700: a conversion keeps nearly all of its own."""
    first, *others = gc.get_threshold()
    gc.set_threshold(max(first, 100_000) if first else 0, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter reports its steps on stdout and warns about its own dependencies: not the user's concern."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        nowhere = io.StringIO()
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
