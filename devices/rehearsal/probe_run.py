"""The probe, on the side that is probed: features of fixed recordings, the self-test, and the nodes that ran.

Which kernels an engine runs a bundle with comes from its own profile of a few steps, node by node. ONNX Runtime writes
one with operator, provider and input types of every node that ran, in all versions from 1.20 on. OpenVINO's compiled
model tells the precision of every layer. Other engines do not tell: `unmeasured`.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.devices.rehearsal.probe import NodeTime, RecordingResult, SideProbe, sample
from reuse_distill.runtime.engines.providers import NAMES
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

WARM_UP_STEPS, PROFILED_STEPS = 3, 10
UTTERANCE_SAMPLES = 2 * SAMPLE_RATE_HZ  # for an axis that the graph leaves open
KERNEL = "_kernel_time"
OPENVINO_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8"}
TYPES = {"float": "float32", "double": "float64", "float16": "float16"}
QUIET = 0.1  # 20 dB below: quantised graphs differ first where the input is quiet
LONG_S = 12.0  # longer than the caches of shipped students
LOUD_S = 2.0
Progress = Callable[[str], None]


def profile_nodes(encoder: Any, *, seed: int) -> tuple[tuple[NodeTime, ...], str]:
    """The nodes that ran, in order, or none and the reason."""
    target = encoder.manifest.target
    if target in ("onnx", "ort"):
        return _onnxruntime(encoder, seed=seed), ""
    if target == "openvino":
        return _openvino(encoder), ""
    return (), f"{target} does not tell which kernels it runs"


def precision_of(node: NodeTime) -> str:
    """The type that a node computes in: the narrowest of its inputs' that carry data."""
    types = node.types.split()
    for narrow in ("int4", "uint4", "float8e4m3fn", "int8", "uint8", "bfloat16", "float16"):
        if narrow in types:
            return narrow.removeprefix("u") if "int" in narrow else narrow
    return types[0] if types else "unmeasured"


def _onnxruntime(encoder: Any, *, seed: int) -> tuple[NodeTime, ...]:
    import onnxruntime
    from reuse_distill.runtime.engines.ort_backend import session_options
    from reuse_distill.runtime.engines.providers import session_providers

    backend = encoder.backend
    with tempfile.TemporaryDirectory(prefix="rd-latency-profile.") as folder:
        options = session_options(encoder.threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        providers = session_providers(backend.provider, onnxruntime.get_available_providers())
        session = onnxruntime.InferenceSession(str(backend.artifact), options, providers=providers)
        feed = _inputs(backend.inputs, seed=seed)
        for _ in range(WARM_UP_STEPS + PROFILED_STEPS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return read_profile(events)


def read_profile(events: Sequence[Mapping[str, Any]]) -> tuple[NodeTime, ...]:
    """Nodes of an ONNX Runtime profile in the order in which they ran; times are medians without the warm-up."""
    durations: dict[str, list[float]] = defaultdict(list)
    nodes: dict[str, tuple[str, str, str]] = {}
    for event in events:
        name, args = str(event.get("name", "")), event.get("args", {})
        if event.get("cat") != "Node" or not name.endswith(KERNEL):
            continue
        name = name.removesuffix(KERNEL)
        provider = str(args.get("provider", ""))
        types = [TYPES.get(kind, kind) for entry in args.get("input_type_shape", ()) for kind in entry]
        nodes[name] = (str(args.get("op_name", "")), NAMES.get(provider, provider), " ".join(dict.fromkeys(types)))
        durations[name].append(float(event.get("dur", 0.0)))
    return tuple(
        NodeTime(name, *facts, round(float(np.median(durations[name][WARM_UP_STEPS:] or durations[name])), 2))
        for name, facts in nodes.items()
    )


def _inputs(ports: Mapping[str, Any], *, seed: int) -> dict[str, np.ndarray]:
    """Arrays for every input: quiet noise where samples go, ones for masks of one axis, zeros for states."""
    rng = np.random.default_rng(seed)
    feed = {}
    for name, port in ports.items():
        shape = [axis if isinstance(axis, int) else 1 for axis in port.shape]
        if name == "wave" and not isinstance(port.shape[-1], int):
            shape[-1] = UTTERANCE_SAMPLES
        noise = name in ("samples", "wave")
        feed[name] = (0.1 * rng.standard_normal(shape) if noise else np.zeros(shape)).astype(port.dtype)
    return feed


def _openvino(encoder: Any) -> tuple[NodeTime, ...]:
    """Operations of the compiled model: the backend names them ``FullyConnected in bf16``. Times are not measured."""
    nodes = []
    for placed in encoder.placement or ():
        operator, _, precision = placed.op.partition(" in ")
        nodes.append(NodeTime(placed.node, operator, placed.provider, OPENVINO_TYPES.get(precision, precision), 0.0))
    return tuple(nodes)


def run_probe(encoder: Any, *, seed: int, progress: Progress) -> SideProbe:
    """Everything that this side can say about the bundle. Raises RdError where the bundle does not run."""
    progress("probing: self-test")
    passed, text = _selftest(encoder)
    results = []
    for name, wave in recordings(encoder, seed=seed):
        progress(f"probing: {name}")
        results.append(_result(encoder, name, wave))
    progress("probing: kernels")
    nodes, reason = profile_nodes(encoder, seed=seed)
    return SideProbe(encoder.provider, passed, text, tuple(results), nodes, reason)


def recordings(encoder: Any, *, seed: int) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """What both sides are given: the bundle's recording, the same 20 dB quieter, long and loud synthetic speech."""
    from reuse_distill.runtime.equivalence.selftest import read_expected

    long = speech_like(int(LONG_S * SAMPLE_RATE_HZ), seed=seed)
    loud = np.clip(8 * long[: int(LOUD_S * SAMPLE_RATE_HZ)], -1, 1)
    made = [("12 s of synthetic speech", long), ("2 s of it, clipping", loud)]
    try:
        wave = read_expected(encoder.bundle).wave.astype(np.float32)
    except RdError:
        return [*made, ("12 s of synthetic speech, 20 dB quieter", np.float32(QUIET) * long)]
    return [("self-test recording", wave), ("self-test recording, 20 dB quieter", np.float32(QUIET) * wave), *made]


def _result(encoder: Any, name: str, wave: npt.NDArray[np.float32]) -> RecordingResult:
    frames = encoder.frames(wave, SAMPLE_RATE_HZ)
    outputs = [sample("features", frames.features)] if frames.features.shape[-1] else []
    outputs += [sample(head, rows) for head, rows in frames.heads.items()]
    return RecordingResult(name, tuple(outputs))


def _selftest(encoder: Any) -> tuple[bool | None, str]:
    from reuse_distill.runtime.equivalence.parity import stated_bound
    from reuse_distill.runtime.equivalence.selftest import read_expected

    try:
        stated_bound(encoder.manifest.parity)
        read_expected(encoder.bundle)
    except RdError as error:
        return None, f"unmeasured: {error.message}"
    result = encoder.selftest()
    return bool(result.passed), str(result)
