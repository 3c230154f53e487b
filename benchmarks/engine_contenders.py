"""Who takes part in ``benchmarks.engines_cpu``: our students on every engine, and peers on the engines that run them.

Every contender is a folder (a bundle) or a file (a peer) in the folder of work; ``prepare`` makes those that are
missing and writes down why one could not be made. Weights: ``pocket-stream`` as shipped, the ``armhubert-960h`` shape
and the peers' shapes random, Whisper base's encoder from a folder where one is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from reuse_distill.export.spec import Mode, Offline, Streaming
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext, Student, load_checkpoint

from benchmarks.artifacts import bundle_of, hubert_base_onnx, last_hidden_onnx, last_layer, student_of
from benchmarks.engine_calls import MEL_BANDS, MEL_FRAMES, Call, open_bundle, open_peer

ENGINES = {
    "onnx": ("fp32", "int8-dynamic", "int8"),
    "openvino": ("fp32", "int8"),
    "executorch": ("fp32", "int8"),
    "litert": ("fp32", "int8-dynamic", "int8"),
}
FLOAT_FRONT = " float front end"  # of a precision: what an int8 student with norms over all time needs
LAYER_NORM = "armhubert-960h layer norm"  # the same shape with norms over a frame, which int8 keeps throughout
EXTRA = {
    "armhubert-960h": [(engine, "int8" + FLOAT_FRONT) for engine in ("onnx", "openvino", "executorch")],
    LAYER_NORM: [("onnx", "fp32"), ("onnx", "int8"), ("openvino", "int8"), ("executorch", "int8")],
}
NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch", "litert": "LiteRT"}
FIXED = ("litert",)  # engines whose files have one length of utterance and one number of streams
SECONDS = (2, 10)
CHUNKS = (1, 2, 4, 8)
ARM_STREAM, BIG_CHUNK = "arm-stream", 8  # the published shape as a stream, random weights
BIG_STREAM = (("onnx", "fp32"), ("onnx", "int8-dynamic"), ("openvino", "fp32"), ("openvino", "int8"))
STREAMS = 8
POCKET = Path(__file__).resolve().parents[1] / "student" / "weights" / "pocket-stream"
REFUSED = "refused.json"  # contender -> why it could not be made
HUBERT, DISTILHUBERT, WHISPER = "HuBERT Base", "DistilHuBERT", "Whisper base encoder"


@dataclass(frozen=True)
class Contender:
    """One artifact on one engine; ``fidelity_to`` is the contender in float whose features it should have."""

    name: str
    model: str
    engine: str
    precision: str
    seconds: int | None = None  # of an artifact that has one length
    chunk: int | None = None  # of a step; None: whole utterances
    file: str = ""  # of a peer

    @property
    def label(self) -> str:
        return f"{NAMES[self.engine]} {self.precision}"

    @property
    def folder(self) -> str:
        parts = [self.model.replace(" ", "-").lower(), self.engine, self.precision.replace(" ", "-")]
        parts += [f"{self.seconds}s"] if self.seconds else []
        parts += [f"step-{self.chunk}"] if self.chunk else []
        return "-".join(parts)


def students(models: tuple[str, ...] = ("pocket-stream", "armhubert-960h")) -> list[Contender]:
    """Whole utterances on every engine and precision, and what else of the big shape keeps its features in int8."""
    found = []
    for model in models:
        for engine, precisions in ENGINES.items():
            for precision in precisions:
                for seconds in SECONDS if engine in FIXED else (None,):
                    found.append(Contender(f"{model} {engine} {precision}", model, engine, precision, seconds))
    for engine, precision in BIG_STREAM:  # what its steps are compared with
        found.append(Contender(f"{ARM_STREAM} {engine} {precision}", ARM_STREAM, engine, precision))
    for model, kinds in EXTRA.items():
        found += [Contender(f"{model} {engine} {precision}", model, engine, precision) for engine, precision in kinds]
    return found


def steps(model: str = "pocket-stream") -> list[Contender]:
    """One bundle per chunk size, as a device would have it; ``arm-stream`` (22 M) at one size on two engines."""
    wanted = {
        "onnx": ("fp32", "int8"),
        "openvino": ("fp32", "int8"),
        "executorch": ("fp32",),
        "litert": ("fp32", "int8"),
    }
    small = [
        Contender(f"{model} {engine} {precision} C={chunk}", model, engine, precision, None, chunk)
        for engine, precisions in wanted.items()
        for precision in precisions
        for chunk in CHUNKS
    ]
    large = [
        Contender(f"{ARM_STREAM} {engine} {precision} C={BIG_CHUNK}", ARM_STREAM, engine, precision, None, BIG_CHUNK)
        for engine, precision in BIG_STREAM
    ]
    return small + large


def peers() -> list[Contender]:
    """Each peer's plain ONNX file in float, by ONNX Runtime and OpenVINO, and its weight products in dynamic int8."""
    found = []
    for model in (HUBERT, DISTILHUBERT, WHISPER):
        stem = model.replace(" ", "-").lower()
        for engine, precision, suffix in (
            ("onnx", "fp32", "fp32"),
            ("onnx", "int8-dynamic", "int8"),
            ("openvino", "fp32", "fp32"),
        ):
            name = f"{model} {engine} {precision}"
            found.append(Contender(name, model, engine, precision, file=f"{stem}-{suffix}.onnx"))
    return found


