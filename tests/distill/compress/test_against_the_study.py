"""Scores, masks and choices equal those of the study's own code on the same weights (golden/melhubert_tiny)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reuse_distill.distill.compress.head_pruning import (
    data_scores,
    l1_scores,
    lowest_overall,
    remove_heads,
)
from reuse_distill.distill.compress.reshaping import lowest_in_each, part_name
from reuse_distill.distill.compress.weight_pruning import global_masks, masked, sparsity
from reuse_distill.distill.compress.width_pruning import remove_rows, row_scores
from reuse_distill.student import Student
from reuse_distill.student.attention import score_bias
from reuse_distill.student.foreign import student_of
from torch import Tensor


def encoded(student: Student, frames: Tensor, valid: Tensor) -> Tensor:
    """The last layer for frames [B, F, 80] of which those with ``valid`` [B, F] 1 exist."""
    assert student.post_extract_proj is not None
    x = student.post_extract_proj(frames) * valid[..., None]
    x = student.encoder.positioned(x, valid)
    bias, source = score_bias(valid[:, None, None], x.dtype), None
    for layer in student.encoder.layers:
        x, source = layer(x, source, bias)
    return x


def chosen(stored: dict[str, list[int]]) -> dict[int, list[int]]:
    """The study counts layers from 0."""
    return {int(layer) + 1: heads for layer, heads in stored.items()}


def test_l1_scores_of_heads(melhubert: Student, study) -> None:
    ours = l1_scores(melhubert)
    for (layer, head), score in study["pruning"]["head_l1_scores"]:
        assert ours[layer + 1][head] == pytest.approx(score, rel=1e-6)


def test_two_steps_of_head_pruning_by_l1(melhubert: Student, study, open_melhubert) -> None:
    student = melhubert
    for stored in study["pruning"]["head_l1_pruned_steps12"]:
        heads = lowest_in_each(l1_scores(student))
        assert heads == chosen(stored)
        student = remove_heads(student, heads)
    theirs = student_of(open_melhubert("head_pruned_l1_states_prune_6.ckpt"))
    assert student.config == theirs.config and student.config.layer_heads == (2, 2, 2)
    for name, value in theirs.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name


def test_head_pruning_by_data(melhubert: Student, study, open_melhubert) -> None:
    head = open_melhubert("melhubert_tiny_20ms.ckpt").heads["projection"]

    def loss(step: int) -> Tensor:
        frames, label, valid, mask = (
            torch.from_numpy(study[f"dd_step{step}_{name}"]) for name in ("feat", "label", "pad_mask", "mask_indices")
        )
        hidden = encoded(student, frames.masked_fill(mask[..., None], 0.0), valid.float())
        counted = mask & valid.bool()
        logits = hidden[counted] @ head["final_proj.weight"].T + head["final_proj.bias"]
        return torch.nn.functional.cross_entropy(logits, label[counted])

    student = student_of(open_melhubert("melhubert_tiny_20ms.ckpt"))
    ours = data_scores(student, loss, [0, 1])
    for (layer, number), score in study["pruning"]["head_datadriven_scores_normalize_2"]:
        assert ours[layer + 1][number] == pytest.approx(score, abs=1e-4)
    heads = lowest_overall(ours, 3)
    assert heads == chosen(study["pruning"]["head_datadriven_pruned"][0])
    assert all(parameter.grad is None for parameter in student.parameters())
    pruned = remove_heads(student, heads)
    assert pruned.config.layer_heads == (4, 2, 3)
    frames, valid = (torch.from_numpy(study[name]) for name in ("batch_feat80", "batch_pad_mask_1_is_valid"))
    hidden = encoded(pruned, frames, valid.float()).detach()
    gap = (hidden - torch.from_numpy(study["head_dd_batch_hidden_2"])).abs()[valid.bool()].max()
    assert float(gap) < 1e-4


def test_masks_of_weight_pruning(melhubert: Student, study) -> None:
    masks = global_masks(melhubert, 0.3)
    counts = study["pruning"]["weight_pruning_30"]
    assert sum(int((~mask).sum()) for mask in masks.values()) == counts["zeros"] == 16_891
    assert sum(mask.numel() for mask in masks.values()) == counts["total"]
    for name, mask in masks.items():
        stored = stored_mask(study, name)
        assert np.array_equal(mask.numpy(), stored), name
    assert sparsity(masked(melhubert, masks)) == pytest.approx(counts["sparsity"])


def stored_mask(study, name: str) -> np.ndarray:
    packed, shape = study[f"{name}_mask"], study[f"shape.{name}_mask"]
    return np.unpackbits(packed)[: int(np.prod(shape))].reshape(shape).astype(bool)


def test_rows(melhubert: Student, study, open_melhubert) -> None:
    scores = row_scores(melhubert)
    rows = lowest_in_each(scores, 16, parts="units")
    for layer in range(3):
        assert np.allclose(scores[layer + 1], study[f"row_scores_layer{layer}"], rtol=1e-6)
        assert rows[layer + 1] == study["pruning"][f"row_pruned_first16_layer{layer}"]
    ours = remove_rows(melhubert, rows)
    theirs = student_of(open_melhubert("row_pruned_states_prune_80.ckpt"))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert ours.state_dict()[f"{part_name(1, 'fc1')}.weight"].shape == (80, 48)
