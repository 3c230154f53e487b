"""A linear probe of pooled features with learned layer weights: softmax(w) over layers, then one linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ITERATIONS = 40  # of L-BFGS on all training items
DECAYS = (1e-3, 1e-2, 1e-1)  # squared-norm penalties, tried on held-out training items
MIX_DECAY = 1e-3  # keeps a layer's share away from 0 and 1


@dataclass(frozen=True)
class LinearResult:
    """Whether each test item was right, and the learned weight of each layer."""

    right: list[float]
    layer_weights: list[float]
    decay: float
    labels: list[str]  # in the order of the model's classes
    model: LinearModel


def linear_probe(
    features: Tensor,
    labels: Sequence[str],
    train: Sequence[int],
    test: Sequence[int],
    *,
    speakers: Sequence[str] | None = None,
    seed: int,
) -> LinearResult:
    """Train on ``train``, judge on ``test``. ``features`` (items, N layers, D).

    The decay of the weights is chosen on a fifth of ``train``: of its speakers where ``speakers`` names three or
    more, of its items otherwise.
    """
    names = sorted({labels[i] for i in train})
    target = torch.tensor([names.index(label) if label in names else -1 for label in labels])
    inner, held = _held_out(train, speakers, seed)

    def score(decay: float) -> float:
        predicted = _predict(_fit(features, target, inner, len(names), decay), features, held)
        return float(predicted.eq(target[held]).float().mean())

    scores = {decay: score(decay) for decay in DECAYS}
    decay = max(scores, key=lambda d: (scores[d], d))
    model = _fit(features, target, list(train), len(names), decay)
    right = _predict(model, features, list(test)).eq(target[list(test)]).float().tolist()
    return LinearResult(right, torch.softmax(model.mix, 0).tolist(), decay, names, model)


def _held_out(train: Sequence[int], speakers: Sequence[str] | None, seed: int) -> tuple[list[int], list[int]]:
    units = [speakers[i] for i in train] if speakers is not None else []
    if len(set(units)) < 3:
        units = [str(i) for i in train]
    names = sorted(set(units))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    out = {names[i] for i in order[: max(1, len(order) // 5)]}
    inner = [i for i, unit in zip(train, units, strict=True) if unit not in out]
    return inner, [i for i, unit in zip(train, units, strict=True) if unit in out]


@dataclass
class LinearModel:
    """softmax(mix)-weighted sum of normalised layers, then one linear layer; N layers, D wide, K classes."""

    mean: Tensor  # (N, D)
    scale: Tensor  # (N, D)
    mix: Tensor  # (N,)
    weight: Tensor  # (D, K)
    bias: Tensor  # (K,)

    def normed(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale

    def logits(self, normed: Tensor) -> Tensor:
        return torch.einsum("n,bnd->bd", torch.softmax(self.mix, 0), normed) @ self.weight + self.bias


def _fit(features: Tensor, target: Tensor, items: list[int], classes: int, decay: float) -> LinearModel:
    data, expected = features[items], target[items]
    layers, width = data.shape[1:]
    probe = LinearModel(
        data.mean(0),
        1 / (data.std(0) + 1e-3 * data.std() + 1e-8),
        torch.zeros(layers, requires_grad=True),
        torch.zeros(width, classes, requires_grad=True),
        torch.zeros(classes, requires_grad=True),
    )
    data = probe.normed(data)
    optimiser = torch.optim.LBFGS(
        [probe.mix, probe.weight, probe.bias], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(probe.logits(data), expected)
        loss = loss + 0.5 * decay * probe.weight.square().sum() + 0.5 * MIX_DECAY * probe.mix.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    for tensor in (probe.mix, probe.weight, probe.bias):
        tensor.requires_grad_(False)
    return probe


def _predict(probe: LinearModel, features: Tensor, items: list[int]) -> Tensor:
    return probe.logits(probe.normed(features[items])).argmax(1)
