"""The stages of one point: compress, count, export, probe. What is there already is not made again.

OUTPUT/students/NAME/       a compression; points that differ in precision only share it
OUTPUT/points/NAME/bundle/  the artifact, its graph proven by rd-export
OUTPUT/points/NAME/export.log, cost.json, quality.json
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import reuse_distill.student
import torch
from reuse_distill.distill.compress.compress_run import Compression, Places, compress, fitting, open_student
from reuse_distill.distill.evaluation.bootstrap import Scores
from reuse_distill.distill.evaluation.evaluate import LabelledData, Probe, outcome_of
from reuse_distill.distill.evaluation.features import Features, of_bundle, of_student
from reuse_distill.distill.files import read_json, write_json
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.tradeoff.device_times import run_command
from reuse_distill.distill.tradeoff.grid import GridPoint, TradeoffGrid
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import Bundle, read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint
from reuse_distill.student.checkpoints.checkpoint import is_checkpoint
from reuse_distill.student.cost import macs_per_second, superb_macs
from reuse_distill.student.step import check_streamable

RD_EXPORT = (sys.executable, "-m", "reuse_distill.export.rd_export")
SHIPPED = Path(reuse_distill.student.__file__).parent / "weights"
COMPARED = 16  # recordings on which features are compared frame by frame
PARTS = 4  # of an utterance, as rd-distill evaluate
Report = Callable[[str], None]


@dataclass(frozen=True)
class ProbeData:
    """A probe with the utterances that it is trained on and tested with."""

    probe: Probe
    data: LabelledData


@dataclass(frozen=True)
class PointStages:
    """Everything that the points of one grid share."""

    grid: TradeoffGrid
    output: Path
    probes: tuple[ProbeData, ...]
    report: Report

    def checkpoint(self, point: GridPoint) -> Path:
        """The point's student, compressed where it is not yet. Raises RdError where that is not possible."""
        grid, student = self.grid, find_student(point.student or self.grid.student)
        if point.fresh is not None:
            return distil_afresh(grid, point, student, self.output / "students" / f"fresh-{point.name}")
        if point.method is None:
            return student
        steps = grid.recovery_of(point)
        recipe = load_recipe(grid.recipe) if steps or point.gate_steps else None
        plan = Compression(point.methods, point.levels(), recover=steps, seed=grid.seed, gate_steps=point.gate_steps)
        output = self.output / "students" / compression_name(point, steps)
        data = None if grid.data is None else Path(grid.data)
        places = Places(student, data, output, resume=(output / "compress.json").exists(), device="cpu")
        done = output / "student"
        return done if is_checkpoint(done) else compress(plan, places, recipe, report=self.report)

    def cost(self, point: GridPoint) -> dict[str, Any]:
        """Parameters and multiply-accumulates, by the shapes of the point's student."""
        file = self.folder(point) / "cost.json"
        if not file.exists():
            student = open_student(self.checkpoint(point))
            write_json(file, count(student))
        return _mapping(file)

    def bundle(self, point: GridPoint) -> Bundle:
        """The point's artifact, exported where it is not yet. Raises RdError with rd-export's own words."""
        folder = self.folder(point) / "bundle"
        if not folder.exists():
            export(self.checkpoint(point), folder, self.grid, point)
        bundle = read_bundle(folder)
        if bundle.manifest.graph_proof is None:
            raise RdError(f"{folder} has no proof of its graph", hint="delete it and continue with --resume")
        return bundle

    def quality(self, point: GridPoint) -> dict[str, Any]:
        """Probes of the artifact through the runtime, and how far its features are from those of its student."""
        file = self.folder(point) / "quality.json"
        if not file.exists():
            source = of_bundle(point.name, Encoder.load(self.bundle(point).path, threads=1))
            rows = [probed(one, source, seed=self.grid.seed) for one in self.probes]
            own = open_student(self.checkpoint(point))
            whole = open_student(find_student(self.grid.student))
            write_json(
                file,
                {
                    "probes": rows,
                    "cosine_to_student": self._cosine(source, own),
                    "cosine_to_original": self._cosine(source, whole),
                },
            )
        return _mapping(file)

    def folder(self, point: GridPoint) -> Path:
        """Where the point's files are."""
        folder = self.output / "points" / point.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _cosine(self, source: Features, student: Student) -> float | None:
        """Mean frame cosine of the last layers over test recordings; None where their widths differ."""
        reference, frames = of_student("torch", student), []
        for samples in self.compared():
            left, right = source(samples)[-1], reference(samples)[-1]
            if left.shape[-1] != right.shape[-1]:
                return None
            shared = min(len(left), len(right))
            frames.append(torch.nn.functional.cosine_similarity(left[:shared], right[:shared], dim=-1))
        return float(torch.cat(frames).mean())

    def compared(self) -> list[Any]:
        """(T,) samples of test recordings of all probes, as many of each."""
        from reuse_distill.distill.data.reading import read_utterance

        each = max(1, COMPARED // len(self.probes))
        chosen = [one.data.utterances[index] for one in self.probes for index in one.data.test[:each]]
        return [read_utterance(utterance) for utterance in chosen]


def find_student(name_or_path: str) -> Path:
    """A shipped student by name, or a folder. Raises RdError where there is none."""
    shipped, path = SHIPPED / name_or_path, Path(name_or_path)
    if path.exists():
        return path
    if "/" not in name_or_path and is_checkpoint(shipped):
        return shipped
    names = sorted(folder.name for folder in SHIPPED.glob("*") if is_checkpoint(folder))
    raise RdError(f"there is no student {name_or_path!r}", hint=f"a checkpoint folder, or shipped: {', '.join(names)}")


def compression_name(point: GridPoint, steps: int) -> str:
    """The folder of a compression: points that are compressed alike have the same."""
    method = (point.method or "").replace(":", "of")
    ratio = ",".join(f"{value:g}" for value in point.ratio)
    student = "" if point.student is None else f"-of-{sha256(point.student.encode()).hexdigest()[:8]}"
    gates = f"-gates-{point.gate_steps}" if point.gate_steps else ""
    return f"{method}-{ratio}-schedule-{point.schedule}-recover-{steps}{gates}{student}"


def distil_afresh(grid: TradeoffGrid, point: GridPoint, teacher: Path, output: Path) -> Path:
    """A student of the teacher's shape with the point's changes, from initial weights, taught by ``teacher``.

    Raises RdError for a shape that is not possible.
    """
    from reuse_distill.distill.training import RunSettings, run  # takes seconds to import

    done = output / "student"
    if is_checkpoint(done):
        return done
    assert grid.data is not None and point.recover  # noqa: S101  (run_tradeoff has seen to it)
    recipe = fitting(load_recipe(grid.fresh_recipe), open_student(teacher).config, steps=point.recover, seed=grid.seed)
    shape = {**recipe.student.changes, **(point.fresh or {})}
    recipe = dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, changes=shape))
    resume = (output / "run.json").exists()
    run(recipe, RunSettings(teacher=teacher, data=Path(grid.data), output=output, resume=resume, device="cpu"))
    return done


