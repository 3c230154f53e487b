"""Heads beside a foreign encoder as heads of ours: CTC, classification, x-vectors, ContentVec's projection.

transformers' ``...ForCTC`` puts a linear layer on the last layer, ``...ForSequenceClassification`` two linear ones with
a mean over time between them, which is the mean of what both make of every frame. Where it weighs all layers and what
the first one sees (``use_weighted_layer_sum``), so does the linear layer: the weights are multiplied into it. Of
``...ForXVector`` the projector is the linear layer, and what needs more than one frame goes to the decoder. Where
norms come first, the last layer counts behind the encoder's norm, as in the versions 4 of transformers that published
checkpoints were trained with (5 takes it before that norm).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.runtime.tasks.xvector import Linear as ArrayLinear
from reuse_distill.runtime.tasks.xvector import XVectorWeights
from reuse_distill.student.foreign.fields import whole_numbers
from reuse_distill.student.foreign.foreign_checkpoint import ForeignCheckpoint
from reuse_distill.student.foreign.foreign_encoder import encoder_config
from reuse_distill.student.tasks import HeadConfig, LoadedHead, TaskHead
from torch import Tensor

Linear = tuple[Tensor, Tensor]  # weight (K, W), bias (K,)


def foreign_heads(checkpoint: ForeignCheckpoint) -> tuple[LoadedHead, ...]:
    """The heads of tasks in the checkpoint.

    Raises RdError where there is none, and where its labels or its layers are missing.
    """
    makers: dict[str, Callable[[ForeignCheckpoint], tuple[TaskOutput, Linear]]] = {
        "projection": _projection,
        "ctc": _ctc,
        "classify": _classify,
        "xvector": _xvector,
    }
    kinds = [kind for kind in makers if kind in checkpoint.heads]
    if not kinds:
        raise RdError(
            f"{checkpoint.name} has no head of a task",
            hint="heads are read from ...ForCTC, ...ForSequenceClassification, ...ForXVector and ContentVec folders",
        )
    return tuple(_loaded(checkpoint, *makers[kind](checkpoint)) for kind in kinds)


def _loaded(checkpoint: ForeignCheckpoint, output: TaskOutput, linear: Linear) -> LoadedHead:
    shape = encoder_config(checkpoint)
    inputs = linear[0].shape[1]
    config = HeadConfig(
        output,
        student_sha256=checkpoint.sha256,
        layers=(shape.layers,) if inputs == shape.width else tuple(range(shape.layers + 1)),
        width=shape.width,
        student_name=checkpoint.name,
        provenance={"from": checkpoint.name, "model_type": checkpoint.kind},
    )
    state = {"outer.weight": linear[0].float().contiguous(), "outer.bias": linear[1].float().contiguous()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if shapes != config.shapes:
        raise RdError(f"{checkpoint.name}: head {output.name!r} has shapes {shapes}, {config.shapes} are needed")
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise RdError(f"{checkpoint.name}: head {output.name!r} has values that are not finite")
    module = TaskHead(config).eval()
    module.load_state_dict(state)
    xvector = xvector_weights(checkpoint) if output.kind == "xvector" else None
    numbers = [value.numpy() for value in state.values()] + ([] if xvector is None else [*xvector.arrays().values()])
    digest = hashlib.sha256(b"".join(one.tobytes() for one in numbers))
    return LoadedHead(module.requires_grad_(False), digest.hexdigest(), xvector)


def _linear(checkpoint: ForeignCheckpoint, kind: str, name: str) -> Linear:
    tensors = checkpoint.heads[kind]
    weight = tensors.get(f"{name}.weight")
    if weight is None or weight.ndim != 2:
        raise RdError(f"{checkpoint.name}: {name}.weight is missing or no matrix")
    return weight.float(), tensors.get(f"{name}.bias", torch.zeros(weight.shape[0])).float()


def _projection(checkpoint: ForeignCheckpoint) -> tuple[TaskOutput, Linear]:
    linear = _linear(checkpoint, "projection", "final_proj")
    return TaskOutput("projection", "projection", linear[0].shape[0]), linear


def _ctc(checkpoint: ForeignCheckpoint) -> tuple[TaskOutput, Linear]:
    linear = _linear(checkpoint, "ctc", "lm_head")
    size, vocabulary = linear[0].shape[0], checkpoint.vocabulary
    labels = {index: label for label, index in vocabulary.items() if type(index) is int}
    missing = [index for index in range(size) if index not in labels]
    if missing:
        raise RdError(
            f"{checkpoint.name}: {len(missing)} of {size} labels are missing from vocab.json, such as {missing[0]}",
            hint="copy vocab.json, which says what the outputs of lm_head mean",
        )
    blank = checkpoint.config.get("pad_token_id", 0)
    delimiter = "|" if "|" in vocabulary else ""
    names = tuple(str(labels[index]) for index in range(size))
    return TaskOutput("ctc", "ctc", size, names, blank=blank, delimiter=delimiter), linear


def _classify(checkpoint: ForeignCheckpoint) -> tuple[TaskOutput, Linear]:
    if checkpoint.kind == "whisper":
        raise RdError(f"{checkpoint.name}: Whisper's classifier takes the mean over silence too, ours does not")
    inner, outer = _linear(checkpoint, "classify", "projector"), _linear(checkpoint, "classify", "classifier")
    if outer[0].shape[1] != inner[0].shape[0]:
        raise RdError(
            f"{checkpoint.name}: classifier takes {outer[0].shape[1]} numbers, projector gives {len(inner[0])}"
        )
    size, names = outer[0].shape[0], _names(checkpoint.config.get("id2label"), outer[0].shape[0])
    weight, bias = outer[0] @ inner[0], outer[0] @ inner[1] + outer[1]
    return TaskOutput("label", "classify", size, names), (_over_layers(checkpoint, "classify", weight), bias)


def _xvector(checkpoint: ForeignCheckpoint) -> tuple[TaskOutput, Linear]:
    """The projector; what sees several frames and the whole recording is the decoder's."""
    weight, bias = _linear(checkpoint, "xvector", "projector")
    output = TaskOutput("xvector", "xvector", len(weight), weights="xvector.npz")
    return output, (_over_layers(checkpoint, "xvector", weight), bias)


