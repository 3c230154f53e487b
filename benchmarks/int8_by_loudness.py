"""Where int8 loses its fidelity: cosine against torch by the loudness of the frame.

    python benchmarks/int8_by_loudness.py CHECKPOINT AUDIO BUNDLE [BUNDLE ...] [--split NAME] [--whole] [--output FILE]

Frames of up to 6 recordings of AUDIO, 12 s of each, are sorted by the energy of their 400 samples into four quarters;
with --whole those of every recording, to its end.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from reuse_distill.export.parity.reference import read_clips
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.audio.recordings import Recording, find_recordings
from reuse_distill.runtime.audio.resample import resample
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, frames_for
from reuse_distill.student import ChunkContext, Student, load_checkpoint


def energies(wave: np.ndarray) -> np.ndarray:
    """Mean square (F,) of every frame's samples."""
    starts = HOP_SAMPLES * np.arange(frames_for(len(wave)))
    return np.array([np.square(wave[s : s + RECEPTIVE_FIELD_SAMPLES]).mean() for s in starts])


def reference(student: Student, encoder: Encoder, wave: np.ndarray) -> np.ndarray:
    """Features (F, W) of the bundle's layer by torch in float32."""
    m = encoder.manifest
    context = ChunkContext(m.geometry.chunk_frames, m.geometry.left_frames) if m.kind == "streaming" else None
    with torch.no_grad():
        output = student(torch.from_numpy(wave)[None], context=context)
    return (output.projections if m.features == "heads" else output.layers)[m.layers[0] - 1][0].numpy()


def fidelity(student: Student, encoder: Encoder, clips: list[np.ndarray]) -> dict[str, float | list[float]]:
    """Mean and lowest cosine of all frames, and the mean of their quietest to their loudest quarter."""
    loudness = np.concatenate([energies(clip) for clip in clips])
    parts = []
    for clip in clips:
        a, b = encoder.extract(clip), reference(student, encoder, clip)
        parts.append((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))
    cosines = np.concatenate(parts)
    quarters = [float(part.mean()) for part in np.array_split(cosines[np.argsort(loudness)], 4)]
    return {"mean": float(cosines.mean()), "worst_frame": float(cosines.min()), "quietest_to_loudest": quarters}


def whole(recordings: list[Recording]) -> list[np.ndarray]:
    """Every recording to its end, (T,) float32 at 16 kHz."""
    audio = [read_audio(one.path) for one in recordings]
    return [resample(one.samples, one.sample_rate_hz) for one in audio]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--split", help="rows of the manifest whose column `split` is this")
    parser.add_argument("--whole", action="store_true", help="every recording, to its end")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    student, recordings = load_checkpoint(args.checkpoint), find_recordings(args.audio, split=args.split)
    clips = whole(recordings) if args.whole else read_clips(recordings)
    result = {
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("onnxruntime", "torch", "numpy")},
        "frames": sum(frames_for(len(clip)) for clip in clips),
        "recordings": len(clips),
        "bundles": {p.name: fidelity(student, Encoder.load(p), clips) for p in args.bundles},
    }
    print(json.dumps(result, indent=1))
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
