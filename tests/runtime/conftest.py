"""Toy bundles: ONNX graphs of a few nodes whose result depends on all of their history, and NumPy for what they give.

The toy student: x_t = tanh(conv of samples [320 t, 320 t + 400)); h_t = tanh(sum_k w_k x_{t+k}, k = -P..R), zeros
outside the audio; streaming adds attention of every chunk to itself and the L frames before it, and a weighted sum
of the T frames before the chunk, oldest first. Layers: h and the sum of all.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from reuse_distill.runtime.bundle_format import bundle as bundles
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest, State, Tensor
from reuse_distill.runtime.geometry import frames_for, samples_for
from reuse_distill.runtime.tasks import TaskOutput

# The same examples in every run: a failure in one place is a failure everywhere.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

WIDTH = 6
LAYERS = 2


@dataclass(frozen=True)
class Toy:
    """Sizes of a toy student and its weights from a seeded generator."""

    chunk: int = 4
    lookahead: int = 2
    left: int = 13  # slots of the ring; not a multiple of the chunk
    trace: int = 7  # rows of the ordered state
    past: int = 3  # taps of h before its frame
    layers: int = LAYERS
    batch: int | str = "B"
    half: bool = False  # states in float16
    whole: bool = False  # steps return whole states, oldest row first
    seed: int = 0
    heads: bool = False  # units and letters of the last layer beside the features
    features: bool = True
    choices: tuple[int, ...] = ()  # chunk sizes of a step; none: only ``chunk``

    def weights(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        draw = lambda *shape, scale: (scale * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
        return {
            "front": draw(WIDTH, 1, 400, scale=0.3),
            "taps": draw(WIDTH, WIDTH, self.past + self.lookahead + 1, scale=0.3),
            "trace": draw(self.trace, 1, scale=0.5),
        }


def frames_of(toy: Toy, wave: np.ndarray) -> np.ndarray:
    """h (F, W) of a whole wave, by the definition."""
    w, count = toy.weights(), frames_for(len(wave))
    x = np.zeros((count + toy.past + toy.lookahead, WIDTH))
    for t in range(count):
        x[t + toy.past] = np.tanh(w["front"][:, 0].astype(float) @ wave[320 * t : 320 * t + 400])
    taps = np.stack(
        [np.einsum("kw,owk->o", x[t : t + w["taps"].shape[2]], w["taps"]) for t in range(count)] or [np.zeros(WIDTH)]
    )
    return np.tanh(taps)[:count]


def streaming_reference(toy: Toy, wave: np.ndarray, plan: Sequence[int] = ()) -> np.ndarray:
    """Features (N, F, W) of a whole wave as the chunk-masked forward defines them; ``plan``: sizes of the chunks."""
    h, w = frames_of(toy, wave), toy.weights()
    out = np.zeros_like(h)
    sizes, firsts = list(plan) or [toy.chunk], [-toy.lookahead]
    while firsts[-1] < len(h):
        firsts.append(firsts[-1] + sizes[min(len(firsts) - 1, len(sizes) - 1)])
    for t in range(len(h)):
        chunk = bisect.bisect_right(firsts, t) - 1
        first = firsts[chunk]
        seen = h[max(0, first - toy.left) : firsts[chunk + 1]]
        scores = seen @ h[t]
        attention = np.exp(scores - scores.max())
        rows = np.zeros((toy.trace, WIDTH))
        past = h[max(0, first - toy.trace) : max(first, 0)]
        rows[toy.trace - len(past) :] = past
        out[t] = h[t] + attention @ seen / attention.sum() + np.tanh(w["trace"][:, 0] @ rows)
    return np.stack([h, out][-toy.layers :]).astype(np.float32)


def offline_reference(toy: Toy, wave: np.ndarray) -> np.ndarray:
    """Features (N, F, W) of a whole wave: h, and h plus its mean and the power of all samples, the last ones too."""
    h = frames_of(toy, wave)
    whole = h.mean(0, keepdims=True) + 30 * np.square(wave).mean() if len(h) else h
    return np.stack([h, h + whole][-toy.layers :]).astype(np.float32)


UNITS = TaskOutput("units", "units", WIDTH)
LETTERS = TaskOutput("letters", "ctc", WIDTH, ("-", "a", "b", "c", "d", "|"), blank=0, delimiter="|")


def with_heads(toy: Toy, nodes: list, outputs: list[Tensor]) -> list[Tensor]:
    """The outputs of the toy's settings: units and letters are made of the last layer ``sum`` [B, F, W]."""
    batch, frames = outputs[0].shape[0], outputs[0].shape[2]
    kept = outputs if toy.features else outputs[1:]
    if not toy.heads:
        return kept
    nodes += [
        ("ArgMax", ["sum"], ["units_long"], {"axis": -1, "keepdims": 1}),
        ("Cast", ["units_long"], ["units"], {"to": TensorProto.INT32}),
        ("LogSoftmax", ["sum"], ["letters"], {"axis": -1}),
    ]
    at = 1 if toy.features else 0
    heads = [Tensor(head.name, head.dtype, (batch, frames, head.columns)) for head in (UNITS, LETTERS)]
    return [*kept[:at], *heads, *kept[at:]]


