"""Gates on heads, feed-forward units and convolution channels, trained together with the student that they prune.

A gate multiplies what one head, unit or channel gives, between 0 (gone) and 1. Training pulls the number of parameters
that open gates leave to a target, by an augmented Lagrangian (DPHuBERT, arXiv 2305.17651, section 2.3):

    loss + a d + b d^2,   d = share that the gates remove - target,   a and b maximised

At the end what is closed is removed physically and the values of the others are multiplied into the weights, so the
pruned student computes what the gated one did. The head of a map that other layers reuse has one gate for all of them.
How a gate gets its value is the affair of ``hard_concrete`` and ``self_pinching``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from reuse_distill.distill.compress.head_pruning import head_groups, remove_heads
from reuse_distill.distill.compress.reshaping import part_name, part_of, plain_state, rebuilt
from reuse_distill.distill.compress.width_pruning import (
    convolution_name,
    prunable_convolutions,
    remove_channels,
    remove_rows,
)
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, StudentOutput
from reuse_distill.student.layer_shape import FactoredLinear, last_factor
from torch import Tensor, nn
from torch.func import functional_call

TOLERANCE = 0.01  # of all parameters, between the target and what is removed
SETTLED = 0.05  # the same between the target and what the trained gates come to by themselves


@dataclass(frozen=True)
class GateSettings:
    """How gates are trained.

    Published (DPHuBERT): both rates 0.02 and b from 0, for 50,000 steps. The defaults are for some hundred steps, where
    a Lagrangian that begins without its square swings past the target and does not come back in time.
    """

    lr: float = 0.2  # of logits or thresholds
    multiplier_lr: float = 0.02  # of the two multipliers of the Lagrangian, a and b
    square: float = 10.0  # b before training
    target_warmup: float = 0.1  # share of the steps in which the target grows from nothing to its value (published)
    temperature: float = 2 / 3  # hard concrete (published)
    stretch: tuple[float, ...] = (-0.1, 1.1)  # hard concrete (published)
    closed_at_start: float = 0.05  # hard concrete: probability of being closed before training

    def __post_init__(self) -> None:
        if not 0 <= self.square < math.inf:
            raise RdError(f"gates.square is {self.square:g}", hint="it is 0 or above")
        for name in ("lr", "multiplier_lr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise RdError(f"gates.{name} is {getattr(self, name):g}", hint="it is above 0")
        if not 0 <= self.target_warmup <= 1 or not 0 < self.closed_at_start < 1:
            raise RdError(
                f"gates.target_warmup {self.target_warmup:g}, gates.closed_at_start {self.closed_at_start:g}",
                hint="the first is a share of the steps within 0..1, the second a probability between 0 and 1",
            )
        if len(self.stretch) != 2 or not self.stretch[0] < 0 or not self.stretch[1] > 1:
            raise RdError(f"gates.stretch is {list(self.stretch)}", hint="one number below 0 and one above 1")


@dataclass(frozen=True)
class GateSite:
    """Gates of one place: heads of a computing layer, units of a layer, channels of a convolution, from 1."""

    kind: str  # heads | units | channels
    number: int
    count: int

    @property
    def key(self) -> str:
        return f"{self.kind}_{self.number}"


class Gates(Protocol):
    """Values of gates; each method gives one tensor per site, by ``GateSite.key``."""

    training: bool

    def values(self, student: Student) -> dict[str, Tensor]:
        """[count], of this step: drawn in training where the gates are random, otherwise those of ``final``."""
        ...

    def open(self, student: Student) -> dict[str, Tensor]:
        """(): how many gates are open, or the number expected; has a gradient."""
        ...

    def margins(self, student: Student) -> dict[str, Tensor]:
        """[count]: the lowest are closed first, over all sites."""
        ...

    def final(self, student: Student) -> dict[str, Tensor]:
        """[count] in 0..1: the value of a gate that stays open."""
        ...


def gate_sites(student: Student) -> tuple[GateSite, ...]:
    """Everything that a gate can stand at. WavLM's heads cannot be removed, so they have none."""
    config = student.config
    shapes = config.layer_shapes
    groups = {} if config.relative_buckets else head_groups(config)
    return (
        *(GateSite("channels", n, config.conv_layers[n - 1][0]) for n in prunable_convolutions(config)),
        *(GateSite("heads", source, shapes[source - 1].heads) for source in groups),
        *(GateSite("units", number, shape.ffn_width) for number, shape in enumerate(shapes, start=1)),
    )


