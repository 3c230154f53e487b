"""Single weights set to zero: the smallest of all layers together, or two of every four (arXiv 2211.09949; 2:4).

Shapes stay, so nothing becomes faster by itself: an engine has to know sparse matrices (TensorRT: 2:4), a file has to
be compressed. Masks need no file of their own: a pruned weight is a zero, and recovery keeps zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from reuse_distill.distill.compress.reshaping import part_name, plain_state, rebuilt
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student
from torch import Tensor

Masks = dict[str, Tensor]  # parameter -> bool of its shape, true where the weight is kept
GROUP, KEPT = 4, 2  # of 2:4


def pruned_parameters(student: Student) -> list[str]:
    """Weights and biases of all attention and feed-forward matrices: what the study prunes."""
    modules = [
        part_name(layer, part)
        for layer, shape in enumerate(student.config.layer_shapes, start=1)
        for part in shape.parts
    ]
    return [name for name, _ in student.named_parameters() if name.startswith(tuple(f"{one}." for one in modules))]


def global_masks(student: Student, ratio: float) -> Masks:
    """Masks that leave out the round(ratio n) smallest of all n weights and biases together."""
    parameters = dict(student.named_parameters())
    names = pruned_parameters(student)
    sizes = torch.cat([parameters[name].detach().abs().flatten().cpu() for name in names])
    count = round(ratio * len(sizes))
    kept = torch.ones(len(sizes), dtype=torch.bool)
    kept[torch.topk(sizes, count, largest=False).indices] = False
    parts = kept.split([parameters[name].numel() for name in names])
    return {name: part.reshape(parameters[name].shape) for name, part in zip(names, parts, strict=True)}


def semi_structured_masks(student: Student) -> Masks:
    """Masks that keep the two largest of every four weights along the inputs; biases stay.

    Raises RdError where a matrix has a number of inputs that is no multiple of four.
    """
    masks = {}
    parameters = dict(student.named_parameters())
    for name in pruned_parameters(student):
        weight = parameters[name].detach()
        if weight.ndim == 1:
            continue
        if weight.shape[1] % GROUP:
            raise RdError(
                f"{name} has {weight.shape[1]} inputs, 2:4 needs a multiple of {GROUP}",
                hint="remove heads and rows in multiples of four, or use weights",
            )
        groups = weight.abs().cpu().reshape(weight.shape[0], -1, GROUP)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        masks[name] = kept.scatter_(-1, groups.topk(KEPT, dim=-1).indices, True).reshape(weight.shape)
    return masks


def masked(student: Student, masks: Mapping[str, Tensor]) -> Student:
    """A student with zeros where ``masks`` are false."""
    state = plain_state(student)
    for name, kept in masks.items():
        state[name] = state[name] * kept
    return rebuilt(student, state)


def zero_masks(student: Student) -> Masks:
    """Masks of the zeros that stand in the student: what recovery keeps."""
    parameters = dict(student.named_parameters())
    return {name: parameters[name].detach() != 0 for name in pruned_parameters(student)}


@torch.no_grad()
def keep_zeros(student: Student, masks: Mapping[str, Tensor]) -> None:
    """Set what ``masks`` leave out to zero again, in place: after every step of the optimiser."""
    parameters = dict(student.named_parameters()) if masks else {}
    for name, kept in masks.items():
        parameters[name].mul_(kept.to(parameters[name].device))


def sparsity(student: Student) -> float:
    """Share of zeros among the weights and biases that are pruned."""
    masks = zero_masks(student).values()
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
