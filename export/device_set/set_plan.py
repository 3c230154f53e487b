"""Which bundles fit a device: its profile's targets and precisions, and what the student can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reuse_distill.devices.device_profiles import DeviceProfile
from reuse_distill.export.export_options import MODES, REGISTRY
from reuse_distill.export.targets import find_target
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.student import StudentConfig

# Of the targets that a profile can run, those that use it best; `--targets` asks for others.
SUITED = {
    "jetson": ("tensorrt", "onnx"),
    "apple": ("coreml",),
    "android": ("ort", "executorch"),
    "raspberry-pi": ("onnx", "ort"),
    "x86": ("onnx",),
    "host": ("onnx",),
}
CPU_TARGETS = ("onnx", "ort", "executorch")


@dataclass(frozen=True)
class Planned:
    """One bundle of the set; with ``left_out`` it is not made, and that says why."""

    target: str
    precision: str
    mode: str
    left_out: str = ""

    @property
    def name(self) -> str:
        """The folder's."""
        return f"{self.target}-{self.mode}-{self.precision}"


def plan(
    profile: DeviceProfile, config: StudentConfig, *, targets: Sequence[str] = (), modes: Sequence[str] = ()
) -> list[Planned]:
    """Every combination that the device runs, in the order of its targets; raises RdError for targets that it does not.

    Without ``modes``: streaming where the student can stream, else a sliding window.
    """
    chosen = _targets(profile, targets)
    selected = tuple(modes) or (("streaming",) if config.streamable else ("window",))
    for mode in selected:
        if mode not in MODES:
            raise RdError(f"--modes: there is no mode {mode!r}", hint=nearest(mode, MODES))
    return [
        Planned(target, precision, mode, _why_not(target, precision, mode, config))
        for target in chosen
        for mode in selected
        for precision in profile.precisions
    ]


def _targets(profile: DeviceProfile, requested: Sequence[str]) -> tuple[str, ...]:
    for target in requested:
        if target not in REGISTRY:
            raise RdError(f"--targets: there is no target {target!r}", hint=nearest(target, list(REGISTRY)))
        if target not in profile.targets:
            raise RdError(
                f"--targets: {profile.title} does not run {target}", hint=f"it runs {', '.join(profile.targets)}"
            )
    suited = SUITED.get(profile.family, tuple(profile.targets))
    return tuple(requested) or tuple(target for target in suited if target in profile.targets and target in REGISTRY)


def _why_not(target: str, precision: str, mode: str, config: StudentConfig) -> str:
    known = find_target(target)
    if precision not in known.precisions:
        return f"rd-export has no {precision} for {target}; it has {', '.join(known.precisions)}"
    if mode not in known.modes:
        return f"rd-export has no {mode} mode for {target}"
    if precision == "fp16" and target in CPU_TARGETS:
        return "on a CPU half precision is computed in float32: a smaller file, not a faster one"
    if mode == "streaming" and not config.streamable:
        return "this student cannot stream: its statistics run over the whole utterance"
    return ""
