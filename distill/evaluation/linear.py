"""A linear probe of pooled features with learned layer weights: softmax(w) over layers, then one linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 150
RATE = 0.02
DECAYS = (1e-3, 1e-1, 1.0)  # tried on held-out training items


@dataclass(frozen=True)
class LinearResult:
    """Whether each test item was right, and the learned weight of each layer."""

    right: list[float]
    layer_weights: list[float]
    decay: float


def linear_probe(
    features: Tensor, labels: Sequence[str], train: Sequence[int], test: Sequence[int], *, seed: int
) -> LinearResult:
    """Train on ``train``, judge on ``test``. ``features`` (items, N layers, D).

    The decay of the weights is chosen on a fifth of ``train``.
    """
    names = sorted({labels[i] for i in train})
    target = torch.tensor([names.index(label) if label in names else -1 for label in labels])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    fifth = max(1, len(order) // 5)
    inner, held = [train[i] for i in order[fifth:]], [train[i] for i in order[:fifth]]

    def score(decay: float) -> float:
        found = _predict(_fit(features, target, inner, len(names), decay), features, held)
        return float(found.eq(target[held]).float().mean())

    scores = {decay: score(decay) for decay in DECAYS}
    decay = max(scores, key=lambda d: (scores[d], d))
    model = _fit(features, target, list(train), len(names), decay)
    right = _predict(model, features, list(test)).eq(target[list(test)]).float().tolist()
    return LinearResult(right, torch.softmax(model.mix, 0).tolist(), decay)


@dataclass
class _Probe:
    mean: Tensor  # (N, D)
    scale: Tensor  # (N, D)
    mix: Tensor  # (N,)
    weight: Tensor  # (D, K)
    bias: Tensor  # (K,)

    def normed(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale

    def logits(self, normed: Tensor) -> Tensor:
        return torch.einsum("n,bnd->bd", torch.softmax(self.mix, 0), normed) @ self.weight + self.bias


def _fit(features: Tensor, target: Tensor, items: list[int], classes: int, decay: float) -> _Probe:
    data, wanted = features[items], target[items]
    layers, width = data.shape[1:]
    probe = _Probe(
        data.mean(0),
        1 / (data.std(0) + 1e-3 * data.std() + 1e-8),
        torch.zeros(layers, requires_grad=True),
        torch.zeros(width, classes, requires_grad=True),
        torch.zeros(classes, requires_grad=True),
    )
    groups = [
        {"params": [probe.weight], "weight_decay": decay},
        {"params": [probe.mix, probe.bias], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=RATE)
    data = probe.normed(data)
    for _ in range(STEPS):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(probe.logits(data), wanted).backward()
        optimiser.step()
    for tensor in (probe.mix, probe.weight, probe.bias):
        tensor.requires_grad_(False)
    return probe


def _predict(probe: _Probe, features: Tensor, items: list[int]) -> Tensor:
    return probe.logits(probe.normed(features[items])).argmax(1)
