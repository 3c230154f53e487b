"""A CTC probe: one linear layer over a learned mix of layers to letters, decoded greedily, scored as CER."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from reuse_distill.distill.evaluation.linear import LinearModel
from reuse_distill.runtime.errors import RdError
from torch import Tensor

ALPHABET = " 'abcdefghijklmnopqrstuvwxyz"  # letter i is class i + 1, class 0 is blank
EPOCHS = 30
BATCH = 8
RATE = 2e-2  # falls linearly to zero


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


def edit_distance(hypothesis: str, reference: str) -> int:
    """Levenshtein distance in letters."""
    row = list(range(len(reference) + 1))
    for i, letter in enumerate(hypothesis, start=1):
        previous, row[0] = row[0], i
        for j, wanted in enumerate(reference, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (letter != wanted))
    return row[-1]


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
