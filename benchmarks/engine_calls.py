"""What runs a contender of ``benchmarks.engines_cpu``, without torch; as a command, the peak memory of doing so.

python -m benchmarks.engine_calls BUNDLE_OR_ONNX [--peer onnx|openvino] [--mel] [--seconds N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.measuring.sensors import peak_bytes
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.engines.ort_backend import session_options
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

MEL_BANDS, MEL_FRAMES = 80, 3_000  # of Whisper's encoder: always 30 s
Call = Callable[[np.ndarray], np.ndarray]


def open_bundle(folder: Path, threads: int) -> Call:
    """Samples (T,) to features (F, W), by the runtime."""
    return Encoder.load(folder, threads=threads).extract


def open_peer(file: Path, *, engine: str, mel: bool, threads: int) -> Call:
    """The same for a plain ONNX file on ``engine``; ``mel``: it takes a spectrogram, which is no part of the time."""
    run = _openvino(file, threads) if engine == "openvino" else _onnxruntime(file, threads)
    if not mel:
        return lambda wave: np.array(run(wave[None])[0])
    spectrogram = np.random.default_rng(0).standard_normal((1, MEL_BANDS, MEL_FRAMES)).astype(np.float32)
    return lambda wave: np.array(run(spectrogram)[0])


def _openvino(file: Path, threads: int) -> Callable[[np.ndarray], Any]:
    from reuse_distill.runtime.engines.openvino.openvino_device import load_openvino, properties

    compiled = load_openvino().Core().compile_model(str(file), "CPU", properties("f32", threads, "CPU", {}))
    request = compiled.create_infer_request()
    return lambda value: request.infer([value])[compiled.output(0)]


def _onnxruntime(file: Path, threads: int) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), session_options(threads), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda value: session.run(None, {name: value})[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--peer", choices=("onnx", "openvino"))
    parser.add_argument("--mel", action="store_true")
    parser.add_argument("--seconds", type=int, default=10)
    args = parser.parse_args()
    if args.peer is None:
        call = open_bundle(args.artifact, 1)
    else:
        call = open_peer(args.artifact, engine=args.peer, mel=args.mel, threads=1)
    call(speech_like(SAMPLE_RATE_HZ * args.seconds, seed=3))
    print(peak_bytes() or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
