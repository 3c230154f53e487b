"""ONNX Runtime's Q/DQ quantiser with ranges that are known already, for every target that takes Q/DQ."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.targets.onnx.onnx_ranges import Ranges, tensors_data
from reuse_distill.runtime.errors import RdError

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Style:
    """What a target's reader of Q/DQ wants besides the recipe."""

    signed: bool = False  # activations int8 instead of uint8
    options: dict[str, Any] = field(default_factory=dict)


def write_qdq(
    source: Path,
    target: Path,
    ranges: Ranges,
    recipe: Recipe,
    *,
    operators: Iterable[str],
    in_float: Iterable[str],
    style: Style,
) -> None:
    """Write the Q/DQ graph ``target`` of the fp32 ``source``; ``in_float`` names the nodes that stay as they are.

    Raises RdError with the quantiser's own message when it fails.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the quantiser advises pre-processing that has been done
    symmetric = {} if recipe.symmetric_activations is None else {"ActivationSymmetric": recipe.symmetric_activations}
    try:
        quantiser = QDQQuantizer(
            load_model_with_shape_infer(source),
            recipe.per_channel,
            recipe.reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if style.signed else QuantType.QUInt8,
            tensors_data(ranges),
            [],
            list(in_float),
            list(operators),
            {**style.options, **symmetric},
        )
        quantiser.quantize_model()
        quantiser.model.save_model_to_file(str(target), False)
    except OSError:
        raise  # of the disk: the bundle writer says so
    except Exception as error:
        raise RdError(
            f"ONNX Runtime's quantiser failed: {str(error).strip().splitlines()[0]}",
            hint="export with --precision fp32 or fp16, or see constraints.txt for the verified versions",
        ) from error
    finally:
        logger.setLevel(level)


def release_outputs(model: ir.Model, nodes: Iterable[str]) -> list[str]:
    """Let what follows the named nodes take their results as they are, without Q/DQ; returns the nodes it was done for.

    A projection head's product is the feature but for its bias: rounding it to 256 steps would round the feature.
    """
    chosen, released = set(nodes), []
    for node in [node for node in model.graph if node.name in chosen]:
        plain = node.outputs[0]
        for quantise in [user for user in plain.consumers() if user.op_type == "QuantizeLinear"]:
            users = quantise.outputs[0].consumers()
            dequantisers = [user for user in users if user.op_type == "DequantizeLinear"]
            for dequantise in dequantisers:
                dequantise.outputs[0].replace_all_uses_with(plain)
            whole = len(dequantisers) == len(users)  # nothing takes the integers themselves
            model.graph.remove([*dequantisers, quantise] if whole else dequantisers, safe=True)
            released.append(str(node.name))
    return released
