"""Which device of this machine OpenVINO runs on, and in which precision it computes there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.errors import RdError, install_hint, nearest

AUTO = "auto"
DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}  # our names of providers -> OpenVINO's names of devices
OLDEST = (2024, 0)  # the first without the module `openvino.runtime`, whose names are used here
INSTALL = install_hint("openvino")
PRECISION = "inference_precision"  # provider option, and field of manifest.device
PRECISION_HINT = "INFERENCE_PRECISION_HINT"
# Precisions that activations may be computed in -> what a device tells of itself where it can.
CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


def load_openvino() -> Any:
    """The vendor's module. Raises RdError where it is missing or too old.

    Its package ``openvino_telemetry`` reports usage to a third party; OpenVINO and NNCF do without where it is missing.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
    try:
        import openvino
    except ImportError as error:
        raise RdError(f"OpenVINO cannot be imported: {error}", hint=INSTALL) from None
    version = str(getattr(openvino, "__version__", "unknown"))
    numbers = tuple(int(part) for part in version.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        least = ".".join(map(str, OLDEST))
        raise RdError(f"OpenVINO {version} is installed, {least} or later is needed", hint=f"with --upgrade: {INSTALL}")
    return openvino


def check_provider(provider: str, path: object) -> None:
    """Raise RdError for a provider that OpenVINO has no device for; whether the device is there is asked on opening."""
    if provider not in (AUTO, *DEVICES):
        raise RdError(
            f"{path}: an OpenVINO model runs on provider {', '.join(DEVICES)}; {provider!r} was asked for",
            hint=nearest(provider, [AUTO, *DEVICES]),
        )


def check_device(provider: str, core: Any) -> tuple[str, str]:
    """(our name, OpenVINO's name) of the device; ``auto`` is the CPU, the only one measured.

    Raises RdError where OpenVINO does not find the device on this machine.
    """
    name = "cpu" if provider == AUTO else provider
    device, available = DEVICES[name], [str(one) for one in core.available_devices]
    if not any(one == device or one.startswith(f"{device}.") for one in available):
        raise RdError(
            f"provider {name!r}: OpenVINO finds no {device} on this machine; it finds {', '.join(available) or 'none'}",
            hint="install the driver of the device, or use --provider cpu",
        )
    return name, device


def choose_precision(manifest: Manifest, options: Mapping[str, str], capabilities: Sequence[str]) -> str:
    """The precision to compute in: the bundle's own, or what the option ``inference_precision`` says.

    ``auto`` there: the bundle's own where the processor has it, else f32, whose features are nearer to the source's.
    Raises RdError for a precision that the processor has not, and for one that the bundle's parity was not stated for.
    """
    own = str((manifest.device or {}).get(PRECISION, "f32"))
    asked = options.get(PRECISION, own)
    if asked == AUTO:
        return own if CAPABILITIES[own] in capabilities else "f32"
    if asked not in CAPABILITIES:
        raise RdError(f"{PRECISION}={asked!r} is not known", hint=nearest(asked, [AUTO, *CAPABILITIES]))
    if asked not in (own, "f32"):
        raise RdError(
            f"{PRECISION}={asked}: this bundle was exported and compared for {own}",
            hint=f"export it with --precision {asked}" if asked == "bf16" else "leave the option out",
        )
    if asked != "f32" and CAPABILITIES[asked] not in capabilities:
        raise RdError(
            f"this bundle computes in {asked}, which this processor has not (it has {', '.join(sorted(capabilities))})",
            hint=f"give the provider option {PRECISION}=auto to compute in f32 where {asked} is missing",
        )
    return asked


def properties(precision: str, threads: int, device: str, options: Mapping[str, str]) -> dict[str, str]:
    """What OpenVINO is told; options in its own spelling (``ENABLE_CPU_PINNING``) go over the defaults."""
    told = {PRECISION_HINT: precision, "PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        # Pinned threads of several encoders would share the same cores while others are idle.
        told |= {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",
            "CPU_DENORMALS_OPTIMIZATION": "YES",
        }
    return {**told, **{key: value for key, value in options.items() if key != PRECISION}}
