"""NNCF's accuracy-aware quantisation against our search for blocks in float: what each puts back, and what it costs.

    OMP_NUM_THREADS=1 python -m benchmarks.accuracy_control student/weights/tiny \\
        --json benchmarks/results/accuracy_control.json

Both end in an OpenVINO IR of whole utterances under one limit: 1 - mean frame cosine to torch float32 on recordings
held out of calibration. Both begin with the same calibration audio and the same nodes in float from the start
(attention products, softmax, the waveform and the positional convolution). Our search moves blocks of the student on
ONNX Runtime (``rd-export --max-drift``), and its recipe is then given to NNCF; ``nncf.quantize_with_accuracy_control``
takes quantisers out of the IR itself, by our metric. Utterances take turns, ratios to the float32 IR turn by turn.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.distill.tradeoff.side_by_side import take_turns
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.checkpoint_source import Source, read_source
from reuse_distill.export.parity.reference import read_named_clips, reference_features
from reuse_distill.export.pipeline import CheckAudio, export_bundle
from reuse_distill.export.quantise.calibration import CalibrationSet, feeds, read_calibration
from reuse_distill.export.quantise.quantisation_recipe import Recipe, of_precision, read_recipe
from reuse_distill.export.spec import ExportSpec, Offline
from reuse_distill.export.targets.onnx.onnx_target import convert
from reuse_distill.export.targets.onnx.overflow import products_overflow
from reuse_distill.export.targets.openvino.ir_convert import convert_onnx, save_ir
from reuse_distill.export.targets.openvino.nncf_int8 import nodes_in_float, present_in, quiet
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.engines.denormals import flushed, restored
from reuse_distill.runtime.engines.openvino.openvino_device import load_openvino, properties
from reuse_distill.runtime.equivalence.parity import difference

from benchmarks.artifacts import SPEECH
from benchmarks.command import parser, workplace, write_json
from benchmarks.timing import machine, ratios, shown, spread

LIMIT = 0.01  # 1 - mean frame cosine
RANKED_ON = 1  # clips that NNCF ranks its quantisers on, again after every one that it took out; all check the result
TIMED_SECONDS = 5.0
PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
QUANTISER = "FakeQuantize"
PASSED = ("Convert", "Reshape", "Transpose", "Multiply", "Subtract")  # between a stored weight and its product
FLOAT, PLAIN, OURS, CONTROL = "float32", "int8, plain", "int8, our search", "int8, NNCF accuracy control"


@dataclasses.dataclass(frozen=True)
class Task:
    """One student, its audio, and what torch gives."""

    source: Source
    spec: ExportSpec
    audio: CheckAudio
    references: tuple[np.ndarray, ...]  # (N, F, W) of each clip that checks
    recipe: Recipe  # of plain int8
    work: Path

    @property
    def calibration(self) -> CalibrationSet:
        assert self.audio.calibration is not None
        return self.audio.calibration

    def cosine(self, run: Callable[[np.ndarray], np.ndarray]) -> float:
        """Mean frame cosine of ``run`` over all frames of the clips that check."""
        return self.cosines(run, range(len(self.references)))[0]

    def cosines(self, run: Callable[[np.ndarray], np.ndarray], numbers: Iterable[int]) -> tuple[float, list[float]]:
        """(mean frame cosine over all frames of the clips ``numbers``, of each of them)."""
        rows = [difference(run(self.audio.clips[number]), self.references[number]) for number in numbers]
        frames = sum(row.frames for row in rows)
        return sum(row.mean_cosine * row.frames for row in rows) / frames, [row.mean_cosine for row in rows]


def read_task(checkpoint: Path, audio: Path, work: Path) -> Task:
    """The last layer of a student, calibrated on three quarters of ``audio`` and checked on the rest."""
    source = read_source(checkpoint, None)
    features = "hidden" if source.student.config.head_width is None else "heads"
    recipe = dataclasses.replace(of_precision("int8"), reduce_range=products_overflow())
    spec = ExportSpec("openvino", Offline(), "int8", (source.student.config.layers,), features, given=recipe)
    calibration = read_calibration(audio, accept_narrow=True)
    clips = [clip for _, clip in read_named_clips(calibration.held_out)]
    references = tuple(reference_features(source.student, spec, clip) for clip in clips)
    checked = CheckAudio(calibration, clips, "recordings held out of calibration")
    return Task(source, spec, checked, references, recipe, work)


def bundle(task: Task, name: str, **changes: Any) -> Path:
    """An export of the task's student; its bound is not what is asked here, so none is set."""
    folder = task.work / name
    if not folder.exists():
        spec = dataclasses.replace(task.spec, **changes)
        export_bundle(task.source, spec, folder, audio=task.audio, min_cosine=None if spec.precision == "fp32" else -1)
    return folder


