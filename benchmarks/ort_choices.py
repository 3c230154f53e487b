"""What can be had from ONNX Runtime by its options and by other files of the same step: in turns, features compared.

    OMP_NUM_THREADS=1 python -m benchmarks.ort_choices --repeats 40 --json benchmarks/results/ort_choices.json

``arm-stream`` with random weights, steps of C = 8 with L = 128, one stream. A choice is a session option on the fp32
file, or another file of the same step with smaller weights. Features are compared with those of the plain session on
the same seeded inputs, processor time turn by turn; the plain session takes part twice, which shows the noise. The last
table is the engine's own profile of the plain step by operator.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.distill.tradeoff.side_by_side import take_turns
from reuse_distill.runtime.engines.denormals import flushed
from reuse_distill.runtime.engines.ort_backend import session_options
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.student import ChunkContext

from benchmarks.artifacts import plain_onnx, student_of
from benchmarks.command import parser, workplace, write_json
from benchmarks.timing import machine, ratios, shown, spread

CONTEXT = ChunkContext(8, 128)
PLAIN = "plain"
FEATURES = "features"
# Bits, block, accuracy level of MatMulNBits (4: activations in int8 by block, 0: as they are).
WEIGHTS = (
    (8, 128, 4, "int8 weights, products in int8"),
    (8, 128, 0, "int8 weights, products in float"),
    (4, 32, 4, "int4 weights, products in int8"),
)
STEPS = 10  # of a turn: a step alone is too short to be timed well
PROFILED_STEPS = 200
Arrays = dict[str, np.ndarray]


def option(key: str, value: str) -> Callable[[Any], None]:
    """Sets an entry of a session's configuration."""
    return lambda options: options.add_session_config_entry(key, value)


def level(name: str) -> Callable[[Any], None]:
    """Sets how far graphs are optimised."""

    def change(options: Any) -> None:
        import onnxruntime

        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, name)

    return change


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    """Sets an attribute of the options."""
    return lambda options: setattr(options, name, value)


SESSIONS: dict[str, Callable[[Any], None]] = {
    PLAIN: lambda options: None,
    "plain, a second session": lambda options: None,
    "graph optimisation: no layouts": level("ORT_ENABLE_EXTENDED"),
    "graph optimisation: no fused GELU, norms": level("ORT_ENABLE_BASIC"),
    "graph optimisation: none": level("ORT_DISABLE_ALL"),
    "weights not prepacked": option("session.disable_prepacking", "1"),
    "memory pattern planned": attribute("enable_mem_pattern", True),
    "no arena": attribute("enable_cpu_mem_arena", False),
    "initializers outside the arena": option("session.use_device_allocator_for_initializers", "1"),
    "GELU as polynomial": option("optimization.enable_gelu_approximation", "1"),
    "no placement records": option("session.record_ep_graph_assignment_info", "0"),
}


def opened(file: Path, change: Callable[[Any], None], profile: Path | None = None) -> Any:
    """A session on ``file`` with the runtime's options and one ``change``."""
    import onnxruntime

    options = session_options(1)
    change(options)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return flushed(lambda: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]))


def step_inputs(session: Any) -> Arrays:
    """Seeded numbers for every input of one stream; every frame and every cached row counts."""
    rng, inputs = np.random.default_rng(0), {}
    for port in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in port.shape]
        counts = port.name == "fresh" or "valid" in port.name
        inputs[port.name] = (np.ones(shape) if counts else rng.normal(0, 0.1, shape)).astype(np.float32)
    return inputs


def steps(session: Any, inputs: Arrays) -> None:
    """A turn."""
    for _ in range(STEPS):
        flushed(lambda: session.run(None, inputs))


def smaller(plain: Path) -> dict[str, Path]:
    """Files of the same step whose weight products have int8 or int4 weights, made beside ``plain``."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    dynamic = plain.with_name("dynamic.onnx")
    if not dynamic.exists():  # 7 bits: products of 8 overflow on processors without VNNI
        quantize_dynamic(
            plain, dynamic, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
        )  # fmt: skip
    files = {"weight products in dynamic int8": dynamic}
    for bits, block, level, name in WEIGHTS:
        files[name] = plain.with_name(f"weights-{bits}-{level}.onnx")
        if not files[name].exists():
            quantiser = MatMulNBitsQuantizer(
                onnx.load(str(plain)), bits=bits, block_size=block, is_symmetric=True, accuracy_level=level
            )
            quantiser.process()
            onnx.save(quantiser.model.model, str(files[name]))
    return files


def compared(plain: Path, files: Mapping[str, Path], repeats: int) -> dict[str, Any]:
    """Every choice in one run: its step, how many times faster than plain, and its features against plain's."""
    sessions = {name: opened(plain, change) for name, change in SESSIONS.items()}
    sessions |= {name: opened(file, SESSIONS[PLAIN]) for name, file in files.items()}
    inputs = step_inputs(sessions[PLAIN])
    features = {name: _features(session, inputs) for name, session in sessions.items()}
    turns = take_turns({n: partial(steps, s, inputs) for n, s in sessions.items()}, repeats=repeats, warmup=2)
    times = {name: [t / STEPS for t in turn.processor_s] for name, turn in turns.items()}
    return {
        name: {
            "step_ms": spread([1000 * t for t in taken]),
            "times_as_fast": ratios(times[PLAIN], taken),
            "cosine": difference(features[name], features[PLAIN]).mean_cosine,
            "mb": round(files.get(name, plain).stat().st_size / 1e6, 1),
        }
        for name, taken in times.items()
    }


def _features(session: Any, inputs: Arrays) -> np.ndarray:
    """(1, C, W)"""
    return np.asarray(session.run([FEATURES], inputs)[0]).reshape(1, -1, session.get_outputs()[0].shape[-1])


def profile(file: Path) -> dict[str, dict[str, float]]:
    """Operator -> share of the time in operators, and how many there are in a step, by the engine's own profiler."""
    with tempfile.TemporaryDirectory() as folder:
        session = opened(file, SESSIONS[PLAIN], Path(folder) / "step")
        inputs = step_inputs(session)
        for _ in range(PROFILED_STEPS):
            flushed(lambda: session.run(None, inputs))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    spent, count = Counter[str](), Counter[str]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
            count[event["args"]["op_name"]] += 1
    total = sum(spent.values())
    return {n: {"share": t / total, "in_a_step": count[n] / PROFILED_STEPS} for n, t in spent.most_common()}


def main() -> int:
    args = parser(__doc__).parse_args()
    work = workplace(args)
    plain = plain_onnx(student_of("arm-stream"), work / "arm-stream-step.onnx", context=CONTEXT)
    rows = compared(plain, smaller(plain), args.repeats)
    print("| choice | MB | step ms | times as fast as plain | cosine to plain |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        ratio, step = shown(row["times_as_fast"]), row["step_ms"]["median"]
        print(f"| {name} | {row['mb']} | {step:.2f} | {ratio} | {row['cosine']:.5f} |")
    operators = profile(plain)
    print("\n| operator | in a step | share |\n|---|---|---|")
    for name, row in operators.items():
        print(f"| {name} | {row['in_a_step']:.0f} | {100 * row['share']:.1f} % |")
    result = {"machine": machine(1), "repeats": args.repeats, "choices": rows, "profile": operators}
    write_json(result, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
