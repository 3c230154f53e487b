"""The same bundle on this processor and on one with AVX2 alone: how far apart are the features?

    python benchmarks/int8_across_cpus.py [BUNDLE ...] [--audio AUDIO] [--bound X] [--json FILE]

Without VNNI the u8 x s8 product adds pairs in 16 bits, which saturate. The second processor is emulated: a child
process under ``qemu-x86_64 -cpu max``, which knows no AVX-512 and no AVX-VNNI. The recordings are read once, here, and
both sides get the same samples. On the bundle's own recording (``selftest.npz``) both are compared with torch as well.
Exit status 1 where the mean frame cosine between the two is below the bound. Nothing here says anything about speed.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.audio.resample import resample
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.equivalence.selftest import read_expected
from reuse_distill.runtime.errors import RdError, cli
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ

ROOT = Path(__file__).resolve().parents[1]
EMULATOR = "qemu-x86_64"
BUNDLE = ROOT / "runtime" / "bundles" / "pocket-stream"
AUDIO = ROOT / "demo" / "speech" / "gus-1.flac"  # the recording in that bundle
BOUND = 0.999  # mean frame cosine between the two; the lowest measured is 0.9994 (docs/quantisation.md)
CPUINFO = Path("/proc/cpuinfo")
CHILD_LIMIT_S = 900
ROW = "{:24} {:30} {:>6} {:>11} {:>11} {:>8}"


@cli
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 where every bundle is within the bound, 1 where one is not."""
    args = _arguments(argv)
    if args.child:
        _save_features(args.bundles[0], *args.child)
        return 0
    check_emulator()
    clips = read_clips(args.audio)
    result: dict[str, Any] = {"processor": processor(), "bound": {"mean_cosine": args.bound}, "bundles": {}}
    result["versions"] = {name: version(name) for name in ("onnxruntime", "numpy")}
    result["emulator"] = f"{emulator_version()}, -cpu max"
    for bundle in args.bundles:
        result["bundles"][bundle.name] = compare(bundle, clips)
    _show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    outside = [n for n, found in result["bundles"].items() if not found["between"]["mean_cosine"] >= args.bound]
    verdict = f"NOT held: {', '.join(outside)}" if outside else "held"
    print(f"bound: mean cosine {args.bound:g} between the two: {verdict}")
    return 1 if outside else 0


