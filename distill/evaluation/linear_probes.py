"""Linear probes over a learned mix of layers, softmax(w): of pooled features to labels, or frame by frame to letters.

The CTC probe is one linear layer to letters, decoded greedily and scored as character error rate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks.ctc_decode import edit_distance
from torch import Tensor

ITERATIONS = 40  # of L-BFGS on all training items
DECAYS = (1e-3, 1e-2, 1e-1)  # squared-norm penalties, tried on held-out training items
MIX_DECAY = 1e-3  # keeps a layer's share away from 0 and 1
ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"  # letter i is class i + 1, class 0 is blank
EPOCHS = 30
BATCH = 8
RATE = 2e-2  # falls linearly to zero


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


@dataclass(frozen=True)
class CtcResult:
    """Edits and reference letters of each test item, and the layer weights."""

    edits: list[float]
    letters: list[float]
    layer_weights: list[float]
    model: LinearModel  # mean, scale (N, C); weight (C, letters + 1), whose first class is blank


def letters_of(text: str) -> str:
    """Lower case, only letters, apostrophes and single spaces."""
    return re.sub(r" +", " ", re.sub(r"[^a-z' ]", " ", text.lower())).strip()


def ctc_probe(
    features: Sequence[Tensor], texts: Sequence[str], train: Sequence[int], test: Sequence[int], *, seed: int
) -> CtcResult:
    """Train on ``train``, judge on ``test``. ``features``: one (N, F, C) per item."""
    references = [letters_of(text) for text in texts]
    usable = [i for i in train if 0 < len(references[i]) <= features[i].shape[1]]
    if not usable:
        raise RdError(
            f"none of {len(train)} transcripts to train on fits its audio: more letters than frames, or no letters",
            hint="the letters are a to z, the apostrophe and the space",
        )
    mean, scale = _statistics([features[i] for i in usable])
    layers, width = mean.shape[0], mean.shape[-1]
    mix = torch.zeros(layers, requires_grad=True)
    weight = torch.zeros(width, len(ALPHABET) + 1, requires_grad=True)
    bias = torch.zeros(len(ALPHABET) + 1, requires_grad=True)

    def log_probabilities(item: Tensor) -> Tensor:
        normed = (item.float() - mean) * scale
        return (torch.einsum("n,nfc->fc", torch.softmax(mix, 0), normed) @ weight + bias).log_softmax(-1)

    optimiser = torch.optim.Adam([mix, weight, bias], lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        optimiser.param_groups[0]["lr"] = RATE * (1 - epoch / EPOCHS)
        order = [usable[i] for i in torch.randperm(len(usable), generator=generator).tolist()]
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            outputs = [log_probabilities(features[i]) for i in batch]
            loss = torch.nn.functional.ctc_loss(
                torch.nn.utils.rnn.pad_sequence(outputs),  # (F, B, classes)
                torch.cat([encode(references[i]) for i in batch]),
                torch.tensor([len(o) for o in outputs]),
                torch.tensor([len(references[i]) for i in batch]),
                zero_infinity=True,
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        edits = [float(edit_distance(decode(log_probabilities(features[i])), references[i])) for i in test]
    model = LinearModel(*(part.detach() for part in (mean[:, 0], scale[:, 0], mix, weight, bias)))
    return CtcResult(edits, [float(len(references[i])) for i in test], torch.softmax(mix, 0).tolist(), model)


def encode(text: str) -> Tensor:
    """Letters as classes."""
    return torch.tensor([ALPHABET.index(letter) + 1 for letter in text])


def decode(log_probabilities: Tensor) -> str:
    """Greedy: the best class of every frame (F, classes), repeats merged, blanks dropped."""
    best = torch.unique_consecutive(log_probabilities.argmax(-1)).tolist()
    return "".join(ALPHABET[index - 1] for index in best if index)


def _statistics(items: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and 1/std over all frames: (N, 1, C) each."""
    count = sum(item.shape[1] for item in items)
    mean = sum((item.float().sum(1, keepdim=True) for item in items), torch.zeros(())) / count
    square = sum(((item.float() - mean).square().sum(1, keepdim=True) for item in items), torch.zeros(())) / count
    return mean, 1 / (square.sqrt() + 1e-4)
