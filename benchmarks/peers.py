"""The peers of ``benchmarks.targets_cpu``: what ``optimum`` makes of HuBERT Base and of DistilHuBERT, as it comes.

optimum-onnx pins an older transformers than this project uses, so this file runs in an environment of its own and
imports nothing of ours:

    python -m venv peers && peers/bin/pip install torch==2.13.0 optimum-onnx==0.1.0 onnxruntime==1.31.1
    peers/bin/python benchmarks/peers.py PEERS_DIR

Weights are random: speed depends on the shape. int8 is optimum's preset for AVX512-VNNI, dynamic, on the weight
products; with convolutions it fails on optimum's own export, whose weight norm is not folded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

SHAPES = {"hubert-base": 12, "distilhubert": 2}  # layers; everything else is HuBERT Base


def main() -> None:
    """Write ``NAME-fp32.onnx`` and ``NAME-int8.onnx`` for both shapes, and the versions that made them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for name, layers in SHAPES.items():
        with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
            export(name, layers, Path(scratch), output)
    names = ("optimum", "optimum-onnx", "transformers", "torch", "onnx", "onnxruntime")
    versions = {package: version(package) for package in names}
    (output / "versions.json").write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")


def export(name: str, layers: int, scratch: Path, output: Path) -> None:
    """One shape, by optimum's exporter and optimum's quantiser."""
    import torch
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    model, converted, small = scratch / "model", scratch / "onnx", scratch / "int8"
    HubertModel(HubertConfig(num_hidden_layers=layers)).save_pretrained(model)
    Wav2Vec2FeatureExtractor().save_pretrained(model)
    main_export(str(model), converted, task="feature-extraction", do_validation=False)
    shutil.copyfile(converted / "model.onnx", output / f"{name}-fp32.onnx")
    preset = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True, operators_to_quantize=["MatMul"])
    ORTQuantizer.from_pretrained(converted, file_name="model.onnx").quantize(preset, save_dir=small)
    shutil.copyfile(small / "model_quantized.onnx", output / f"{name}-int8.onnx")


if __name__ == "__main__":
    main()