class ParameterCount:
    """Parameters of a student as a function of how many gates are open at each site."""

    def __init__(self, student: Student) -> None:
        config, self.sites = student.config, gate_sites(student)
        self.whole = sum(parameter.numel() for parameter in student.parameters())
        self._each: dict[str, int] = {}  # parameters of one head or unit
        for site in self.sites:
            if site.kind == "heads":
                layers = head_groups(config)[site.number]
                self._each[site.key] = config.head_dim * sum(_head_column(student, layer) for layer in layers)
            elif site.kind == "units":
                inner, outer = part_of(student, site.number, "fc1"), part_of(student, site.number, "fc2")
                self._each[site.key] = last_factor(inner).in_features + 1 + _first_factor(outer).out_features
        gated = {site.number for site in self.sites if site.kind == "channels"}
        self._convolutions = [
            (number, kernel, _beside_kernel(student, number))
            for number, (_, kernel, _) in enumerate(config.conv_layers, start=1)
            if gated
        ]
        self._channels = [1 if config.front_end == "conv" else config.mel_bands, *(c for c, _, _ in config.conv_layers)]
        counts = {site.key: torch.tensor(float(site.count)) for site in self.sites}
        self.fixed = 0
        self.fixed = self.whole - round(float(self.left(counts)))

    def left(self, open_gates: Mapping[str, Tensor]) -> Tensor:
        """Parameters with so many gates open; numbers that are expected give an expected one."""
        total = torch.tensor(float(self.fixed))
        for key, each in self._each.items():
            total = total + each * open_gates[key]
        for number, kernel, beside in self._convolutions:
            inputs, outputs = (open_gates.get(f"channels_{n}", self._channels[n]) for n in (number - 1, number))
            total = total + outputs * (kernel * inputs + beside)
        return total

    def removed(self, open_gates: Mapping[str, Tensor]) -> Tensor:
        """Share of the parameters that is gone."""
        return 1 - self.left(open_gates) / self.whole


def _first_factor(module: nn.Linear | FactoredLinear) -> nn.Linear:
    return module.down if isinstance(module, FactoredLinear) else module


def _head_column(student: Student, layer: int) -> int:
    """Parameters of one of a head's D columns in ``layer``: rows of query, key and value, a column of the output."""
    total = _first_factor(part_of(student, layer, "out_proj")).out_features
    for part in ("q_proj", "k_proj", "v_proj"):
        if part in student.config.shape_of(layer).parts:
            total += last_factor(part_of(student, layer, part)).in_features + 1
    return total


