"""What ``--preset`` or ``--recipe`` change in a set: the bundles of the precision that they are of; the others are as
without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reuse_distill.export.device_set.set_plan import Planned
from reuse_distill.export.quantise.processor_presets import find_preset
from reuse_distill.export.quantise.quantisation_recipe import Recipe, of_precision, read_recipe
from reuse_distill.runtime.errors import RdError


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
