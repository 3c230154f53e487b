"""Features of every recording in a folder, one .npy each: `python extract_folder.py AUDIO OUTPUT [BUNDLE]`."""

import sys
from pathlib import Path

import numpy as np

import reuse_distill as rd


def main(audio: Path, output: Path, bundle: str | None = None) -> None:
    """``audio``: a folder of recordings at any rate. ``bundle``: the shipped one where none is named."""
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in audio.rglob("*") if p.suffix.lower() in (".wav", ".flac", ".ogg", ".mp3")):
        features = rd.extract(path, bundle)  # (frames, channels), one row every 20 ms
        np.save(output / f"{path.stem}.npy", features)
        print(f"{path.name}: {features.shape[0]} frames of {features.shape[1]} values")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
