"""Whether a whole utterance fits into memory: attention maps grow with the square of its length.

What may still be taken is the least of what the machine has free, what the limits of this process leave (``ulimit``)
and what the limits of its control groups leave (containers, systemd; versions 1 and 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# A layer's scores and their softmax, both float32, exist at once (measured: 1.9 maps at 60 s, 22 M student, fp32).
MAPS_AT_ONCE = 2
UNLIMITED_BYTES = 1 << 60  # what control groups of version 1 say where there is no limit is near 2^63


def attention_bytes(heads: int, frames: int) -> int:
    """Memory of the attention maps that exist at once: (H, F, F) float32 each."""
    return MAPS_AT_ONCE * heads * frames * frames * 4


def available_bytes() -> int | None:
    """Memory that this process may still take, or None where the system does not tell."""
    known = [*_machine(), *_process(), *_control_groups()]
    return max(0, min(known)) if known else None


def check_fits(manifest: Manifest, frames: int) -> None:
    """Raise RdError where the attention maps of ``frames`` frames at once exceed the memory that is available.

    Without a number of heads in the manifest, or of free bytes from the system, nothing is known and nothing refused.
    """
    student, free = manifest.source.get("student"), available_bytes()
    heads = student.get("heads") if isinstance(student, dict) else None
    if not isinstance(heads, int) or free is None:
        return
    needed = attention_bytes(heads, -(-frames // manifest.geometry.step_frames))
    if needed > free:
        raise RdError(
            f"{frames * HOP_SAMPLES / SAMPLE_RATE_HZ:.0f} s at once need {needed / 1e9:.1f} GB for attention maps "
            f"({heads} heads, {frames} frames), {free / 1e9:.1f} GB are free",
            hint="stream it (Encoder.stream, rd-stream), or cut it into shorter pieces",
        )


def _machine() -> Iterator[int]:
    for key, value in _fields(PROC / "meminfo"):
        if key == "MemAvailable":
            yield value


def _process() -> Iterator[int]:
    """What ``ulimit -v`` and ``ulimit -d`` leave."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = dict(_fields(PROC / "self" / "status"))
    for limit, used_by in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and used_by in used:
            yield most - used[used_by]


def _control_groups() -> Iterator[int]:
    """What the groups of this process and those above them leave."""
    for line in _lines(PROC / "self" / "cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            root, most, used_by = CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, most, used_by = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        # Inside a container the path is often that of the host, and the container's own group is the root.
        for folder in dict.fromkeys([own, *(above for above in own.parents if above.is_relative_to(root)), root]):
            limit, usage = _number(folder / most), _number(folder / used_by)
            if limit is not None and usage is not None and limit < UNLIMITED_BYTES:
                yield limit - usage


def _number(path: Path) -> int | None:
    """The whole number in a file; None for ``max`` and where there is no such file."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _fields(path: Path) -> Iterator[tuple[str, int]]:
    """``Name:  123 kB`` lines as (name, bytes)."""
    for line in _lines(path):
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[0].isdigit() and words[1] == "kB":
            yield name, int(words[0]) * 1024


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []
