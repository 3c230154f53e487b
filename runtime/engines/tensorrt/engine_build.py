"""Builds an engine from a prepared ONNX file, on the device that will run it.

Written against the documented Python API of TensorRT 8.5 to 11; which parts exist is asked of the module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_distill.runtime.engines.tensorrt.build_request import BuildRequest, Variant
from reuse_distill.runtime.engines.tensorrt.tensorrt_features import TensorRTFeatures
from reuse_distill.runtime.errors import RdError


@dataclass(frozen=True)
class Built:
    """An engine, what its inspector tells of it (JSON), and the timings that chose its kernels."""

    engine: bytes
    inspector: str
    timing_cache: bytes


def build_engine(
    trt: Any,
    features: TensorRTFeatures,
    request: BuildRequest,
    variant: Variant,
    folder: Path,
    *,
    timing_cache: bytes = b"",
    say: Callable[[str], None] = lambda _: None,
) -> Built:
    """Parse ``folder/variant.onnx`` and build it; takes minutes on a small device.

    ``timing_cache`` must come from the same TensorRT version and device. Raises RdError with TensorRT's own messages.
    """
    logger, errors = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt, features, variant))
    _parse(trt, network, logger, folder / variant.onnx)
    config = builder.create_builder_config()
    configure(trt, config, request, variant, features)
    if variant.typing == "weak" and variant.in_float and variant.flags:
        pin_float(trt, network, variant.in_float)
    if request.profiles:  # a static graph has none
        profile = builder.create_optimization_profile()
        for shape in request.profiles:
            profile.set_shape(shape.input, shape.least, shape.best, shape.most)
        config.add_optimization_profile(profile)
    cache = config.create_timing_cache(timing_cache)
    config.set_timing_cache(cache, False)
    say(f"building with TensorRT {features.version} from {variant.onnx}, {variant.typing}ly typed")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failed("could not build the engine", errors)
    engine = bytes(plan)
    return Built(engine, inspect(trt, engine, logger, errors), bytes(config.get_timing_cache().serialize()))


def network_flags(trt: Any, features: TensorRTFeatures, variant: Variant) -> int:
    """Creation flags as a bit mask: explicit batch where it exists, strong typing where the variant is typed."""
    creation, mask = trt.NetworkDefinitionCreationFlag, 0
    if features.explicit_batch:
        mask |= 1 << int(creation.EXPLICIT_BATCH)
    if variant.typing == "strong":
        mask |= 1 << int(creation.STRONGLY_TYPED)
    return mask


def configure(trt: Any, config: Any, request: BuildRequest, variant: Variant, features: TensorRTFeatures) -> None:
    """Workspace, verbosity and precision flags. TF32 is off for fp32: it rounds to 10 bits, 1e-4 would not hold."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for name in variant.flags:  # none on a strongly typed network: precision flags must not be set there
        config.set_flag(getattr(trt.BuilderFlag, name))
    if request.precision == "fp32" and "TF32" in features.flags:
        config.clear_flag(trt.BuilderFlag.TF32)
    if variant.in_float and variant.flags and "OBEY_PRECISION_CONSTRAINTS" in features.flags:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


def pin_float(trt: Any, network: Any, names: tuple[str, ...]) -> None:
    """Keep the named nodes in fp32 in a weakly typed network: sums over all time overflow half precision."""
    kept = set(names)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        metadata = getattr(layer, "metadata", "") or ""  # from 8.6
        if layer.name in kept or any(f"[ONNX Layer: {name}]" in metadata for name in kept):
            if layer.get_output(0).dtype not in (trt.float32, trt.float16):
                continue  # shapes and indices
            layer.precision = trt.float32
            layer.set_output_type(0, trt.float32)


def inspect(trt: Any, engine: bytes, logger: Any, errors: list[str]) -> str:
    """The inspector's JSON for a serialised engine; raises RdError where it does not load."""
    runtime = trt.Runtime(logger)
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise _failed("built an engine that it cannot load", errors)
    inspector = loaded.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _parse(trt: Any, network: Any, logger: Any, file: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(file.read_bytes()):
        return
    errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
    raise RdError(
        f"{file.name}: TensorRT {trt.__version__} cannot parse it: {'; '.join(errors) or 'no reason given'}",
        hint=f"rd-export check {file} says what this version lacks; export again with the --jetpack of this device",
    )


def _failed(what: str, errors: list[str]) -> RdError:
    return RdError(
        f"TensorRT {what}: {'; '.join(errors[-3:]) or 'it gave no reason'}",
        hint="out of memory? stop other programs; otherwise see docs/tensorrt.md, reading refusals",
    )


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps errors, and the list that it keeps them in."""
    errors: list[str] = []

    class EngineLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                errors.append(message)

    return EngineLogger(), errors
