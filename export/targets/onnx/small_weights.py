"""ONNX with small weights: int8 products whose inputs are measured as they come (dynamic), or float products whose
weights are stored in 8 or 4 bits.

Dynamic int8 is for matrix products. ONNX Runtime's ConvInteger is not used, and its speed is unmeasured: kernels of
convolutions are stored in int8 and computed in float in all three.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reuse_distill.export.quantise.blocks import kept_by_recipe
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.targets.onnx.node_order import put_in_order
from reuse_distill.export.targets.onnx.static_int8 import excluded_nodes, weights_name
from reuse_distill.export.targets.onnx.weight_packing import pack_weights
from reuse_distill.runtime.errors import RdError

BLOCK = 32  # weights per scale of 4 bits: MatMulNBits takes 16, 32, 64 and so on
# Inputs of a product in int8 with a scale of their own per block: 1.5 times as fast here as with float ones, and the
# rounding of 4-bit weights hides theirs. ONNX Runtime computes in float where it has no such kernel.
PRODUCTS_IN_INT8 = 4  # MatMulNBits' accuracy_level
OPERATORS = ("Conv", "MatMul", "Gemm")


def quantise_small(source: Path, target: Path, recipe: Recipe, *, depth: int) -> dict[str, Any]:
    """Write ``target`` from the fp32 ``source``; returns what was done, for the manifest.

    ``depth``: number of layers in the graph. Raises RdError with the quantiser's own message when it fails.
    """
    import onnx

    model = onnx.load(str(source))
    excluded = {**kept_by_recipe(model, recipe, depth, OPERATORS), **_plain(model)}
    kept = set(excluded)
    convolutions = _named(model, ("Conv",), kept)
    products = _named(model, ("MatMul", "Gemm"), kept)
    way = "dynamic" if recipe.activations == "int8-dynamic" else recipe.weights
    written, details = _WAYS[way](model, products, recipe)
    packed = pack_weights(written, convolutions)
    put_in_order(written)
    onnx.save(written, str(target))
    return {
        **details,
        "operators": ["MatMul"],
        "quantised_products": len(products),
        "in_float": [{"node": name, "why": why} for name, why in excluded.items()],
        "weights_only": [*details.get("weights_only", []), *packed],
    }


def _plain(model: Any) -> dict[str, str]:
    """What no way touches; the positional convolution is float as any other here, its kernel stored small."""
    why = {n: w for n, w in excluded_nodes(model).items() if not w.startswith("positional")}
    kinds = {node.name: node.op_type for node in model.graph.node}
    return {name: reason for name, reason in why.items() if kinds[name] in OPERATORS}


def _named(model: Any, kinds: tuple[str, ...], kept: set[str]) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type in kinds and node.name not in kept]


def _dynamic(model: Any, products: list[str], recipe: Recipe) -> tuple[Any, dict[str, Any]]:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode

    with _reported():
        quantiser = ONNXQuantizer(
            model,
            recipe.per_channel,
            recipe.reduce_range,
            QuantizationMode.IntegerOps,
            False,  # not static
            QuantType.QInt8,
            QuantType.QUInt8,
            None,
            products,
            [],
            ["MatMul"],
            {"MatMulConstBOnly": True},
        )
        quantiser.quantize_model()
    details = {"method": "dynamic: ranges of each input as it comes", "activations": "uint8 per tensor"}
    return quantiser.model.model, {**details, "weights": weights_name(recipe)}


def _eight_bits(model: Any, products: list[str], recipe: Recipe) -> tuple[Any, dict[str, Any]]:
    del recipe
    packed = pack_weights(model, products)
    details = {"method": "weights only", "activations": "float32", "weights": "int8 per output channel, symmetric"}
    return model, {**details, "weights_only": packed}


def _four_bits(model: Any, products: list[str], recipe: Recipe) -> tuple[Any, dict[str, Any]]:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    del recipe
    others = [node.name for node in model.graph.node if node.name not in set(products)]
    with _reported():  # 4 bits, the default: 1.23 has no word for others
        quantiser = MatMulNBitsQuantizer(
            model, block_size=BLOCK, is_symmetric=True, accuracy_level=PRODUCTS_IN_INT8, nodes_to_exclude=others
        )
        quantiser.process()
    activations = f"int8, one scale per {BLOCK} inputs as they come"
    details = {"method": "weights only", "activations": activations, "operator": "com.microsoft MatMulNBits"}
    return quantiser.model.model, {**details, "weights": f"int4, one scale per {BLOCK} inputs of an output, symmetric"}


_WAYS: dict[str, Callable[[Any, list[str], Recipe], tuple[Any, dict[str, Any]]]] = {
    "dynamic": _dynamic,
    "int8": _eight_bits,
    "int4": _four_bits,
}


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """The quantiser's own messages only where it fails, and then as an RdError."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Exception as error:
        raise RdError(
            f"ONNX Runtime's quantiser failed: {str(error).strip().splitlines()[0]}",
            hint="export with --precision fp32, or see constraints.txt for the verified versions",
        ) from error
    finally:
        logger.setLevel(level)
