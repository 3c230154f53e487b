"""Masked prediction of clusters (HuBERT's own objective, arXiv 2106.07447), with a teacher's clusters as targets.

DiceHuBERT (arXiv 2507.02911) trains the student by this objective directly instead of by distances to layers; claimed
are over 21 % fewer errors of phones than by layer-wise distillation. What this file decides: the codes are k-means
centres of one layer of the teacher, fitted on the run's own data when it begins; the student's projection of that layer
predicts them by its cosine to every centre (centres less their mean, as directions), over a temperature of 0.1 as in
HuBERT, so that there is nothing to learn beside the student; masked frames count, and unmasked ones by a weight.

Shapes: B batch, F frames, C channels of the teacher, K clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reuse_distill.distill.tasks.fit_without_gradients import assign
from torch import Tensor

TEMPERATURE = 0.1


def codes_of(features: Tensor, centres: Tensor) -> Tensor:
    """The nearest of ``centres`` [K, C] of every frame: [B, F, C] -> [B, F]."""
    return assign(features.float().flatten(0, 1), centres)[0].reshape(features.shape[:2])


def cluster_logits(predicted: Tensor, centres: Tensor) -> Tensor:
    """Cosine to every centre over the temperature: [B, F, C], [K, C] -> [B, F, K], in float32."""
    centre = centres.mean(0)
    directions = F.normalize(centres - centre, dim=-1)
    return F.normalize(predicted.float() - centre, dim=-1) @ directions.T / TEMPERATURE


def masked_prediction(
    predicted: Tensor, codes: Tensor, centres: Tensor, mask: Tensor, padding: Tensor, *, unmasked_weight: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of cross-entropies of masked frames, of the others times ``unmasked_weight``, how many masked are right).

    ``mask`` and ``padding`` [B, F]; padded frames count nowhere.
    """
    logits = cluster_logits(predicted, centres)
    each = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").reshape(codes.shape)
    hidden, seen = mask & ~padding, ~mask & ~padding
    right = (logits.argmax(-1) == codes) & hidden
    zero = torch.zeros((), device=each.device)
    return torch.where(hidden, each, zero).sum(), unmasked_weight * torch.where(seen, each, zero).sum(), right.sum()
