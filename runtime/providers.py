"""Names of ONNX Runtime's execution providers, and the proof that the one asked for is the one that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
            f"provider {provider!r} was asked for and did not start; ONNX Runtime would run on {_ours(active)}",
            hint=f"check the driver and libraries of {PROVIDERS[provider]}, or ask for one of those",
        )
    if placement is not None and not placement.get(provider):
        raise RdError(
            f"provider {provider!r} took no node of the graph; all of them would run on {', '.join(placement)}",
            hint="export for this provider (precision, static shapes), or use another provider",
        )


def _ours(ort_names: Sequence[str]) -> str:
    return ", ".join(NAMES.get(name, name) for name in ort_names) or "none"
