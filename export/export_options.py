"""The command lines of ``rd-export`` and what may be chosen there. Light: imports no torch, onnx or NumPy.

``rd-export STUDENT`` makes one bundle; ``set``, ``finish`` and ``check`` are its other commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from reuse_distill.runtime.cli.command_line import Command, CommandParser
from reuse_distill.runtime.geometry import WINDOW_CHUNK_FRAMES, WINDOW_LEFT_FRAMES, WINDOW_RIGHT_FRAMES

# Target name -> module and class; imported when needed, since each needs packages of its own.
REGISTRY = {
    "onnx": "reuse_distill.export.targets.onnx.onnx_target:OnnxTarget",
    "ort": "reuse_distill.export.targets.ort.ort_target:OrtTarget",
    "coreml": "reuse_distill.export.targets.coreml.coreml_target:CoremlTarget",
    "tensorrt": "reuse_distill.export.targets.tensorrt.tensorrt_target:TensorrtTarget",
    "tensorrt-rtx": "reuse_distill.export.targets.tensorrt.rtx_target:TensorrtRtxTarget",
    "openvino": "reuse_distill.export.targets.openvino.openvino_target:OpenvinoTarget",
    "executorch": "reuse_distill.export.targets.executorch.executorch_target:ExecutorchTarget",
    "litert": "reuse_distill.export.targets.litert.litert_target:LitertTarget",
}
MODES = ("offline", "window", "streaming")
FEATURES = ("heads", "hidden", "none")
WINDOW_NORMS = ("window", "calibrated")
FRONT_ENDS = ("auto", "int8", "float")
STATES = ("tensors", "whole", "engine")
JETPACK_NAMES = ("5.1", "6.0", "6.1", "6.2", "thor", "7.2", "7.2.2")
PRESET_NAMES = ("arm64", "avx512_vnni", "tensorrt")

EXAMPLES = """
examples:
  rd-export student/ --output bundle/
  rd-export student/ --mode streaming --precision int8 --calibration speech/ --output bundle/
  rd-export set student/ --device raspberry-pi-5 --calibration speech/ --output set/
  rd-export check bundle/ --device jetson-orin-nano