def our_search(task: Task, limit: float) -> tuple[Path, dict[str, Any]]:
    """(the IR made with the recipe that ``--max-drift`` found on ONNX Runtime, what the search tells)."""
    start_s = time.perf_counter()
    changes = {"target": "onnx", "given": None, "max_drift": limit}
    folder = task.work / "searched"
    spec = dataclasses.replace(task.spec, **changes)
    export_bundle(task.source, spec, folder, audio=task.audio, min_cosine=1 - limit, overwrite=True)
    searched_s = time.perf_counter() - start_s
    told = read_bundle(folder).manifest.quantisation
    file = task.work / "recipe.json"
    file.write_text(json.dumps(told["recipe"]), encoding="utf-8")
    recipe = dataclasses.replace(read_recipe(file), reduce_range=task.recipe.reduce_range)
    made = bundle(task, "ours", given=recipe)
    search = told["search"]
    return made / "model.xml", {
        "search_s": searched_s,
        "with_the_ir_s": time.perf_counter() - start_s,
        "trials": len(search["blocks"]) + len(search["frontier"]) + 1,
        "blocks_in_float": search["chosen"]["in_float"],
        "cosine_on_onnx_runtime": 1 - search["chosen"]["drift"],
    }


def accuracy_control(task: Task, limit: float) -> tuple[Path, dict[str, Any]]:
    """(the IR that ``nncf.quantize_with_accuracy_control`` makes under our metric, what that took)."""
    load_openvino()
    with quiet():
        import nncf
    captured = capture(task.source.student, task.spec)
    plain = task.work / "plain.onnx"
    if not plain.exists():
        convert(captured, plain)
    model = convert_onnx(plain)
    rows = [dict(row) for row in feeds(captured, task.spec, task.calibration)]
    depth = captured.student.config.layers
    ignored = sorted(present_in(model, nodes_in_float(plain, task.recipe, depth)))
    trials = 0

    def validate(compiled: Any, numbers: Iterable[int]) -> tuple[float, list[float]]:
        nonlocal trials
        trials += 1
        return task.cosines(partial(called, compiled), numbers)

    start_s = time.perf_counter()
    fix = nncf.OverflowFix.ENABLE if task.recipe.reduce_range else nncf.OverflowFix.FIRST_LAYER
    with quiet():
        quantised = nncf.quantize_with_accuracy_control(
            model,
            calibration_dataset=nncf.Dataset(rows),
            validation_dataset=nncf.Dataset(
                list(range(len(task.references))), lambda number: {"wave": task.audio.clips[number][None]}
            ),
            validation_fn=validate,
            max_drop=limit,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
            advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=RANKED_ON
            ),
        )
    spent_s = time.perf_counter() - start_s
    file = task.work / "control" / "model.xml"
    file.parent.mkdir(exist_ok=True)
    save_ir(quantised, file)
    return file, {"search_s": spent_s, "validations": trials}


def kept(file: Path, make: Callable[[], tuple[Path, dict[str, Any]]]) -> tuple[Path, dict[str, Any]]:
    """What ``make`` gave, written to ``file`` the first time: with ``--work`` a search is made once."""
    if not file.exists():
        ir, told = make()
        write_json({"ir": str(ir), "told": told}, file)
    data = json.loads(file.read_text(encoding="utf-8"))
    return Path(data["ir"]), data["told"]


def called(compiled: Any, wave: np.ndarray) -> np.ndarray:
    """Features (N, F, W) of one utterance (T,)."""
    return np.array(compiled({"wave": wave[None]})["features"][0])


def opened(file: Path) -> Any:
    """The IR as the runtime compiles it, one thread."""
    core = load_openvino().Core()
    return restored(lambda: core.compile_model(core.read_model(str(file)), "CPU", properties("f32", 1, "CPU", {})))


def products(file: Path, seconds: float = TIMED_SECONDS) -> dict[str, tuple[int, bool]]:
    """Product of the IR -> (its MACs in an utterance of ``seconds``, whether both operands are quantised)."""
    model = load_openvino().Core().read_model(str(file))
    model.reshape({"wave": [1, int(16_000 * seconds)]})
    rows = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in PRODUCTS:
            quantised = all(_is_quantised(node.input_value(index).get_node()) for index in (0, 1))
            rows[node.get_friendly_name()] = (_macs(node), quantised)
    return rows


