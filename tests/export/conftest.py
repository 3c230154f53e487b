"""Small students, and bundles of them made through the command line, each once for all tests of this folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reuse_distill.export.targets.onnx.onnx_target as onnx_target
import torch
from filelock import FileLock
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.checkpoint_source import Source
from reuse_distill.export.pipeline import CheckAudio, export_bundle
from reuse_distill.export.quantise.calibration import CalibrationSet
from reuse_distill.export.rd_export import main as rd_export_main
from reuse_distill.export.spec import ExportSpec, Offline, SlidingWindow, Streaming, WindowContext
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import MANIFEST, list_files, read_bundle, write_manifest
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.untrusted_input import from_dict
from reuse_distill.student import ChunkContext, Student, StudentConfig, preset, save_checkpoint
from reuse_distill.student.config import conv_stack
from torch.onnx._internal.exporter import _registration

# pytest listens to every logger that does not pass on what it is told; torch would print whole graphs for this one.
logging.getLogger("torch.__trace").propagate = True

ROOT = Path(__file__).resolve().parents[2]
DEMO_SPEECH = ROOT / "demo" / "speech"
KEPT_SECONDS = 7 * 24 * 3600  # converted graphs of other code, for going back and forth between branches
LARGEST_KEPT_BYTES = 20_000_000
SMALL: dict[str, Any] = {
    "width": 32,
    "ffn_width": 48,
    "heads": 2,
    "layers": 4,
    "conv_layers": conv_stack(8, 16, 32),
    "position_groups": 4,
    "reuse_layers": (2, 4),
    "head_width": 24,
}
STUDENTS = {
    "shared": preset("tiny", **SMALL),
    "renormalised": preset("tiny", **SMALL, reuse_mode="renormalised"),
    "stream": preset("tiny-stream", **SMALL),
    "stream-renormalised": preset("tiny-stream", **SMALL, reuse_mode="renormalised"),
    "stream-shallow": preset("tiny-stream", **{**SMALL, "layers": 2, "reuse_layers": (2,)}),
    "stream-no-lookahead": preset("tiny-stream", **{**SMALL, "layers": 2, "reuse_layers": (2,)}, lookahead_frames=0),
}
# Where converting takes long: the smallest student that reuses a map.
SMALLEST = {**SMALL, "conv_layers": conv_stack(8, 8, 32), "layers": 2, "reuse_layers": (2,), "position_kernel": 16}
SMALL_FAMILIES: dict[str, Any] = {**SMALL, "reuse_layers": (), "layers": 2}
STUDENTS |= {
    "fit": preset("tiny-fit", **SMALL_FAMILIES),
    "distil": preset(
        "tiny-distil", **{**SMALL_FAMILIES, "conv_layers": ((8, 10, 5), *((8, 3, 2),) * 4, *((16, 2, 2),) * 2)}
    ),
}
CHUNK, LEFT = 4, 12
WINDOW = WindowContext(left_frames=40, chunk_frames=8, right_frames=24)
OPTIONS = {
    "offline": (),
    "window": ("--left", "40", "--chunk", "8", "--right", "24"),
    "streaming": ("--left", str(LEFT), "--chunk", str(CHUNK)),
}


def randomised(config: StudentConfig, *, seed: int = 0) -> Student:
    """Weights far from their initial values, so that every parameter counts (gains, biases, sharp maps)."""
    student = Student(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in student.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim == 1:
            value.add_(0.2 * noise)
        else:
            value.copy_(noise * value[0].numel() ** -0.5 * (2 if "q_proj" in name or "k_proj" in name else 1))
    return student


def lively(config: StudentConfig) -> Student:
    """Weights near their initial values, but for gains, biases and sharp maps: such a student keeps int8's bound."""
    torch.manual_seed(0)
    student = Student(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in student.named_parameters():
        if value.ndim == 1:
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
        elif "q_proj" in name or "k_proj" in name:
            value.mul_(6.0)
    return student


@dataclass(frozen=True)
class Exported:
    """One finished bundle with what it was made from."""

    folder: Path
    manifest: Manifest
    student: Student
    spec: ExportSpec

    @property
    def artifact(self) -> Path:
        return self.folder / self.manifest.artifact


@dataclass(frozen=True)
class SharedFolder:
    """A folder that all processes of a test run share: what is in it is made once, by whoever asks first."""

    root: Path

    def once(self, name: str, make: Callable[[Path], Any]) -> Path:
        target = self.root / name
        with FileLock(f"{target}.lock"):
            if not target.exists():
                make(target)
        return target


def exported(student: Student, spec: ExportSpec, folder: Path, clips: list[np.ndarray], **options: Any) -> Exported:
    """A bundle through the pipeline alone, or the one that is there: the clips check, and calibrate int8 too."""
    calibration = CalibrationSet(tuple(clips), 2, 2, "0" * 64, ()) if spec.precision == "int8" else None
    audio, source = CheckAudio(calibration, clips, "seeded speech-like signals"), Source(student, "small", "0" * 64, {})
    SharedFolder(folder.parent).once(folder.name, lambda to: export_bundle(source, spec, to, audio=audio, **options))
    return Exported(folder, read_bundle(folder).manifest, student, spec)


@dataclass(frozen=True)
class Run:
    """What a call of ``rd-export`` gave."""

    status: int
    out: str
    err: str


def rd_export(*words: str | Path) -> Run:
    """Run ``rd-export`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = rd_export_main([str(word) for word in words])
    return Run(status, out.getvalue(), err.getvalue())


@dataclass
class Workshop:
    """Students, their checkpoint folders and their bundles, made when first asked for."""

    folder: Path
    students: dict[str, Student] = field(default_factory=dict)
    made: dict[tuple[str, ...], Path] = field(default_factory=dict)
    runs: dict[Path, Run] = field(default_factory=dict)

    @property
    def speech(self) -> Path:
        """A manifest of half of the demo's recordings: eight voices, just enough to calibrate."""

        def write(manifest: Path) -> None:
            header, *rows = (DEMO_SPEECH / "manifest.csv").read_text().splitlines()
            manifest.write_text("\n".join([header, *(f"{DEMO_SPEECH}/{row}" for row in rows[::2])]) + "\n")

        return SharedFolder(self.folder).once("speech.csv", write)

    def student(self, name: str) -> Student:
        if name not in self.students:
            self.students[name] = randomised(STUDENTS[name], seed=len(name))
        return self.students[name]

    def checkpoint(self, name: str) -> Path:
        """A checkpoint folder."""

        def save(folder: Path) -> None:
            save_checkpoint(folder, self.student(name), provenance={"made": "by a test"}, training={})

        (self.folder / "checkpoints").mkdir(exist_ok=True)
        return SharedFolder(self.folder / "checkpoints").once(name, save)

    def bundle(self, name: str, mode: str, precision: str = "fp32", *options: str) -> Path:
        """A bundle of all layers with the small contexts of this folder, through ``rd-export``."""
        key = (name, mode, precision, *options)
        if key not in self.made:

            def make(output: Path) -> None:
                words = ["--layers", "all", "--mode", mode, "--precision", precision, *OPTIONS[mode]]
                words += ["--calibration", str(self.speech)] if precision == "int8" else []
                run = rd_export(self.checkpoint(name), *words, *options, "--output", output)
                assert run.status == 0, run.err
                output.with_suffix(".run").write_text(json.dumps(dataclasses.asdict(run)))

            digest = hashlib.sha256(repr(options).encode()).hexdigest()[:8]
            output = SharedFolder(self.folder).once(f"{name}-{mode}-{precision}-{digest}", make)
            self.made[key], self.runs[output] = output, Run(**json.loads(output.with_suffix(".run").read_text()))
        return self.made[key]


def spec_of(mode: str, precision: str = "fp32", **changes: Any) -> ExportSpec:
    """What ``Workshop.bundle`` asks for, of four layers."""
    modes = {"offline": Offline(), "window": SlidingWindow(WINDOW), "streaming": Streaming(ChunkContext(CHUNK, LEFT))}
    values: dict[str, Any] = {
        "target": "onnx",
        "mode": modes[mode],
        "precision": precision,
        "layers": (1, 2, 3, 4),
        "features": "heads",
    }
    return with_mode(ExportSpec(**values), **changes)


def with_mode(spec: ExportSpec, **changes: Any) -> ExportSpec:
    """``spec`` with changed fields, its mode's own among them."""
    own = {one.name for one in dataclasses.fields(spec.mode)} & set(changes)
    mode = dataclasses.replace(spec.mode, **{name: changes.pop(name) for name in own})
    return dataclasses.replace(spec, **{"mode": mode, **changes})


def fingerprint(capture: Capture) -> str:
    """Everything that a converted graph depends on, heads included."""
    module: Any = capture.module
    digest = hashlib.sha256(repr((type(module), module.student.config, module.layers, module.features)).encode())
    digest.update(repr((capture.geometry, capture.inputs, capture.outputs, capture.states)).encode())
    if capture.tasks is not None:
        heads: Any = capture.tasks.heads
        digest.update(repr((capture.tasks.shown, [head.config for head in heads])).encode())
    for name, value in sorted(capture.whole().state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def converter_digest() -> str:
    """Everything but the capture that a converted graph depends on: the code of its modules, and the packages."""
    digest = hashlib.sha256()
    for package in ("torch", "onnx", "onnxscript", "numpy"):
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    folders = [ROOT / "student", ROOT / "export" / "capture"]
    files = [ROOT / "export/targets/onnx" / name for name in ("onnx_target.py", "free_chunk.py")]
    files += [file for folder in folders for file in sorted(folder.rglob("*.py"))] + [ROOT / "runtime/geometry.py"]
    for file in files:
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session", autouse=True)
def convert_once(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Capture, Path], None]]:
    """Conversion takes seconds and depends on the capture, the converter and the code of the student alone: a second
    one of the same graph is a copy.

    The copies are shared by the processes of one run, and kept in pytest's cache for later runs with the same code and
    packages (``pytest --cache-clear`` drops them). Yields the function that really converts.
    """
    store, digest, convert = getattr(pytestconfig, "cache", None), converter_digest(), onnx_target.convert
    root = tmp_path_factory.mktemp("converted") if store is None else store.mkdir("converted")
    for old in root.iterdir():
        if old.name != digest and time.time() - old.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    cache = root / digest
    cache.mkdir(exist_ok=True)

    def cached(capture: Capture, file: Path) -> None:
        kept = cache / fingerprint(capture)
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                convert(capture, file)
                if file.stat().st_size > LARGEST_KEPT_BYTES:
                    return
                part = kept.with_suffix(f".{os.getpid()}")
                shutil.copyfile(file, part)
                part.rename(kept)
        shutil.copyfile(kept, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_target, "convert", cached)
        # A fifth of a conversion lists the exporter's operators, the same ones each time.
        registry = _registration.ONNXRegistry
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield convert


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def between_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``between_processes(name)``: a folder of that name, the same in all processes of this run."""
    base = tmp_path_factory.getbasetemp()

    def folder(name: str) -> Path:
        made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
        made.mkdir(exist_ok=True)
        return made

    return folder


@pytest.fixture(scope="session")
def workshop(between_processes: Callable[[str], Path]) -> Workshop:
    return Workshop(between_processes("workshop"))


@pytest.fixture(scope="session")
def demo_speech() -> Path:
    return DEMO_SPEECH


@pytest.fixture(scope="session")
def run_export() -> Callable[..., Run]:
    return rd_export


@pytest.fixture(scope="session", name="randomised")
def _randomised() -> Callable[..., Student]:
    return randomised


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Student]:
    """The smallest student of a preset, with fields replaced."""
    return lambda name, **changes: lively(preset(name, **{**SMALLEST, **changes}))


@pytest.fixture(scope="session", name="exported")
def _exported() -> Callable[..., Exported]:
    return exported


@pytest.fixture(scope="session", name="with_mode")
def _with_mode() -> Callable[..., ExportSpec]:
    return with_mode


@pytest.fixture(scope="session", name="spec_of")
def _spec_of() -> Callable[..., ExportSpec]:
    return spec_of


@pytest.fixture(scope="session")
def configs() -> dict[str, StudentConfig]:
    return STUDENTS


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    """``noise(samples, seed=)`` -> (T,) float32."""

    def make(samples: int, *, seed: int = 1) -> np.ndarray:
        return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def rehash() -> Callable[[Path], None]:
    """``rehash(bundle)``: the manifest states the files as they are now, as somebody who tampers would see to."""

    def write(bundle: Path) -> None:
        data = json.loads((bundle / MANIFEST).read_text())
        manifest = from_dict(Manifest, data, where=str(bundle))
        write_manifest(bundle, dataclasses.replace(manifest, files=list_files(bundle)))

    return write


@pytest.fixture(scope="session")
def shared_speech() -> Path | None:
    """The recordings beside the checkout, or None."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "speech"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def moved() -> Callable[..., tuple[np.ndarray, bytes]]:
    """(features of a stream that moves from encoder to encoder at the inner ``cuts``, its last snapshot)."""

    def move(encoders: Sequence[Encoder], wave: np.ndarray, cuts: Sequence[int]) -> tuple[np.ndarray, bytes]:
        parts, saved, ends = [], None, [0, *cuts, len(wave)]
        for encoder, first, last in zip(encoders, ends[:-1], ends[1:], strict=True):
            stream = encoder.stream()
            if saved is not None:
                stream.restore(saved)
            parts += stream.push(wave[first:last])
            saved = stream.snapshot()
        parts += stream.finish()
        return encoder.join(parts), saved

    return move
