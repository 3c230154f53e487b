"""The head of transformers' ``...ForXVector`` folders: a projector in the artifact, all else in the decoder."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks.xvector import Linear, XVectorWeights
from reuse_distill.student.foreign.fields import whole_numbers
from reuse_distill.student.foreign.foreign_checkpoint import ForeignCheckpoint
from torch import Tensor


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
    layers = [_linear(checkpoint, f"tdnn.{i}.kernel") for i in range(len(widths))]
    # The first layer takes what the projector gives, tdnn_dim[0] numbers.
    for i, ((before, width), kernel) in enumerate(zip(pairwise((widths[0], *widths)), kernels, strict=True)):
        if layers[i][0].shape != (width, kernel * before):
            raise RdError(
                f"{where}: tdnn.{i}.kernel has shape {layers[i][0].shape}, config.json says {(width, kernel * before)}"
            )
    return XVectorWeights(
        tuple(layers),
        tuple(zip(kernels, dilations, strict=True)),
        _linear(checkpoint, "feature_extractor"),
        _linear(checkpoint, "classifier"),
    )


def _linear(checkpoint: ForeignCheckpoint, name: str) -> Linear:
    tensors = checkpoint.heads["xvector"]
    weight, bias = (tensors.get(f"{name}.{part}") for part in ("weight", "bias"))
    if weight is None or bias is None or not all(bool(one.isfinite().all()) for one in (weight, bias)):
        raise RdError(f"{checkpoint.name}: {name} is missing or not finite")
    return _numbers(weight), _numbers(bias)


def _numbers(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().to(torch.float32).numpy())
