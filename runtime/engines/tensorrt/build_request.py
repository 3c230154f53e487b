"""``build.json``: what an export asks the device to build, from which ONNX file, and what must come out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from reuse_distill.runtime.engines.tensorrt.tensorrt_features import TensorRTFeatures
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import from_dict, read_json_file, to_dict

REQUEST = "build.json"
SCHEMA = 1
TYPINGS = ("strong", "weak")


@dataclass(frozen=True)
class Profile:
    """The range of one input's shape; three times the same where it is static."""

    input: str
    least: tuple[int, ...]
    best: tuple[int, ...]  # what the kernels are chosen for
    most: tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """One prepared ONNX file. ``strong``: precision stands in the graph. ``weak``: fp32 graph and builder flags."""

    onnx: str
    typing: str
    opset: int
    state_dtype: str
    flags: tuple[str, ...]  # BuilderFlag names (weak)
    in_float: tuple[str, ...]  # nodes that stay in fp32 whatever the flags say (weak)
    weighted: tuple[str, ...]  # convolutions and weight products that must run at the requested precision
    softmaxes: tuple[str, ...]
    known: tuple[str, ...]  # every name of the graph: what the engine names beyond them was not exported

    def __post_init__(self) -> None:
        if self.typing not in TYPINGS:
            raise RdError(f"{REQUEST}: typing {self.typing!r} is not one of {', '.join(TYPINGS)}")


@dataclass(frozen=True)
class BuildRequest:
    """Everything that the device needs besides the ONNX files."""

    precision: str  # fp32, fp16, bf16, int8
    workspace_bytes: int
    profiles: tuple[Profile, ...]
    variants: tuple[Variant, ...]  # in order of preference
    schema_version: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA:
            raise RdError(
                f"{REQUEST}: schema version {self.schema_version}, this runtime reads {SCHEMA}",
                hint="export the bundle again, or install the version that wrote it",
            )


def write_request(folder: Path, request: BuildRequest) -> None:
    """Write ``build.json`` into a bundle."""
    (folder / REQUEST).write_text(json.dumps(to_dict(request), indent=1) + "\n", encoding="utf-8")


def read_request(folder: Path) -> BuildRequest:
    """Read ``build.json``. Raises RdError where it is missing or not what it should be."""
    file = folder / REQUEST
    if not file.is_file():
        raise RdError(f"{folder}: holds no {REQUEST}, so nothing can be built from it", hint="export it again")
    return from_dict(BuildRequest, read_json_file(file, hint="export the bundle again"), where=str(file))


def choose_variant(request: BuildRequest, features: TensorRTFeatures) -> Variant:
    """The first variant that the installed TensorRT can build. Raises RdError that says why none can be."""
    reasons = []
    for variant in request.variants:
        missing = [flag for flag in variant.flags if flag not in features.flags]
        if variant.typing == "strong" and not features.strongly_typed:
            reasons.append(f"{variant.onnx} needs strong typing, which it lacks")
        elif variant.typing == "weak" and not features.weakly_typed:
            reasons.append(f"{variant.onnx} needs weak typing, which it no longer has")
        elif missing:
            reasons.append(f"{variant.onnx} needs BuilderFlag {', '.join(missing)}, which it lacks")
        else:
            return variant
    raise RdError(
        f"TensorRT {features.version} cannot build this bundle at {request.precision}: {'; '.join(reasons)}",
        hint="export it again without --jetpack, or with the --jetpack of this device",
    )
