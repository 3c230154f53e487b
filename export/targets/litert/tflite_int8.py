"""int8 and half-precision weights for LiteRT: its own quantiser under our calibration audio and recipe.

Fully connected layers and convolutions; attention, norms and sums stay in float. What stays in float besides is what
does for the target ``onnx``: the waveform and the positional convolution, a log-mel, and the recipe's blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.quantise.blocks import LOG_MEL, BlockOperation, blocks_of
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe
from reuse_distill.export.targets.litert.tflite_convert import load
from reuse_distill.export.targets.litert.tflite_program import TflOperation, TflProgram
from reuse_distill.export.targets.vendor_packages import quiet, telling
from reuse_distill.runtime.engines.litert_backend import load_litert, open_model
from reuse_distill.runtime.errors import RdError

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
PRODUCT = "FULLY_CONNECTED"
HALF_BITS = 16
Ranges = dict[str, tuple[float, float]]


def operation_blocks(program: TflProgram, depth: int) -> list[str]:
    """The student's block of every operation, as recipes name them."""
    mel = log_mel_operations(program)
    # The converter takes a layer norm apart; its variance is in an operation of its own kind. A projection between
    # the front end and the encoder is the only product there.
    kinds = {"SQUARED_DIFFERENCE": "norm", **dict.fromkeys(CONVOLUTIONS, "conv")}
    described = [
        BlockOperation(
            "mel" if number in mel else kinds.get(one.kind, "other"),
            "post_extract_proj" if one.kind == PRODUCT else "",
        )
        for number, one in enumerate(program.operations)
    ]
    return blocks_of(described, depth)


def log_mel_operations(program: TflProgram) -> frozenset[int]:
    """Numbers of the operations up to the logarithm and from there to the first product; empty without a logarithm."""
    logarithm = next((i for i, one in enumerate(program.operations) if one.kind == "LOG"), None)
    if logarithm is None:
        return frozenset()
    products = (*CONVOLUTIONS, PRODUCT)
    after = next((i for i, one in enumerate(program.operations) if i > logarithm and one.kind in products), 0)
    return frozenset(range(max(after, logarithm + 1)))


def kept_in_float(program: TflProgram, recipe: Recipe, depth: int) -> dict[int, str]:
    """Number of a product or convolution with a constant weight -> why it stays in float, of those that do."""
    kept: dict[int, str] = {}
    waveform = not log_mel_operations(program)
    for number, (one, block) in enumerate(zip(program.operations, operation_blocks(program, depth), strict=True)):
        if not weighted(one, program):
            continue
        if block == LOG_MEL:
            kept[number] = "log-mel: the power of a bin spans ten decades"
        elif waveform and one.kind in CONVOLUTIONS:
            kept[number] = "waveform convolution: its input has the full dynamic range of the microphone"
            waveform = False
        elif one.kind in CONVOLUTIONS and _grouped(one, program):
            kept[number] = "positional convolution: its taps in one int8 sum lose the most fidelity"
        elif recipe.keeps_in_float(block):
            front = (
                "front end: one int8 scale for loud and quiet frames loses the quiet ones before they are normalised"
            )
            kept[number] = front if block.startswith(FRONT_END) else f"{block}: kept in float by the recipe"
    return kept


def weighted(one: TflOperation, program: TflProgram) -> bool:
    """Whether an operation multiplies with a constant weight."""
    return one.kind in (PRODUCT, *CONVOLUTIONS) and program.tensors[one.inputs[1]].constant


def _grouped(one: TflOperation, program: TflProgram) -> bool:
    """Whether a convolution's output sees a part of the channels only. A weight is [out, kernel, 1, in]."""
    inner, weight = program.tensors[one.inputs[0]].shape[-1], program.tensors[one.inputs[1]].shape
    return (one.kind == "DEPTHWISE_CONV_2D" and inner > 1) or (one.kind == "CONV_2D" and weight[-1] != inner)


def measured_ranges(
    file: Path, program: TflProgram, chosen: Iterable[int], rows: Iterable[Mapping[str, np.ndarray]]
) -> Ranges:
    """Smallest and largest value of what goes into and comes out of the operations ``chosen``, by tensor name.

    Raises RdError where there is no row.
    """
    ends = {i for number in chosen for i in (program.operations[number].inputs[0], *program.operations[number].outputs)}
    indices = sorted(i for i in ends if not program.tensors[i].constant)
    module = load_litert()
    plain = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    options = {"experimental_preserve_all_tensors": True, "experimental_op_resolver_type": plain}
    with quiet():
        interpreter = open_model(module, file, 1, **options)
    inputs = {name: row["index"] for name, row in interpreter.get_signature_runner().get_input_details().items()}
    ranges: Ranges = {}
    for row in rows:
        for name, index in inputs.items():
            interpreter.set_tensor(index, np.ascontiguousarray(row[name]))
        interpreter.invoke()
        for index in indices:
            value = interpreter.get_tensor(index)
            name, low, high = program.tensors[index].name, float(value.min()), float(value.max())
            before = ranges.get(name, (low, high))
            ranges[name] = min(low, before[0]), max(high, before[1])
    if not ranges:
        raise RdError("no recording is long enough to calibrate with", hint="give longer recordings (--calibration)")
    return ranges


def quantise(
    file: Path, target: Path, program: TflProgram, chosen: Iterable[int], precision: str, ranges: Ranges | None = None
) -> None:
    """Write ``file`` to ``target`` with the weights of the operations ``chosen`` in int8 or half precision.

    ``precision``: fp16 (weights), int8-dynamic, or int8 with ``ranges``. Raises RdError with the quantiser's message.
    """
    quantiser, names = load("ai_edge_quantizer.quantizer"), load("ai_edge_quantizer.qtyping").TFLOperationName
    algorithms = load("ai_edge_quantizer.recipe").AlgorithmName
    with telling("LiteRT's quantiser could not quantise the student"):
        one = quantiser.Quantizer(str(file))
        for number in chosen:
            operation = program.operations[number]
            scope = f"^{re.escape(program.tensors[operation.outputs[0]].name)};$"
            kind = names(operation.kind)
            if precision == "fp16":
                casting = algorithms.FLOAT_CASTING
                one.add_weight_only_config(scope, kind, num_bits=HALF_BITS, algorithm_key=casting)
            elif precision == "int8-dynamic":
                one.add_dynamic_config(scope, kind, num_bits=8)
            else:
                one.add_static_config(scope, kind, activation_num_bits=8, weight_num_bits=8)
        statistics: dict[str, dict[str, Any]] | None = None
        if ranges is not None:
            statistics = {
                name: {"min": np.array([low]), "max": np.array([high])} for name, (low, high) in ranges.items()
            }
        done = one.quantize(statistics, enable_progress_bar=False, enable_progress_report=False)
    target.write_bytes(bytes(done.quantized_model))