exit status: 0 written and verified, 2 an error, 5 written but deferred: the device has to finish it
"""
# Options of one export that a device's set passes on as they are.
PASSED = ("config", "layers", "features", "calibration", "check", "chunk", "left", "jetpack", "max-seconds")


def export_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """(name of the command, its words); the name is empty for ``rd-export STUDENT``.

    ``--finish BUNDLE`` and ``--all`` are the earlier ways to write ``finish BUNDLE`` and ``set``.
    """
    rest = list(words)
    if rest[:1] and rest[0] in COMMANDS:
        return rest[0], rest[1:]
    for i, word in enumerate(rest):
        if word == "--all":
            return "set", rest[:i] + rest[i + 1 :]
        if word == "--finish":
            return "finish", rest[:i] + rest[i + 1 :]
        if word.startswith("--finish="):
            return "finish", [*rest[:i], word.partition("=")[2], *rest[i + 1 :]]
    return "", rest


def export_parsers() -> dict[str, CommandParser]:
    """Every parser by the name of its command; the empty name is ``rd-export STUDENT``."""
    return {"": export_parser(), **{name: make() for name, make in _MAKERS.items()}}


def export_parser() -> CommandParser:
    """``rd-export STUDENT``."""
    p = CommandParser(
        prog="rd-export",
        usage="rd-export STUDENT --output DIR [options]\n       rd-export {set,finish,check} ...",
        description="Export a student as a bundle for rd-stream, rd-latency and the runtime: an artifact whose graph "
        "and numbers are verified.",
        epilog=EXAMPLES,
        commands=COMMANDS,
    )
    p.add_argument(
        "checkpoint", type=Path, metavar="STUDENT", help="checkpoint folder, or a public .ckpt (with --config)"
    )
    p.add_argument("--config", type=Path, metavar="YAML", help="configuration of a public .ckpt")
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="bundle folder to write")
    p.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    p.add_argument("--target", choices=list(REGISTRY), default="onnx", help=f"{', '.join(REGISTRY)} (default onnx)")
    p.add_argument("--mode", choices=MODES, default="offline", help="offline (default), window or streaming")
    p.add_argument("--layers", default="last", help="last (default), all, or numbers from 1 such as 3,7,11")
    p.add_argument(
        "--features",
        choices=FEATURES,
        help="heads (of the teacher's width), hidden (layer outputs), or none with --head: its output alone",
    )
    p.add_argument(
        "--head",
        type=Path,
        action="append",
        default=[],
        metavar="HEAD",
        help="head folder (rd-distill head) to include, or own: heads beside an encoder of another library; repeatable",
    )
    p.add_argument(
        "--min-agreement",
        type=float,
        metavar="X",
        help="heads: smallest share of frames with the same decision as torch (quantised: 0.9)",
    )
    p.add_argument(
        "--check", type=Path, metavar="AUDIO", help="recordings on which the artifact is compared with torch"
    )
    _add_precision(p.add_argument_group("precision"))
    _add_context(p.add_argument_group("window and streaming, in frames of 20 ms"))
    _add_target_options(p.add_argument_group("options of single targets"))
    return p


def _add_precision(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--precision",
        help="fp32 (default), fp16, int8, int8-dynamic, int8-weights, int4-weights; tensorrt: bf16, int8-fp32; "
        "coreml: palette-6, palette-4",
    )
    p.add_argument(
        "--recipe",
        type=Path,
        metavar="JSON",
        help="full description of what is quantised and how (docs/quantisation.md)",
    )
    p.add_argument(
        "--preset",
        metavar="NAME",
        help=f"int8 settings for one kind of processor, named as in optimum: {', '.join(PRESET_NAMES)}",
    )
    p.add_argument(
        "--max-drift",
        type=float,
        metavar="X",
        help="int8: search for the fewest blocks in float that keep the drift (1 - mean frame cosine) below X",
    )
    p.add_argument("--calibration", type=Path, metavar="AUDIO", help="file, folder or manifest that calibrates int8")
    p.add_argument("--accept-narrow-calibration", action="store_true", help="accept little audio or a single speaker")
    p.add_argument(
        "--min-cosine",
        type=float,
        metavar="X",
        help="smallest mean frame cosine of int8 (or palettes) that is accepted (0.99)",
    )
    p.add_argument(
        "--front-end", choices=FRONT_ENDS, default="auto", help="int8: convolutions in int8, in float, or auto"
    )


def _add_context(p: argparse._ArgumentGroup) -> None:
    window = f"{WINDOW_LEFT_FRAMES} | {WINDOW_CHUNK_FRAMES} | {WINDOW_RIGHT_FRAMES}"
    p.add_argument(
        "--chunk",
        type=int,
        metavar="C",
        help=f"frames per step or window (window default, left | chunk | right: {window})",
    )
    p.add_argument(
        "--chunks",
        metavar="C,C,…",
        help="streaming, onnx, ort, openvino: sizes between which a running stream may change, such as 1,4,8,16",
    )
    p.add_argument("--left", type=int, metavar="L", help="frames of left context")
    p.add_argument("--right", type=int, metavar="R", help="frames of right context (window)")
    p.add_argument(
        "--window-norm",
        choices=WINDOW_NORMS,
        default="window",
        help="norm statistics of a window: its own (default) or calibrated",
    )
    p.add_argument("--batch", type=int, metavar="B", help="fix the number of streams of a step (default: any)")


def _add_target_options(p: argparse._ArgumentGroup) -> None:
    p.add_argument(
        "--gpu", metavar="NAMES", help="tensorrt-rtx: rtx20, a100, rtx30, rtx40, rtx50, gb10, several, or all (default)"
    )
    p.add_argument("--jetpack", metavar="V", help="tensorrt: prepare for this JetPack only (5.1 … 7.2.2, thor)")
    p.add_argument(
        "--max-seconds", type=float, metavar="S", help="tensorrt, executorch, litert: longest utterance (30)"
    )
    p.add_argument(
        "--delegate",
        metavar="NAME",
        help="executorch: xnnpack (default) or coreml (Apple's devices) takes the operations",
    )
    p.add_argument(
        "--states",
        choices=STATES,
        default="tensors",
        help="streaming: inputs and outputs (default); onnx, ort: whole, so that a GPU keeps them in its memory; "
        "coreml, openvino: engine, kept by Core ML (iOS 18) or in a stateful model",
    )


def set_parser() -> CommandParser:
    """``rd-export set``."""
    p = CommandParser(
        prog="rd-export set",
        description="Export every bundle that fits a device and compare them: index.html and comparison.json.",
        epilog="exit status: 0 all written and verified, 5 some deferred to the device, 2 one or more refused (the "
        "others are kept)",
    )
    p.add_argument("checkpoint", type=Path, metavar="STUDENT", help="checkpoint folder")
    p.add_argument("--device", required=True, metavar="NAME", help="a device profile (rd-latency devices)")
    p.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the bundles and their page")
    p.add_argument("--overwrite", action="store_true", help="replace bundles and page of an earlier set")
    p.add_argument("--targets", default="", metavar="A,B", help="targets (default: those that suit the device)")
    p.add_argument("--modes", default="", metavar="A,B", help="default: streaming; window for students without it")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="cores that the estimate assumes (1)")
    for name in PASSED:
        p.add_argument(f"--{name}", help="as in rd-export STUDENT")
    p.add_argument("--preset", metavar="NAME", help="as in rd-export STUDENT, for the bundles in int8")
    p.add_argument(
        "--recipe", type=Path, metavar="JSON", help="as in rd-export STUDENT, for the bundles of its precision"
    )
    p.add_argument("--accept-narrow-calibration", action="store_true", help="as in rd-export STUDENT")
    return p


def finish_parser() -> CommandParser:
    """``rd-export finish``."""
    p = CommandParser(
        prog="rd-export finish",
        description="Build the engine of a deferred bundle on the device that will run it, verify it and compare its "
        "features with torch's.",
    )
    p.add_argument("bundle", type=Path, metavar="BUNDLE", help="a deferred bundle")
    return p


def check_parser() -> CommandParser:
    """``rd-export check``."""
    p = CommandParser(
        prog="rd-export check",
        description="Report, without a GPU, whether TensorRT can read a graph and run it at the requested precision.",
        epilog="exit status: 0 no problem, 1 problems, 2 usage",
    )
    p.add_argument(
        "path",
        type=Path,
        nargs="?",
        help="an ONNX file, or a bundle (default: a small bundle that comes with the package)",
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument("--jetpack", metavar="V", help=f"one of {', '.join(JETPACK_NAMES)} (default: all)")
    where.add_argument("--device", metavar="PROFILE", help="the JetPacks of a device, such as jetson-orin-nano")
    p.add_argument(
        "--precision", metavar="P", help="precision to run an ONNX file at: fp32 (default), fp16, bf16, int8, int8-fp32"
    )
    p.add_argument(
        "--build",
        action="store_true",
        help="build the strongly typed graph with NVIDIA's parser and builder (TensorRT for RTX), without a GPU",
    )
    p.add_argument(
        "--gpu", metavar="NAMES", help="with --build: rtx20, a100, rtx30, rtx40, rtx50, gb10, several, or all"
    )
    return p


_MAKERS: dict[str, Callable[[], CommandParser]] = {"set": set_parser, "finish": finish_parser, "check": check_parser}
_SUMMARIES = {
    "set": "every bundle that fits a device, compared on one page",
    "finish": "build a deferred bundle's engine on its device",
    "check": "which JetPacks can read an ONNX file or a bundle, and why not",
}
COMMANDS = {name: Command(_SUMMARIES[name], make) for name, make in _MAKERS.items()}