def compare(bundle: Path, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    """``between`` the two processors on the clips, and each ``to_torch`` on the bundle's own recording."""
    encoder = Encoder.load(bundle, provider="cpu", threads=1)
    expected = read_expected(encoder.bundle)
    waves = [*clips, expected.wave]
    here, there = extract(encoder, waves), emulated(bundle, waves)
    sides = {"here": here[-1], "emulated": there[-1]}
    shape = expected.features.shape
    return {
        "between": asdict(difference(_frames(there[:-1]), _frames(here[:-1]))),
        "to_torch": {k: asdict(difference(side.reshape(shape), expected.features)) for k, side in sides.items()},
    }


def extract(encoder: Encoder, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Features of every clip, (F, W) or (N, F, W)."""
    return [encoder.extract(clip, SAMPLE_RATE_HZ) for clip in clips]


def emulated(bundle: Path, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same from a child under the emulator; raises RdError where it fails or has AVX-512 after all."""
    with tempfile.TemporaryDirectory() as folder:
        waves, features = Path(folder) / "waves.npz", Path(folder) / "features.npz"
        np.savez(waves, *clips)
        script = [sys.executable, str(Path(__file__).resolve()), str(bundle.resolve())]
        command = [EMULATOR, "-cpu", "max", *script, "--child", str(waves), str(features)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_LIMIT_S, check=False)
        if done.returncode != 0:
            raise RdError(f"the child under {EMULATOR} failed ({done.returncode}): {done.stderr[-2000:].strip()}")
        with np.load(features, allow_pickle=False) as data:
            extensions = [str(name) for name in data["extensions"]]
            found = [data[f"arr_{number}"] for number in range(len(clips))]
    if "X86_V4" in extensions or any(name.startswith("AVX512") for name in extensions):
        raise RdError(
            f"the emulated processor has {', '.join(extensions)}", hint="qemu 7.2 has no AVX-512: use that one"
        )
    return found


def check_emulator() -> None:
    """Raises RdError where the second processor is not available."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise RdError(f"this machine is {platform.machine()}, x86_64 is needed: the child runs the Python of this one")
    if shutil.which(EMULATOR) is None:
        raise RdError(f"{EMULATOR} is missing", hint="apt-get install qemu-user")


def emulator_version() -> str:
    """Such as ``qemu-x86_64 version 7.2.22``."""
    told = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True, check=True).stdout
    return " ".join(told.split()[:3])


def processor(cpuinfo: Path = CPUINFO) -> dict[str, Any]:
    """Name of this processor and whether it has VNNI; raises RdError where the system does not tell."""
    if not cpuinfo.exists():
        raise RdError(f"there is no {cpuinfo}: whether this processor has VNNI is unknown", hint="run it on Linux")
    lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    told = {name.strip(): value.strip() for name, _, value in lines}
    flags = told.get("flags", "").split()
    return {"name": told.get("model name", "unknown"), **{k: k in flags for k in ("avx512_vnni", "avx_vnni", "avx2")}}


def read_clips(audio: Path) -> list[np.ndarray]:
    """Every recording of a file, folder or manifest as (T,) float32 at 16 kHz, without those shorter than a frame."""
    whole = [read_audio(recording.path) for recording in find_recordings(audio)]
    clips = [resample(one.samples, one.sample_rate_hz) for one in whole]
    long_enough = [clip for clip in clips if len(clip) >= RECEPTIVE_FIELD_SAMPLES]
    if not long_enough:
        raise RdError(f"{audio}: no recording is as long as a frame ({RECEPTIVE_FIELD_SAMPLES} samples at 16 kHz)")
    return long_enough


def _frames(features: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(features, axis=-2)


def _save_features(bundle: Path, waves: Path, features: Path) -> None:
    """What the child does: no sound file, no resampling, so that only the processor differs."""
    with np.load(waves, allow_pickle=False) as data:
        clips = [data[f"arr_{number}"] for number in range(len(data.files))]
    extensions = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    found = extract(Encoder.load(bundle, provider="cpu", threads=1), clips)
    np.savez(features, *found, extensions=np.array(extensions, dtype="U32"))


def _show(result: dict[str, Any]) -> None:
    here = result["processor"]
    vnni = ", ".join(f"{name}: {'yes' if here[name] else 'no'}" for name in ("avx512_vnni", "avx_vnni", "avx2"))
    print(f"here: {here['name']}, {vnni}\nemulated: {result['emulator']}: AVX2 alone")
    if not (here["avx512_vnni"] or here["avx_vnni"]):
        print("This processor has no VNNI: what follows says nothing about one that has.")
    print(ROW.format("bundle", "compared", "frames", "mean cosine", "worst frame", "max abs"))
    for name, found in result["bundles"].items():
        rows = {"emulated with here": found["between"]}
        rows |= {f"{side} with torch": value for side, value in found["to_torch"].items()}
        for label, value in rows.items():
            cosines = (f"{value[k]:.5f}" for k in ("mean_cosine", "min_cosine"))
            print(ROW.format(name, label, value["frames"], *cosines, f"{value['max_abs']:.3g}"))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", default=[BUNDLE], help="the shipped one by default")
    parser.add_argument("--audio", type=Path, default=AUDIO, help="file, folder or manifest")
    parser.add_argument("--bound", type=float, default=BOUND, metavar="X", help=f"mean frame cosine ({BOUND})")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)  # waves in, features out
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