def _beside_kernel(student: Student, number: int) -> int:
    """Parameters per channel of a convolution that are not its kernel: bias and norm."""
    block = convolution_name(number).removesuffix(".0")
    parameters = dict(student.get_submodule(block).named_parameters())
    return sum(value.numel() // len(value) for name, value in parameters.items() if name != "0.weight")


class GatedStudent(nn.Module):
    """A student whose heads, units and channels are gated; ``target`` is the share of its parameters to remove."""

    def __init__(self, student: Student, gates: Gates, settings: GateSettings, target: float) -> None:
        super().__init__()
        self.student, self.gates, self.settings, self.target = student, gates, settings, target
        self.count = ParameterCount(student)
        self.multipliers = nn.Parameter(torch.tensor([0.0, settings.square]))  # a and b
        most = 1 - self._least() / self.count.whole
        if target > most:
            raise RdError(
                f"--ratio {target:g} of {self.count.whole} parameters: gates can remove {most:.1%} at most",
                hint="what is left is the front end, the projection heads, norms, and one head and unit per layer",
            )

    def _least(self) -> float:
        return float(self.count.left({site.key: torch.tensor(1.0) for site in self.count.sites}))

    def forward(self, *args: Any, **kwargs: Any) -> StudentOutput:
        """As ``Student.forward``."""
        values = self.gates.values(self.student)
        return functional_call(self.student, scaled_weights(self.student, values), args, kwargs)

    def removed(self) -> Tensor:
        """Share of the parameters that the gates remove now, or are expected to; has a gradient."""
        return self.count.removed(self.gates.open(self.student))

    def penalty(self, progress: float) -> Tensor:
        """What the Lagrangian adds to the loss at ``progress`` (0..1) of the training."""
        warmup = self.settings.target_warmup
        target = self.target * min(1.0, progress / warmup if warmup else 1.0)
        distance = self.removed() - target
        return self.multipliers[0] * distance + self.multipliers[1] * distance.square()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups of an optimiser whose rate is ``lr`` times ``scale``: the student, its gates, the multipliers."""
        gates = list(self.gates.parameters())  # type: ignore[attr-defined]
        return [
            {"params": list(self.student.parameters())},
            {"params": gates, "scale": self.settings.lr / lr, "weight_decay": 0.0},
            {
                "params": [self.multipliers],
                "scale": self.settings.multiplier_lr / lr,
                "weight_decay": 0.0,
                "maximize": True,
            },
        ]

    @torch.no_grad()
    def pruned(self) -> Student:
        """The student without what is closed, in eval mode, on the CPU.

        Raises RdError where training has not brought the gates near the target (``SETTLED``), or whole heads
        cannot meet it (``TOLERANCE``).
        """
        reached = float(self.removed())
        if abs(reached - self.target) > SETTLED:
            raise RdError(
                f"the gates remove {reached:.1%} of the parameters, the target is {self.target:.1%}",
                hint=f"raise --gate-steps, gates.lr (now {self.settings.lr:g}) or gates.multiplier_lr "
                f"(now {self.settings.multiplier_lr:g})",
            )
        kept = self.kept()
        left = float(self.count.left({key: mask.sum().float() for key, mask in kept.items()}))
        if abs(1 - left / self.count.whole - self.target) > TOLERANCE:
            raise RdError(
                f"whole heads, units and channels leave {left:.0f} of {self.count.whole} parameters, "
                f"{(1 - self.target) * self.count.whole:.0f} are asked for",
                hint="another --ratio: this student's heads are more than one percent of it each",
            )
        return without_closed(self.student, kept, self.gates.final(self.student))

    @torch.no_grad()
    def kept(self) -> dict[str, Tensor]:
        """Masks, true where a gate stays open: the lowest margins close until the target is met."""
        margins = {key: value.detach().double().cpu() for key, value in self.gates.margins(self.student).items()}
        kept = {key: torch.ones(len(value), dtype=torch.bool) for key, value in margins.items()}
        open_gates = {key: float(len(value)) for key, value in margins.items()}
        goal = (1 - self.target) * self.count.whole
        left = self._left(open_gates)
        order = sorted((float(v), key, index) for key, values in margins.items() for index, v in enumerate(values))
        for _, key, index in order:
            if left <= goal:
                break
            if open_gates[key] == 1:  # one stays
                continue
            open_gates[key] -= 1
            after = self._left(open_gates)
            if goal - after > left - goal:  # a head that would miss the target by more than it misses now
                open_gates[key] += 1
                continue
            kept[key][index], left = False, after
        return kept

    def record(self) -> dict[str, Any]:
        """What the training of the gates came to: for the checkpoint of what they leave."""
        left = {key: int(mask.sum()) for key, mask in self.kept().items()}
        return {"target": self.target, "removed_by_gates": float(self.removed().detach()), "open": left}

    def _left(self, open_gates: Mapping[str, float]) -> float:
        return float(self.count.left({key: torch.tensor(value) for key, value in open_gates.items()}))


def scaled_weights(student: Student, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters with the gates' ``values`` multiplied in: the columns that see a head, a unit or a channel."""
    parameters, scaled = dict(student.named_parameters()), {}
    for site in gate_sites(student):
        value = values[site.key]
        for name, per_gate in _consumers(student, site):
            weight = parameters[name]
            columns = value.to(weight.device, weight.dtype).repeat_interleave(per_gate)
            scaled[name] = weight * columns.reshape(1, -1, *(1,) * (weight.ndim - 2))
    return scaled


def _consumers(student: Student, site: GateSite) -> list[tuple[str, int]]:
    """(weight whose inputs the gates of ``site`` scale, inputs per gate)."""
    if site.kind == "channels":
        return [(f"{convolution_name(site.number + 1)}.weight", 1)]
    if site.kind == "units":
        return [(_first_weight(student, site.number, "fc2"), 1)]
    layers = head_groups(student.config)[site.number]
    return [(_first_weight(student, layer, "out_proj"), student.config.head_dim) for layer in layers]


def _first_weight(student: Student, layer: int, part: str) -> str:
    inner = ".down" if isinstance(part_of(student, layer, part), FactoredLinear) else ""
    return f"{part_name(layer, part)}{inner}.weight"


def without_closed(student: Student, kept: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Student:
    """A student without what ``kept`` (masks) leaves out, the ``values`` of the others multiplied into its weights."""
    state = {**plain_state(student)}
    state.update({name: value.detach().cpu() for name, value in scaled_weights(student, values).items()})
    pruned = rebuilt(student, state)
    gone: dict[str, dict[int, list[int]]] = {"heads": {}, "units": {}, "channels": {}}
    for site in gate_sites(student):
        closed = torch.nonzero(~kept[site.key].cpu()).flatten().tolist()
        if closed:
            gone[site.kind][site.number] = closed
    pruned = remove_channels(pruned, gone["channels"]) if gone["channels"] else pruned
    pruned = remove_heads(pruned, gone["heads"]) if gone["heads"] else pruned
    return remove_rows(pruned, gone["units"]) if gone["units"] else pruned