def prepare(work: Path, contenders: list[Contender], whisper: Path | None, say: Callable[[str], None] = print) -> None:
    """Make what is missing; what cannot be made is written down with the reason."""
    refused: dict[str, str] = _read_refused(work)
    for one in contenders:
        if path_of(work, one).exists():
            continue
        say(f"making {one.folder}")
        try:
            _make(work, one, whisper)
            refused.pop(one.folder, None)
        except RdError as error:
            refused[one.folder] = str(error)
            say(f"  refused: {error}")
        (work / REFUSED).write_text(json.dumps(refused, indent=1) + "\n", encoding="utf-8")


def path_of(work: Path, one: Contender) -> Path:
    """The bundle or the peer's file."""
    return work / (one.file or one.folder)


def missing(work: Path, contenders: list[Contender]) -> dict[str, str]:
    """Contender -> why it takes no part in this run."""
    refused = _read_refused(work)
    return {one.name: refused.get(one.folder, "not made") for one in contenders if not path_of(work, one).exists()}


def _read_refused(work: Path) -> dict[str, str]:
    file = work / REFUSED
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def student(model: str) -> Student:
    """``pocket-stream`` as shipped, another preset with random weights."""
    if model == LAYER_NORM:
        return student_of("armhubert-960h", conv_norm="layer")
    return load_checkpoint(POCKET).eval() if model == "pocket-stream" else student_of(model)


def _make(work: Path, one: Contender, whisper: Path | None) -> None:
    if one.file:
        _make_peer(work, one, whisper)
        return
    net = student(one.model)
    mode: Mode = Offline(float(one.seconds or max(SECONDS)))
    if one.chunk:
        context = net.config.context or ChunkContext(one.chunk, 128)
        mode = Streaming(replace(context, chunk_frames=one.chunk))
    spec = last_layer(net, mode, one.precision.removesuffix(FLOAT_FRONT))
    front_end = "float" if one.precision.endswith(FLOAT_FRONT) else "auto"
    bundle_of(net, work / one.folder, replace(spec, target=one.engine, front_end=front_end))


def _make_peer(work: Path, one: Contender, whisper: Path | None) -> None:
    stem = one.file.rsplit("-", 1)[0]
    plain = work / f"{stem}-fp32.onnx"
    if one.model == WHISPER:
        if whisper is None:
            raise RdError("Whisper's encoder is not here", hint="give its folder: --whisper FOLDER")
        _whisper_onnx(whisper, plain)
    else:
        hubert_base_onnx(plain, layers=2 if one.model == DISTILHUBERT else 12)
    if one.precision != "fp32":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(plain),
            str(work / one.file),
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
        )


def _whisper_onnx(folder: Path, file: Path) -> None:
    """Mel [1, 80, 3000] -> features [1, 1500, 512] of a whole window, as transformers has it."""
    if file.exists():
        return
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig.from_pretrained(folder, attn_implementation="eager")
    encoder = WhisperEncoder(config).eval()
    encoder.load_state_dict(_encoder_weights(folder), strict=True)
    last_hidden_onnx(encoder, torch.zeros(1, MEL_BANDS, MEL_FRAMES), file, name="mel")


def _encoder_weights(folder: Path) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    weights = load_file(str(folder / "model.safetensors"))
    prefix = "model.encoder."
    return {name.removeprefix(prefix): value.float() for name, value in weights.items() if name.startswith(prefix)}


def open_call(work: Path, one: Contender, threads: int) -> Call:
    """A function from samples (T,) to features (F, W) of the opened contender."""
    if not one.file:
        return open_bundle(path_of(work, one), threads)
    return open_peer(path_of(work, one), engine=one.engine, mel=one.model == WHISPER, threads=threads)


def megabytes(work: Path, one: Contender) -> float:
    path = path_of(work, one)
    size = read_bundle(path).manifest.artifact_bytes if path.is_dir() else path.stat().st_size
    return round(size / 1e6, 1)