def count(student: Student) -> dict[str, Any]:
    """Parameters, those that are not zero, MACs of SUPERB's 32 utterances, and MACs per second of a stream."""
    config, values = student.config, list(student.parameters())
    context = config.context
    attended = None if context is None else context.left_frames + context.chunk_frames
    stream = None if attended is None else sum(macs_per_second(config, seconds=10, attended=attended).values())
    return {
        "parameters": sum(value.numel() for value in values),
        "nonzero_parameters": sum(int(value.detach().count_nonzero()) for value in values),
        "superb_macs": superb_macs(config),
        "stream_macs_per_second": stream,
    }


def streams(student: Path) -> bool:
    """Whether an exact step of the student exists."""
    try:
        check_streamable(load_checkpoint(student).config)
    except RdError:
        return False
    return True


def export(student: Path, folder: Path, grid: TradeoffGrid, point: GridPoint) -> None:
    """``rd-export`` in a process of its own: a checkpoint folder is all that passes between the two.

    Raises RdError with its message where it does not write a proven bundle.
    """
    mode = ("streaming" if streams(student) else "offline") if grid.mode == "auto" else grid.mode
    precision = grid.precision_of(point)
    words = [str(student), "--mode", mode, "--precision", precision, "--output", str(folder)]
    if precision == "int8":
        if grid.data is None:
            raise RdError("int8 has to be calibrated, and there is no audio", hint="--data AUDIO, or int8-dynamic")
        words += ["--calibration", grid.data]
    if grid.min_cosine is not None and precision.startswith("int8"):
        words += ["--min-cosine", f"{grid.min_cosine:g}"]
    log = folder.parent / "export.log"
    run_command([*RD_EXPORT, *words], log, name="rd-export")


def probed(one: ProbeData, source: Features, *, seed: int) -> dict[str, Any]:
    """The probe's outcome, item by item, so that points can be compared on the same items."""
    outcome = outcome_of(one.probe, source, one.data, seed=seed, parts=PARTS)
    errors = outcome.numerators
    if one.data.facts["measure"] == "accuracy":
        errors = [1.0 - right for right in errors]
    return {"probe": one.probe.name, "errors": errors, "items": outcome.denominators, "groups": one.data.groups}


def scores(row: dict[str, Any]) -> Scores:
    """Errors of a row of ``probed``."""
    return Scores(row["errors"], row["items"], row["groups"])


def _mapping(file: Path) -> dict[str, Any]:
    value = read_json(file)
    if not isinstance(value, dict):
        raise RdError(f"{file} is damaged: it holds no object", hint="delete it and continue with --resume")
    return value
