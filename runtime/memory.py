"""Whether a whole utterance fits into memory: attention maps grow with the square of its length."""

from __future__ import annotations

from pathlib import Path

from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.runtime.manifest import Manifest

MEMINFO = Path("/proc/meminfo")
# A layer's scores and their softmax, both float32, exist at once (measured: 1.9 maps at 60 s, 22 M student, fp32).
MAPS_AT_ONCE = 2


def attention_bytes(heads: int, frames: int) -> int:
    """Memory of the attention maps that exist at once: (H, F, F) float32 each."""
    return MAPS_AT_ONCE * heads * frames * frames * 4


def available_bytes() -> int | None:
    """Memory that programs may still take, or None where the system does not tell."""
    if not MEMINFO.is_file():
        return None
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def check_fits(manifest: Manifest, frames: int) -> None:
    """Raise RdError where the attention maps of ``frames`` frames at once exceed the memory of this machine.

    Without a number of heads in the manifest, or of free bytes from the system, nothing is known and nothing refused.
    """
    heads, free = manifest.source.get("student", {}).get("heads"), available_bytes()
    if not isinstance(heads, int) or free is None:
        return
    needed = attention_bytes(heads, -(-frames // manifest.geometry.step_frames))
    if needed > free:
        raise RdError(
            f"{frames * HOP_SAMPLES / SAMPLE_RATE_HZ:.0f} s at once need {needed / 1e9:.1f} GB for attention maps "
            f"({heads} heads, {frames} frames), {free / 1e9:.1f} GB are free",
            hint="stream it (Encoder.stream, rd-stream), or cut it into shorter pieces",
        )