def _macs(node: Any) -> int:
    """Numbers of the output times what each of them sums over."""
    first, second = (list(node.input(index).get_shape()) for index in (0, 1))
    outputs = math.prod(node.output(0).get_shape())
    if node.get_type_name() == "MatMul":
        return outputs * first[-2 if node.get_attributes().get("transpose_a") else -1]
    return outputs * math.prod(second[2 if node.get_type_name() == "GroupConvolution" else 1 :])


def _is_quantised(node: Any) -> bool:
    """Whether the value comes from a quantiser, or is a weight stored in int8."""
    while node.get_type_name() in PASSED:
        node = node.input_value(0).get_node()
    stored = node.get_type_name() == "Constant" and node.get_element_type().to_string() in ("i8", "u8")
    return stored or node.get_type_name() == QUANTISER


def compared(task: Task, files: Mapping[str, Path], repeats: int) -> dict[str, Any]:
    """Every IR in one run: features, products in float, and an utterance in turns with the others."""
    compiled = {name: opened(file) for name, file in files.items()}
    joined = np.concatenate(task.audio.clips)
    wave = np.resize(joined, int(16_000 * TIMED_SECONDS)).astype(np.float32)
    turns = take_turns(
        {name: partial(flushed, partial(called, one, wave)) for name, one in compiled.items()},
        repeats=repeats,
        warmup=2,
    )
    known = {name: products(file) for name, file in files.items()}
    whole = sum(macs for macs, _ in known[FLOAT].values())
    rows = {}
    for name, file in files.items():
        macs_in_int8 = sum(macs for macs, quantised in known[name].values() if quantised)
        back = [one for one, (_, quantised) in known[PLAIN].items() if quantised and not known[name][one][1]]
        rows[name] = {
            "cosine": task.cosine(partial(called, compiled[name])),
            "macs_in_float": 1 - macs_in_int8 / whole,
            "products_back_in_float": back if name != FLOAT else [],
            "utterance_ms": spread([1000 * t for t in turns[name].processor_s]),
            "times_as_fast_as_float32": ratios(turns[FLOAT].processor_s, turns[name].processor_s),
            "mb": sum(part.stat().st_size for part in (file, file.with_suffix(".bin"))) / 1e6,
        }
    return rows


def table(rows: Mapping[str, Mapping[str, Any]], searches: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The rows as the page has them."""
    lines = ["| | search, s | products back in float | MACs in float | cosine | times as fast as float32 |"]
    lines.append("|---|---|---|---|---|---|")
    for name, row in rows.items():
        spent = f"{searches[name]['search_s']:.0f}" if name in searches else "-"
        back, share = len(row["products_back_in_float"]), row["macs_in_float"]
        ratio = shown(row["times_as_fast_as_float32"])
        lines.append(f"| {name} | {spent} | {back} | {100 * share:.0f} % | {row['cosine']:.4f} | {ratio} |")
    return lines


def run(task: Task, limit: float, repeats: int) -> dict[str, Any]:
    """Both searches under ``limit``, then all four IRs side by side."""
    files = {FLOAT: bundle(task, "float32", precision="fp32", given=None) / "model.xml"}
    files[PLAIN] = bundle(task, "plain") / "model.xml"
    searches: dict[str, dict[str, Any]] = {}
    for name, search in ((OURS, our_search), (CONTROL, accuracy_control)):
        files[name], searches[name] = kept(task.work / f"{search.__name__}.json", partial(search, task, limit))
    return {"limit": limit, "searches": searches, "rows": compared(task, files, repeats)}


def main(words: Sequence[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("checkpoint", type=Path)
    options.add_argument("--audio", type=Path, default=SPEECH)
    options.add_argument("--limit", type=float, default=LIMIT, help="1 - mean frame cosine that is allowed (0.01)")
    args = options.parse_args(words)
    openvino = load_openvino()  # first: it keeps NNCF from reporting to a vendor
    import nncf

    task = read_task(args.checkpoint, args.audio, workplace(args))
    result = run(task, args.limit, args.repeats)
    print("\n".join(table(result["rows"], result["searches"])))
    engines = {"openvino": openvino.__version__.split("-")[0], "nncf": nncf.__version__}
    about = {"machine": {**machine(1), **engines}, "student": args.checkpoint.name, "seconds": TIMED_SECONDS}
    write_json({**about, "checked_on_s": sum(map(len, task.audio.clips)) / 16_000, **result}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