def _over_layers(checkpoint: ForeignCheckpoint, kind: str, weight: Tensor) -> Tensor:
    """``weight`` (K, W) of the last layer; (K, (1 + layers) W) where the head weighs all of them."""
    if not checkpoint.config.get("use_weighted_layer_sum"):
        return weight
    return torch.cat([share * weight for share in _shares(checkpoint, kind)], dim=1)


def _shares(checkpoint: ForeignCheckpoint, kind: str) -> list[float]:
    """The weight of what layer 1 sees and of every layer's output."""
    weights = checkpoint.heads[kind].get("layer_weights")
    count = encoder_config(checkpoint).layers + 1
    if weights is None or tuple(weights.shape) != (count,):
        raise RdError(f"{checkpoint.name}: layer_weights is missing or has not {count} numbers")
    shares: list[float] = torch.softmax(weights.float(), 0).tolist()
    return shares


def _names(given: Any, size: int) -> tuple[str, ...]:
    """Labels of ``id2label``; transformers' own names where it is left out."""
    table = given if isinstance(given, dict) else {}
    return tuple(str(table.get(str(index), f"LABEL_{index}"))[:200] for index in range(size))


def xvector_weights(checkpoint: ForeignCheckpoint) -> XVectorWeights:
    """Time-delay layers, the layer of the vector and the classifier that it was trained with.

    transformers' own defaults stand in for what ``config.json`` leaves out. Raises RdError for a layer that is missing,
    other layers than ``tdnn_dim``, ``tdnn_kernel`` and ``tdnn_dilation`` say, and values that are not finite.
    """
    where, given = checkpoint.name, checkpoint.config
    defaults = {
        "tdnn_dim": (512, 512, 512, 512, 1500),
        "tdnn_kernel": (5, 3, 3, 1, 1),
        "tdnn_dilation": (1, 2, 3, 1, 1),
    }
    fields = {name: given.get(name, list(value)) for name, value in defaults.items()}
    widths, kernels, dilations = (whole_numbers(fields, name, where) for name in defaults)
    if not len(widths) == len(kernels) == len(dilations):
        raise RdError(f"{where}: {len(widths)} tdnn_dim, {len(kernels)} tdnn_kernel and {len(dilations)} tdnn_dilation")
    layers = [_xvector_linear(checkpoint, f"tdnn.{i}.kernel") for i in range(len(widths))]
    # The first layer takes what the projector gives, tdnn_dim[0] numbers.
    for i, ((before, width), kernel) in enumerate(zip(pairwise((widths[0], *widths)), kernels, strict=True)):
        if layers[i][0].shape != (width, kernel * before):
            raise RdError(
                f"{where}: tdnn.{i}.kernel has shape {layers[i][0].shape}, config.json says {(width, kernel * before)}"
            )
    return XVectorWeights(
        tuple(layers),
        tuple(zip(kernels, dilations, strict=True)),
        _xvector_linear(checkpoint, "feature_extractor"),
        _xvector_linear(checkpoint, "classifier"),
    )


def _xvector_linear(checkpoint: ForeignCheckpoint, name: str) -> ArrayLinear:
    tensors = checkpoint.heads["xvector"]
    weight, bias = (tensors.get(f"{name}.{part}") for part in ("weight", "bias"))
    if weight is None or bias is None or not all(bool(one.isfinite().all()) for one in (weight, bias)):
        raise RdError(f"{checkpoint.name}: {name} is missing or not finite")
    return _numbers(weight), _numbers(bias)


def _numbers(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().to(torch.float32).numpy())
