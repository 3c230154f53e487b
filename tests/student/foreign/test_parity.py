"""The features of a foreign folder are those of transformers' own forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reuse_distill.student.foreign import read_foreign, student_of

BOUND = 5e-5
FAMILIES = (
    "hubert",
    "hubert-large",
    "hubert-layer-post",
    "hubert-pre-group",
    "hubert-eps",
    "hubert-batch-norm",
    "hubert-odd-kernel",
    "hubert-same-width",
    "distilhubert",
    "wav2vec2",
    "wav2vec2-large",
    "wavlm",
    "wavlm-large",
    "unispeech-sat",
    "unispeech-sat-large",
    "data2vec",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_that_of_transformers(make_foreign: Any, family: str) -> None:
    folder, model = make_foreign(family, normalise=False)
    student = student_of(read_foreign(folder))
    wave = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 9000)).astype(np.float32)) * 0.1
    with torch.no_grad():
        theirs = model(wave, output_hidden_states=True)
        ours = student(wave, with_maps=True)
    assert len(ours.maps) == student.config.layers and not student.config.reuse_layers
    assert theirs.last_hidden_state.std() > 0.1
    for layer, reference in zip(ours.layers[:-1], theirs.hidden_states[1:-1], strict=True):
        assert (layer - reference).abs().max() < BOUND
    assert (ours.layers[-1] - theirs.last_hidden_state).abs().max() < BOUND


def test_every_family_is_tried(foreign_families: tuple[str, ...]) -> None:
    assert foreign_families == FAMILIES


def test_parity_would_show_a_missing_gate(make_foreign: Any) -> None:
    """The gated bias of WavLM matters in these folders: without it the features are others."""
    _, model = make_foreign("wavlm")
    wave = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 9000)).astype(np.float32)) * 0.1
    with torch.no_grad():
        before = model(wave).last_hidden_state
        model.encoder.layers[0].attention.rel_attn_embed.weight.zero_()
        assert (model(wave).last_hidden_state - before).abs().max() > 0.05
