"""Which bundles fit a device: its profile's targets and precisions, and what the student can do.

``--preset`` and ``--recipe`` change the bundles of the precision that they are of; the others are as without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reuse_distill.devices.device_profiles import DeviceProfile
from reuse_distill.export.export_options import MODES, REGISTRY
from reuse_distill.export.quantise.options import find_preset
from reuse_distill.export.quantise.quantisation_recipe import Recipe, of_precision, read_recipe
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


@dataclass(frozen=True)
class RequestedQuantisation:
    """A preset's name, or a recipe and its file, or neither."""

    preset: str | None = None
    file: Path | None = None
    recipe: Recipe | None = None

    def concerns(self, planned: Planned) -> bool:
        """Whether this bundle is made by it: a preset those with products in int8, a recipe those of its precision."""
        own = of_precision(planned.precision)
        if self.recipe is not None:
            return own.quantises and (own.weights, own.activations) == (self.recipe.weights, self.recipe.activations)
        return self.preset is not None and own.activations != "float"

    def words(self, planned: Planned) -> list[str]:
        """How the command of one export says what it quantises; raises RdError for floats that the set has not."""
        plain = ["--precision", planned.precision]
        if not self.concerns(planned):
            return plain
        if self.recipe is None:
            return [*plain, "--preset", str(self.preset)]
        precision = self.recipe.precision(planned.target)
        if precision != planned.precision:
            raise RdError(
                f"--recipe {self.file} is {precision} for {planned.target}, the set has {planned.precision}",
                hint="leave floats out of the recipe, or export this bundle alone",
            )
        return ["--recipe", str(self.file)]


def requested_quantisation(preset: str | None, file: Path | None, planned: Sequence[Planned]) -> RequestedQuantisation:
    """What the options ask for. Raises RdError where they contradict, or where no bundle of the set is made by it."""
    if preset is not None and file is not None:
        raise RdError("--preset and --recipe both say what is quantised", hint='a recipe may name a "preset"')
    if preset is not None:
        find_preset(preset)
    requested = RequestedQuantisation(preset, file, None if file is None else read_recipe(file))
    if requested != RequestedQuantisation() and not any(requested.concerns(one) for one in planned if not one.left_out):
        what = f"--preset {preset}" if preset is not None else f"--recipe {file}"
        made = dict.fromkeys(one.precision for one in planned if not one.left_out)
        raise RdError(
            f"{what} is of no bundle of this set: it has {', '.join(made) or 'none'}",
            hint="export that bundle alone, without --all",
        )
    return requested
