"""What is left in float, put into int8 part by part: share of the MACs, fidelity and time of a step.

    OMP_NUM_THREADS=1 python -m benchmarks.int8_share BUNDLE AUDIO [--split NAME] [--repeats 9] [--json FILE]

BUNDLE is a streaming fp32 ONNX bundle, AUDIO real speech. Ranges are dynamic and per tensor, weights per channel in 7
bits (exact on every x86), by ONNX Runtime's own quantiser. Fidelity is the mean and the lowest frame cosine to BUNDLE's
own features over whole recordings; steps are timed in turns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

from benchmarks.command import write_json
from benchmarks.engines_cpu import pushes
from benchmarks.float_macs import float_share
from benchmarks.int8_by_loudness import whole
from benchmarks.timing import alternate, machine, ratios, shown

TIMED_S = 4
# Part -> operators, and whether products of two activations take part.
VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "weight products": (("MatMul", "Gemm"), False),
    "and convolutions": (("MatMul", "Gemm", "Conv"), False),
    "and attention products": (("MatMul", "Gemm", "Conv"), True),
    "and the log-mel": (("MatMul", "Gemm", "Conv"), True),
}
LOG_MEL = "log_mel"


def main() -> None:
    args = _arguments()
    clips = whole(find_recordings(args.audio, split=args.split))
    with tempfile.TemporaryDirectory() as work:
        result = measured(args.bundle, clips, Path(work), args.repeats)
    print("\n".join(table(result["rows"])))
    write_json(result, args.json)


def measured(bundle: Path, clips: list[np.ndarray], work: Path, repeats: int) -> dict[str, Any]:
    """Every variant of ``bundle`` as a bundle of its own: share, fidelity, time."""
    folders = {"fp32": bundle} | {name: variant(bundle, work / name, name) for name in VARIANTS}
    encoders = {name: Encoder.load(folder, threads=1) for name, folder in folders.items()}
    features = {name: [encoder.extract(clip) for clip in clips] for name, encoder in encoders.items()}
    wave = speech_like(TIMED_S * SAMPLE_RATE_HZ, seed=5)
    taken = alternate({name: partial(pushes, one, wave) for name, one in encoders.items()}, repeats=repeats, warmup=1)
    rows = {}
    for name, folder in folders.items():
        cosines = np.concatenate([_cosines(a, b) for a, b in zip(features[name], features["fp32"], strict=True)])
        rows[name] = {
            **float_share(onnx.load(folder / "model.onnx")),
            "mean_cosine": round(float(cosines.mean()), 5),
            "worst_frame": round(float(cosines.min()), 4),
            "over_fp32": ratios(taken["fp32"], taken[name]),
        }
    return {
        "machine": machine(threads=1),
        "bundle": bundle.name,
        "recordings": len(clips),
        "seconds": round(sum(map(len, clips)) / SAMPLE_RATE_HZ, 1),
        "repeats": repeats,
        "rows": rows,
    }


def variant(bundle: Path, folder: Path, name: str) -> Path:
    """A copy of ``bundle`` whose graph has the products of ``name`` in int8; the manifest has its new hash."""
    operators, both = VARIANTS[name]
    shutil.copytree(bundle, folder)
    model = onnx.load(bundle / "model.onnx")
    kept = [] if name == "and the log-mel" else [n.name for n in model.graph.node if any(LOG_MEL in i for i in n.input)]
    quantize_dynamic(
        bundle / "model.onnx",
        folder / "model.onnx",
        op_types_to_quantize=list(operators),
        nodes_to_exclude=kept,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": not both},
    )
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    data = (folder / "model.onnx").read_bytes()
    manifest["files"]["model.onnx"] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1).ravel() / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)).ravel()


def table(rows: dict[str, Any]) -> list[str]:
    """Markdown."""
    lines = [
        "| in int8 | MACs in float | mean cosine | worst frame | step, times as fast as fp32 |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        share, mean, worst = f"{100 * row['share_in_float']:.1f} %", row["mean_cosine"], row["worst_frame"]
        lines.append(f"| {name} | {share} | {mean:.5f} | {worst:.4f} | {shown(row['over_fp32'])} |")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("--split", help="rows of the manifest whose column `split` is this")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
