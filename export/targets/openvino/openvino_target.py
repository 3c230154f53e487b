"""OpenVINO: the IR ``model.xml`` with its weights ``model.bin``, by way of the plain ONNX file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.proof import ProofGraph
from reuse_distill.export.proof.openvino_graph import read_ir
from reuse_distill.export.quantise.calibration import EveryFeed, check_same
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets import Job, Made, Opened, Target, of_layers
from reuse_distill.export.targets.onnx import onnx_target
from reuse_distill.export.targets.onnx.layer_probe import LayerProbe, with_layer_outputs
from reuse_distill.export.targets.openvino.ir_convert import convert_onnx, save_ir
from reuse_distill.export.targets.openvino.nncf_int8 import nodes_in_float, quantise
from reuse_distill.export.targets.openvino.stateful import engine_keeps, hold_states, static_steps, whole_steps
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import list_files, read_bundle, write_manifest
from reuse_distill.runtime.bundle_format.manifest import State
from reuse_distill.runtime.engines.denormals import restored
from reuse_distill.runtime.engines.openvino.held_states import ENGINE, STATES, HeldStates
from reuse_distill.runtime.engines.openvino.openvino_backend import read_model, warm_up
from reuse_distill.runtime.engines.openvino.openvino_device import CAPABILITIES, PRECISION, load_openvino, properties
from reuse_distill.runtime.errors import RdError

ARTIFACT = "model.xml"
PLAIN = "model.onnx"
PACKAGES = ("torch", "onnx", "onnxscript", "openvino")
EMULATED = (
    "ONNX Runtime, convolutions and matrix products of operands rounded to bfloat16; this processor has no bfloat16, "
    "and the artifact computing in it is unmeasured"
)


class OpenvinoTarget(Target):
    """OpenVINO on the CPU; its GPU and NPU plugins read the same file."""

    precisions = ("fp32", "fp16", "bf16", "int8")
    several_chunks = True

    def __init__(self) -> None:
        self._opened = Opened[Encoder]()

    def adapt(self, spec: ExportSpec) -> ExportSpec:
        """A stateful model has a fixed number of streams."""
        return static_steps(spec) if engine_keeps(spec) else spec

    def shaped(self, captured: Capture, spec: ExportSpec) -> Capture:
        """A stateful model replaces its states whole."""
        return whole_steps(captured, spec) if engine_keeps(spec) else captured

    def recipe_values(self, recipe: Recipe) -> dict[str, Any]:
        """Blocks in float, symmetric activations and 7-bit weights of static int8."""
        if not recipe.calibrates:
            return {}
        return {"in_float": None, "symmetric_activations": None, "reduce_range": None}

    def make(self, job: Job, candidate: str) -> Made:
        load_openvino()  # before the conversion takes its time
        plain = job.scratch / PLAIN
        if not plain.exists():
            onnx_target.convert(job.captured, plain)
        model, done = convert_onnx(plain), dict[str, Any]()
        packages: tuple[str, ...] = PACKAGES
        if job.spec.precision == "int8":
            model, done = self._quantised(model, plain, job, candidate)
            packages = (*PACKAGES, "nncf")
        device = {PRECISION: _precision(job)}
        if engine_keeps(job.spec):
            hold_states(model, job.captured.states)
            device[STATES] = ENGINE
        save_ir(model, job.folder / ARTIFACT, half_weights=job.spec.precision == "fp16")
        if job.spec.precision == "fp16":
            done = {"method": "cast", "weights": "float16", "activations": "float32 on a CPU"}
        if job.spec.precision == "bf16":
            done = {"method": "hint", "weights": "float32 in the file", "activations": "bfloat16, by the engine"}
        return Made(ARTIFACT, job.captured.states, done, device=device, packages=packages)

    def _quantised(self, model: Any, plain: Path, job: Job, candidate: str) -> tuple[Any, dict[str, Any]]:
        """The model in int8, and what the manifest says about it."""
        recipe = job.spec.recipe_of(candidate)
        if job.calibration is None:
            raise RdError(
                "int8 needs speech to calibrate with", hint="add --calibration AUDIO (a folder, 20 s or more)"
            )
        check_same(recipe, job.calibration)
        front_end = "float" if recipe.keeps_in_float(FRONT_END) else "int8"
        job.say(f"quantising by NNCF, front end in {front_end}, with {job.calibration.seconds:.0f} s of audio")
        rows = EveryFeed(job.captured, job.spec, job.calibration)
        quantised, done = quantise(model, rows, recipe, nodes_in_float(plain, recipe, job.depth))
        return quantised, {**done, **onnx_target.calibrated_with(job, recipe)}

    def read_graph(self, artifact: Path) -> ProofGraph:
        return read_ir(artifact)

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        """By the runtime; bfloat16 on a processor without it by ONNX Runtime, from a graph that rounds to it."""
        return of_layers(self.encoder(bundle, job).extract(wave), job.spec)

    def encoder(self, bundle: Path, job: Job) -> Encoder:
        """What computes as the artifact does on a processor that has its precision."""
        return self._opened.of(
            bundle,
            lambda: Encoder.load(_rounding_bundle(bundle, job) if _emulated(job) else bundle, provider="cpu"),
        )

    def measured_by(self, job: Job) -> str | None:
        """What the parity of a manifest was measured with; None: the runtime."""
        return EMULATED if _emulated(job) else None

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]]:
        if _emulated(job):
            return LayerProbe.of_onnx(_rounding_bundle(bundle, job) / PLAIN, job.captured, job.depth).run
        _, names = with_layer_outputs(job.scratch / PLAIN, job.depth, job.captured.student.config)
        states = job.captured.states if engine_keeps(job.spec) else ()
        session = IrSession(bundle / ARTIFACT, names, _precision(job), states)
        return LayerProbe(session, names, job.captured).run


class IrSession:
    """An IR with more outputs, called as ONNX Runtime's sessions are; ``states``: those that the model keeps."""

    def __init__(self, artifact: Path, names: list[str], precision: str, states: Sequence[State] = ()) -> None:
        openvino = load_openvino()
        core = openvino.Core()
        model = read_model(core, artifact)
        present = {name for port in model.outputs for name in port.get_names()}
        model.add_outputs([name for name in names if name not in present])
        compiled = restored(lambda: core.compile_model(model, "CPU", properties(precision, 1, "CPU", {})))
        self._inputs = [port.get_any_name() for port in compiled.inputs]
        self._request, self._states = compiled.create_infer_request(), tuple(states)
        warm_up(compiled, self._request, artifact)
        self._held = HeldStates(self._request, self._states, openvino.Tensor)

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs ``names``."""
        for state in self._states:
            self._held.write(state.name, inputs[state.input])
        self._request.infer({name: inputs[name] for name in self._inputs})
        kept = {state.output: state.name for state in self._states}
        return [
            self._held.read(kept[name]) if name in kept else np.array(self._request.get_tensor(name).data)
            for name in names
        ]

    def get_inputs(self) -> list[Any]:
        """The inputs by name; states and samples are float32 in every precision of this target."""
        names = [*self._inputs, *(state.input for state in self._states)]
        return [SimpleNamespace(name=name, type="tensor(float)") for name in names]


def _precision(job: Job) -> str:
    """What the engine is to compute in."""
    return "bf16" if job.spec.precision == "bf16" else "f32"


def _emulated(job: Job) -> bool:
    """Whether the export asks for bfloat16 and this processor has none."""
    if job.spec.precision != "bf16":
        return False
    return CAPABILITIES["bf16"] not in load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _rounding_bundle(bundle: Path, job: Job) -> Path:
    """The student as an ONNX bundle in the scratch folder whose products take operands rounded to bfloat16."""
    folder = job.scratch / "rounding"
    if not folder.exists():
        folder.mkdir()
        write_rounding(job.scratch / PLAIN, folder / PLAIN)
        manifest = read_bundle(bundle).manifest
        preview = dataclasses.replace(manifest, target="onnx", artifact=PLAIN, device=None, files=list_files(folder))
        write_manifest(folder, preview)
    return folder


def write_rounding(source: Path, target: Path) -> None:
    """Write an ONNX file whose convolutions and matrix products round their operands to bfloat16 and sum in float32."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(source))
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            for index in (0, 1):
                name = f"{node.name}_operand_{index}"
                narrow, wide = f"{name}_bf16", f"{name}_float"
                nodes.append(
                    helper.make_node("Cast", [node.input[index]], [narrow], name=narrow, to=TensorProto.BFLOAT16)
                )
                nodes.append(helper.make_node("Cast", [narrow], [wide], name=wide, to=TensorProto.FLOAT))
                node.input[index] = wide
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(target))
