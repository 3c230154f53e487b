"""ONNX Runtime's execution providers: names, options, and the proof that the requested one is the one that runs.

Options of each provider stand here in one place; users can override every default. Which provider runs which node is
what ONNX Runtime tells after it has divided the graph among them.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from reuse_distill.runtime.errors import RdError, nearest

AUTO = "auto"
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
NAMES = {ort_name: name for name, ort_name in PROVIDERS.items()}
# Which builds of ONNX Runtime have it.
WHERE = {
    "cpu": "reinstall onnxruntime",
    "cuda": "pip install onnxruntime-gpu (on a Jetson: the wheel made for its JetPack)",
    "tensorrt": "pip install onnxruntime-gpu (on a Jetson: the wheel made for its JetPack)",
    "coreml": "install onnxruntime on a Mac; on a phone it is in the app's package",
    "qnn": "pip install onnxruntime-qnn (Windows on Snapdragon); on Android it is in the app's package",
    "xnnpack": "no wheel has it: build ONNX Runtime with --use_xnnpack; on a phone it is in the app's package",
}
# What may take the nodes that a provider leaves: TensorRT's go to CUDA before they go to the CPU.
FALLBACKS = {"cpu": (), "tensorrt": ("cuda", "cpu")}
# `auto` means: the first of these that starts. Only those that run any student without further settings.
AUTO_ORDER = ("cuda", "cpu")
# Providers whose tensors live in a memory of their own, and what ONNX Runtime calls that memory.
MEMORY = {"cuda": "cuda", "tensorrt": "cuda"}


def check_provider(provider: str, available: Sequence[str]) -> None:
    """Raise RdError for a name nobody knows and for a provider that this installation lacks.

    ``available`` are ONNX Runtime's names.
    """
    if provider == AUTO:
        return
    if provider not in PROVIDERS:
        raise RdError(f"provider {provider!r} is not known", hint=nearest(provider, [AUTO, *PROVIDERS]))
    if PROVIDERS[provider] not in available:
        raise RdError(
            f"provider {provider!r} ({PROVIDERS[provider]}) is not available; available: {_ours(available)}",
            hint=f"{WHERE[provider]}; or use one of the available providers",
        )


def candidates(provider: str, available: Sequence[str]) -> list[str]:
    """Our names of the providers to try, in order."""
    if provider != AUTO:
        return [provider]
    return [name for name in AUTO_ORDER if PROVIDERS[name] in available]


def session_providers(provider: str, available: Sequence[str]) -> list[str]:
    """ONNX Runtime's names for a session: the provider, then who may take the nodes it leaves."""
    names = (provider, *FALLBACKS.get(provider, ("cpu",)))
    return [PROVIDERS[name] for name in names if PROVIDERS[name] in available]


def check_runs(provider: str, session: Any, placement: Mapping[str, int] | None) -> None:
    """Raise RdError unless ``session`` runs on ``provider``: registered first, and with nodes where that is told."""
    active = list(session.get_providers())
    if not active or active[0] != PROVIDERS[provider]:
        raise RdError(
            f"provider {provider!r} was requested and did not start; ONNX Runtime would run on {_ours(active)}",
            hint=f"check the driver and libraries of {PROVIDERS[provider]}, or ask for one of those",
        )
    if placement is not None and not placement.get(provider):
        raise RdError(
            f"provider {provider!r} took no node of the graph; all of them would run on {', '.join(placement)}",
            hint="export for this provider (precision, static shapes), or use another provider",
        )


def _ours(ort_names: Sequence[str]) -> str:
    return ", ".join(NAMES.get(name, name) for name in ort_names) or "none"


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
    options: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise RdError(f"--provider-option {word!r} is not KEY=VALUE", hint="for example backend_path=libQnnHtp.so")
        if key in options:
            raise RdError(f"--provider-option {key} is given twice: {options[key]!r} and {value!r}")
        options[key] = value
    return options


def _flag(value: bool) -> str:
    return "1" if value else "0"


@dataclass(frozen=True)
class PlacedNode:
    """One node and the provider that runs it, by our name (cpu, cuda, …)."""

    node: str
    op: str
    provider: str


def read_nodes(session: Any) -> tuple[PlacedNode, ...] | None:
    """Every node of ``session``, or None where ONNX Runtime does not tell: before 1.24, and of ``.ort`` files."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    nodes = tuple(
        PlacedNode(node.name, node.op_type, NAMES.get(part.ep_name, part.ep_name))
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )
    return nodes or None


def count(nodes: Sequence[PlacedNode] | None) -> dict[str, int] | None:
    """Nodes per provider, most first; None stays None."""
    return None if nodes is None else dict(Counter(node.provider for node in nodes).most_common())


def placement_lines(nodes: Sequence[PlacedNode]) -> Iterator[str]:
    """A JSON object per node."""
    for node in nodes:
        yield json.dumps(asdict(node))


def placement_summary(nodes: Sequence[PlacedNode]) -> str:
    """One line per provider: how many nodes, and of which operators."""
    lines = []
    for provider, total in (count(nodes) or {}).items():
        operators = Counter(node.op for node in nodes if node.provider == provider)
        lines.append(f"{provider}: {total} nodes: {', '.join(f'{n} {op}' for op, n in operators.most_common())}")
    return "\n".join(lines)


@runtime_checkable
class ReportsNodes(Protocol):
    """A backend whose engine reports which provider runs which node; None where this version or file does not."""

    @property
    def nodes(self) -> tuple[PlacedNode, ...] | None: ...