def _model(nodes: list, inputs: list[Tensor], outputs: list[Tensor], constants: dict[str, np.ndarray]) -> bytes:
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int32": TensorProto.INT32}
    values = [
        [helper.make_tensor_value_info(t.name, kinds[t.dtype], list(t.shape)) for t in group]
        for group in (inputs, outputs)
    ]
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **kw) for op, ins, outs, kw in nodes],
        "toy",
        *values,
        initializer=[numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def streaming_model(toy: Toy) -> tuple[bytes, list[Tensor], list[Tensor], list[State]]:
    """The step graph and its contract."""
    b, r = toy.batch, toy.lookahead
    c, window = ("C", "320*C + 80") if toy.choices else (toy.chunk, 320 * toy.chunk + 80)
    kind = "float16" if toy.half else "float32"
    kept = toy.past + r
    states = [
        State("position", "position", "position_out", kind, (b, WIDTH, kept), "replace", 2, True, "position"),
        State("exists", "exists", "exists_out", "float32", (b, r), "replace", 1, True, "position_validity"),
        State("keys", "keys", "keys_out", kind, (b, 1, toy.left, WIDTH), "append", 2, False, "keys"),
        State("valid", "valid", "valid_out", "float32", (b, toy.left), "append", 1, False, "validity"),
        State("trace", "trace", "trace_out", kind, (b, toy.trace, WIDTH), "append", 1, True, "values"),
    ]
    states = [s for s in states if s.name != "exists" or r]
    if toy.whole:
        states = [replace(s, update="replace", ordered=True) for s in states]
    inputs = [Tensor("samples", "float32", (b, window)), Tensor("fresh", "float32", (b, c))]
    outputs = [Tensor("features", "float32", (b, toy.layers, c, WIDTH))]
    for s in states:
        rows = list(s.shape)
        rows[s.axis] = c if s.update == "append" else rows[s.axis]
        inputs.append(Tensor(s.input, s.dtype, s.shape))
        outputs.append(Tensor(s.output, s.dtype, tuple(rows)))
    to_float = lambda name: ("Cast", [name], [name + "_f"], {"to": TensorProto.FLOAT})  # noqa: E731
    to_state = lambda a, b: ("Cast", [a], [b], {"to": TensorProto.FLOAT16 if toy.half else TensorProto.FLOAT})  # noqa: E731
    nodes = [
        to_float("position"), to_float("keys"), to_float("trace"),
        ("Unsqueeze", ["samples", "axis1"], ["wave"], {}),
        ("Conv", ["wave", "front"], ["conv"], {"strides": [320]}),
        ("Tanh", ["conv"], ["x_all"], {}),
        ("Unsqueeze", ["fresh", "axis1"], ["fresh3"], {}),
        ("Mul", ["x_all", "fresh3"], ["x"], {}),  # [B, W, C]
        ("Concat", ["position_f", "x"], ["heard"], {"axis": 2}),
        ("Slice", ["heard", "from_c", "far", "axis2"], ["heard_new"], {}), to_state("heard_new", "position_out"),
        ("Conv", ["heard", "taps"], ["y"], {}),
        ("Tanh", ["y"], ["h_all"], {}),
        ("Concat", ["exists", "fresh"] if r else ["fresh"], ["exist"], {"axis": 1}),
        ("Slice", ["exist", "zero", "c", "axis1"], ["now"], {}),  # [B, C]: which of the outputs exist
        *([("Slice", ["exist", "c", "far", "axis1"], ["exists_out"], {})] if r else []),
        ("Transpose", ["h_all"], ["h_t"], {"perm": [0, 2, 1]}),  # [B, C, W]
        ("Unsqueeze", ["now", "axis2"], ["now3"], {}),
        ("Mul", ["h_t", "now3"], ["h"], {}),
        to_state("h", "trace_out"),
        ("Squeeze", ["keys_f", "axis1"], ["keys3"], {}),
        ("Concat", ["keys3", "h"], ["seen"], {"axis": 1}),  # [B, L + C, W]
        ("Concat", ["valid", "now"], ["seen_valid"], {"axis": 1}),
        ("Sub", ["seen_valid", "one"], ["missing"], {}),
        ("Mul", ["missing", "large"], ["bias2"], {}),
        ("Unsqueeze", ["bias2", "axis1"], ["bias"], {}),
        ("Transpose", ["seen"], ["seen_t"], {"perm": [0, 2, 1]}),
        ("MatMul", ["h", "seen_t"], ["dots"], {}),
        ("Add", ["dots", "bias"], ["scores"], {}),
        ("Softmax", ["scores"], ["map"], {"axis": -1}),
        ("MatMul", ["map", "seen"], ["mixed"], {}),
        ("Mul", ["trace_f", "trace_w"], ["weighed"], {}),
        ("ReduceSum", ["weighed", "axis1"], ["summed"], {"keepdims": 1}),
        ("Tanh", ["summed"], ["memory"], {}),
        ("Add", ["h", "mixed"], ["sum1"], {}), ("Add", ["sum1", "memory"], ["sum"], {}),
        ("Unsqueeze", ["sum", "axis1"], ["sum4"], {}), ("Unsqueeze", ["h", "axis1"], ["h4"], {}),
        ("Concat", ["h4", "sum4"][-toy.layers :], ["features"], {"axis": 1}),
        to_state("h4", "keys_out"), ("Identity", ["now"], ["valid_out"], {}),
    ]  # fmt: skip
    if toy.whole:
        for name, rows in (("keys", "axis2"), ("valid", "axis1"), ("trace", "axis1")):
            last = next(node for node in nodes if node[2] == [f"{name}_out"])
            last[2][0] = f"{name}_rows"
            nodes += [
                ("Concat", [name, f"{name}_rows"], [f"{name}_all"], {"axis": int(rows[-1])}),
                ("Slice", [f"{name}_all", f"{name}_first", "far", rows], [f"{name}_out"], {}),
            ]
    w = toy.weights()
    constants = {
        "front": w["front"], "taps": w["taps"], "trace_w": w["trace"],
        "keys_first": _ints(-toy.left), "valid_first": _ints(-toy.left), "trace_first": _ints(-toy.trace),
        "one": np.float32([1]), "large": np.float32([1e4]),
        "axis1": _ints(1), "axis2": _ints(2), "zero": _ints(0), "far": _ints(1 << 30),
    }  # fmt: skip
    if toy.choices:
        nodes = [("Shape", ["fresh"], [name], {"start": 1, "end": 2}) for name in ("c", "from_c")] + nodes
    else:
        constants |= {"c": _ints(toy.chunk), "from_c": _ints(toy.chunk)}
    outputs = with_heads(toy, nodes, outputs)
    return _model(nodes, inputs, outputs, constants), inputs[:2], outputs[: len(outputs) - len(states)], states


def offline_model(toy: Toy) -> tuple[bytes, list[Tensor], list[Tensor], list[State]]:
    """The whole utterance at once."""
    inputs, outputs = (
        [Tensor("wave", "float32", (1, "T"))],
        [Tensor("features", "float32", (1, toy.layers, "F", WIDTH))],
    )
    nodes = [
        ("Unsqueeze", ["wave", "axis1"], ["wave3"], {}),
        ("Conv", ["wave3", "front"], ["conv"], {"strides": [320]}),
        ("Tanh", ["conv"], ["x"], {}),
        ("Conv", ["x", "taps"], ["y"], {"pads": [toy.past, toy.lookahead]}),
        ("Tanh", ["y"], ["h_w"], {}),
        ("Transpose", ["h_w"], ["h"], {"perm": [0, 2, 1]}),
        ("ReduceMean", ["h", "axis1"], ["mean"], {"keepdims": 1}),
        ("Mul", ["wave", "wave"], ["square"], {}), ("ReduceMean", ["square", "axis1"], ["power"], {"keepdims": 1}),
        ("Mul", ["power", "thirty"], ["level"], {}),
        ("Add", ["mean", "level"], ["whole"], {}), ("Add", ["h", "whole"], ["sum"], {}),
        ("Unsqueeze", ["h", "axis1"], ["h4"], {}), ("Unsqueeze", ["sum", "axis1"], ["sum4"], {}),
        ("Concat", ["h4", "sum4"][-toy.layers :], ["features"], {"axis": 1}),
    ]  # fmt: skip
    w = toy.weights()
    constants = {"front": w["front"], "taps": w["taps"], "axis1": _ints(1), "thirty": np.float32([30])}
    outputs = with_heads(toy, nodes, outputs)
    return _model(nodes, inputs, outputs, constants), inputs, outputs, []


def window_model(toy: Toy, g: Geometry) -> tuple[bytes, list[Tensor], list[Tensor], list[State]]:
    """A static window: h as far as the context reaches, and its mean over the valid frames of the window."""
    frames = g.left_frames + g.chunk_frames + g.right_frames
    inputs = [Tensor("wave", "float32", (1, samples_for(frames))), Tensor("frame_valid", "float32", (1, frames))]
    outputs = [Tensor("features", "float32", (1, toy.layers, g.chunk_frames, WIDTH))]
    nodes = [
        ("Unsqueeze", ["wave", "axis1"], ["wave3"], {}),
        ("Conv", ["wave3", "front"], ["conv"], {"strides": [320]}),
        ("Tanh", ["conv"], ["x_all"], {}),
        ("Unsqueeze", ["frame_valid", "axis1"], ["valid_row"], {}),
        ("Unsqueeze", ["frame_valid", "axis2"], ["valid"], {}),
        ("Mul", ["x_all", "valid_row"], ["x"], {}),
        ("Conv", ["x", "taps"], ["y"], {"pads": [toy.past, toy.lookahead]}),
        ("Tanh", ["y"], ["h_w"], {}),
        ("Transpose", ["h_w"], ["h_all"], {"perm": [0, 2, 1]}),
        ("Mul", ["h_all", "valid"], ["h_valid"], {}),
        ("ReduceSum", ["h_valid", "axis1"], ["total"], {"keepdims": 1}),
        ("ReduceSum", ["valid", "axis1"], ["count"], {"keepdims": 1}),
        ("Div", ["total", "count"], ["mean"], {}),
        ("Slice", ["h_valid", "low", "high", "axis1"], ["h"], {}),
        ("Add", ["h", "mean"], ["sum"], {}),
        ("Unsqueeze", ["h", "axis1"], ["h4"], {}), ("Unsqueeze", ["sum", "axis1"], ["sum4"], {}),
        ("Concat", ["h4", "sum4"][-toy.layers :], ["features"], {"axis": 1}),
    ]  # fmt: skip
    w = toy.weights()
    constants = {
        "front": w["front"], "taps": w["taps"], "axis1": _ints(1), "axis2": _ints(2),
        "low": _ints(g.left_frames), "high": _ints(g.left_frames + g.chunk_frames),
    }  # fmt: skip
    outputs = with_heads(toy, nodes, outputs)
    return _model(nodes, inputs, outputs, constants), inputs, outputs, []


def speech(samples: int, seed: int = 1) -> np.ndarray:
    """Loud and quiet noise with a slow envelope, (T,) float32: every stretch differs from every other."""
    rng = np.random.default_rng(seed)
    envelope = 0.55 + 0.45 * np.sin(np.arange(samples) / 4000.0)
    return (0.1 * envelope * rng.standard_normal(samples)).astype(np.float32)


def head_reference(head: TaskOutput, features: np.ndarray) -> np.ndarray:
    """Output (F, K) of a toy's head for features (N, F, W)."""
    last = features[-1].astype(np.float64)
    if head.kind == "units":
        return last.argmax(1)[:, None].astype(np.int32)
    return (last - np.log(np.exp(last).sum(1, keepdims=True))).astype(np.float32)


WINDOW = Geometry(chunk_frames=4, left_frames=9, right_frames=3)
TAILS = 9


def write_toy(path: Path, kind: str, toy: Toy = Toy(), *, wave: np.ndarray | None = None, **changes: object) -> Path:
    """Write a toy bundle with its self test; ``changes`` replace fields of the manifest."""
    geometry = {
        "offline": Geometry(),
        "window": WINDOW,
        "streaming": Geometry(toy.chunk, toy.lookahead, toy.left, 0),
    }[kind]
    model = {
        "offline": lambda: offline_model(toy),
        "window": lambda: window_model(toy, geometry),
        "streaming": lambda: streaming_model(toy),
    }[kind]()
    wave = speech(320 * 61 + 123) if wave is None else wave
    reference = streaming_reference if kind == "streaming" else offline_reference
    bound = {"mean_cosine": 0.5} if kind == "window" else {"max_abs": 5e-3 if toy.half else 2e-5}
    with bundles.write_bundle(path) as folder:
        (folder / "model.onnx").write_bytes(model[0])
        arrays = {"wave": wave, "features": reference(toy, wave)}
        heads = (UNITS, LETTERS) if toy.heads else ()
        if kind == "streaming":
            tails = np.arange(1, TAILS + 1) + frames_for(len(wave)) // 2
            cut = [reference(toy, wave[: samples_for(int(k))]) for k in tails]
            if toy.choices:
                plan = [*toy.choices, *toy.choices[::-1], *toy.choices[::2], toy.chunk]
                arrays |= {"switch_chunks": np.array(plan), "switch_features": reference(toy, wave, plan)}
            arrays |= {"tail_frames": tails, "tail_features": np.stack([f[:, -3:] for f in cut])}
        for head in heads:
            arrays[f"head {head.name}"] = head_reference(head, arrays["features"])
            if kind == "streaming":
                rows = [head_reference(head, features) for features in arrays["tail_features"]]
                arrays[f"tail_head {head.name}"] = np.stack(rows)
        if not toy.features:
            arrays["features"] = arrays["features"][:0, :, :0]
            if kind == "streaming":
                arrays["tail_features"] = arrays["tail_features"][:, :0, :, :0]
        np.savez(folder / bundles.SELFTEST, **arrays)
        manifest = Manifest(
            kind=kind, target="onnx", precision="fp16" if toy.half else "fp32", status="built", artifact="model.onnx",
            features="hidden" if toy.features else "none",
            layers=tuple(range(1, toy.layers + 1)) if toy.features else (), heads=heads,
            feature_width=WIDTH if toy.features else 0, inputs=tuple(model[1]),
            outputs=tuple(model[2]), states=tuple(model[3]), geometry=geometry, files=bundles.list_files(folder),
            chunk_choices=toy.choices if kind == "streaming" else (),
            source={"name": "toy"}, tools={"onnx": onnx.__version__},
            parity={"reference": "NumPy", "bound": bound, "heads": {
                "units": {"bound": {"agreement": 0.95}}, "letters": {"bound": bound}}} if toy.heads
            else {"reference": "NumPy", "bound": bound},
        )  # fmt: skip
        bundles.write_manifest(folder, replace(manifest, **changes))
    return path


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What the tests of this room share: ready bundles by kind, the builder, and the definitions in NumPy."""
    folder = tmp_path_factory.mktemp("toys")
    ready = {kind: write_toy(folder / kind, kind) for kind in ("offline", "window", "streaming")}

    def build(kind: str, toy: Toy = Toy(), **kw: object) -> Path:
        return write_toy(Path(folder) / f"{kind}-{len(list(folder.iterdir()))}", kind, toy, **kw)

    return SimpleNamespace(
        **ready, build=build, Toy=Toy, WIDTH=WIDTH, WINDOW=WINDOW, speech=speech,
        streaming_reference=streaming_reference, offline_reference=offline_reference, frames_of=frames_of,
        head_reference=head_reference, UNITS=UNITS, LETTERS=LETTERS,
    )  # fmt: skip
