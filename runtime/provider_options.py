"""What each of ONNX Runtime's execution providers is told, in one place; users can override every default."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from reuse_distill.runtime.errors import RdError

# Providers whose tensors live in a memory of their own, and what ONNX Runtime calls that memory.
MEMORY = {"cuda": "cuda", "tensorrt": "cuda"}


def provider_options(
    provider: str, *, precision: str, threads: int, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Options of ``provider`` (our name) for a bundle of ``precision``; ``given`` goes over the defaults."""
    return {**_defaults(provider, precision=precision, threads=threads), **(given or {})}


def _defaults(provider: str, *, precision: str, threads: int) -> dict[str, str]:
    if provider == "cuda":
        # Trying every algorithm anew for each length of an utterance takes longer than it saves.
        return {"cudnn_conv_algo_search": "HEURISTIC"}
    if provider == "tensorrt":
        return {
            "trt_engine_cache_enable": "1",  # else every start builds the engine again, for minutes
            "trt_engine_cache_path": str(cache_folder("tensorrt")),
            "trt_fp16_enable": _flag(precision == "fp16"),
            "trt_int8_enable": _flag(precision.startswith("int8")),
        }
    if provider == "coreml":
        return {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}
    if provider == "qnn":
        library = "QnnHtp.dll" if sys.platform == "win32" else "libQnnHtp.so"
        return {
            "backend_path": library,
            "htp_performance_mode": "burst",
            "htp_graph_finalization_optimization_mode": "3",
        }
    if provider == "xnnpack":
        return {"intra_op_num_threads": str(threads)}
    return {}


def cache_folder(name: str) -> Path:
    """Where compiled parts are kept from one start to the next; ``XDG_CACHE_HOME`` moves it. The engine makes it."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "reuse-distill" / name


def parse_options(words: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` words as a mapping. Raises RdError for anything else and for a key given twice."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise RdError(f"--provider-option {word!r} is not KEY=VALUE", hint="for example backend_path=libQnnHtp.so")
        if key in found:
            raise RdError(f"--provider-option {key} is given twice: {found[key]!r} and {value!r}")
        found[key] = value
    return found


def _flag(value: bool) -> str:
    return "1" if value else "0"
