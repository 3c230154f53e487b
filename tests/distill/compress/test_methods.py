"""What is removed is gone, what is left computes the same, and everything that reads a student follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reuse_distill.distill.compress.head_pruning import (
    head_groups,
    l1_scores,
    lowest_overall,
    remove_heads,
)
from reuse_distill.distill.compress.low_rank import (
    decompose,
    factored,
    input_covariances,
    ranks_by_budget,
)
from reuse_distill.distill.compress.reshaping import lowest_in_each
from reuse_distill.distill.compress.weight_pruning import masked, semi_structured_masks, sparsity, zero_masks
from reuse_distill.distill.compress.width_pruning import remove_rows
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext, Student, load_checkpoint, save_checkpoint
from reuse_distill.student.cost import macs, weight_bytes
from reuse_distill.student.step import initial_state, step


@pytest.fixture(scope="module")
def wave() -> torch.Tensor:
    return torch.randn(1, 12_000, generator=torch.Generator().manual_seed(1)) * 0.1


def compressed(student: Student) -> Student:
    """Heads, rows and ranks gone."""
    student = remove_heads(student, {1: [2], 3: [0, 3]})
    student = remove_rows(student, {1: list(range(10)), 4: [5]})
    found = decompose(student)
    return factored(student, found, ranks_by_budget(found, 0.4))


def test_heads_of_a_map_go_together(small: Student) -> None:
    assert head_groups(small.config) == {1: (1, 2), 3: (3, 4)}
    pruned = remove_heads(small, {3: [0, 2]})
    assert pruned.config.layer_heads == (4, 4, 2, 2)
    with pytest.raises(RdError, match="layer 2 computes no map"):
        remove_heads(small, {2: [0]})
    with pytest.raises(RdError, match=r"heads 0\.\.3"):
        remove_heads(small, {1: [4]})
    with pytest.raises(RdError, match="layer 1 has 0 heads"):
        remove_heads(small, {1: [0, 1, 2, 3]})


def test_scores_add_up_over_the_layers_of_a_map(small: Student) -> None:
    before = l1_scores(small)
    with torch.no_grad():
        small.encoder.layers[1].self_attn.v_proj.weight[8:16] += 100  # head 1 of the reusing layer
    after = l1_scores(small)
    assert after[1][1] > before[1][1] + 1000
    assert after[3] == before[3] and [after[1][h] for h in (0, 2, 3)] == [before[1][h] for h in (0, 2, 3)]


def test_a_head_that_does_nothing_can_go(small: Student, wave: torch.Tensor) -> None:
    with torch.no_grad():
        for layer in (0, 1):
            small.encoder.layers[layer].self_attn.out_proj.weight[:, 8:16] = 0
    pruned = remove_heads(small, {1: [1]})
    assert torch.allclose(pruned(wave).layers[-1], small(wave).layers[-1], atol=1e-5)
    other = remove_heads(small, {1: [0]})
    assert (other(wave).layers[-1] - small(wave).layers[-1]).abs().max() > 0.01


def test_a_unit_that_does_nothing_can_go(small: Student, wave: torch.Tensor) -> None:
    with torch.no_grad():
        small.encoder.layers[2].fc2.weight[:, 7] = 0
    assert torch.allclose(remove_rows(small, {3: [7]})(wave).layers[-1], small(wave).layers[-1], atol=1e-5)


def test_full_rank_changes_nothing_and_low_rank_does(small: Student, wave: torch.Tensor) -> None:
    found = decompose(small)
    full = {place: len(one.values) for place, one in found.items()}
    same = factored(small, found, full)
    assert torch.allclose(same(wave).layers[-1], small(wave).layers[-1], atol=1e-4)
    again = factored(same, decompose(same), dict.fromkeys(full, 0))
    assert again.config == small.config and torch.allclose(again(wave).layers[-1], small(wave).layers[-1], atol=1e-4)
    low = factored(small, found, dict.fromkeys(full, 2))
    assert (low(wave).layers[-1] - small(wave).layers[-1]).abs().max() > 0.1
    with pytest.raises(RdError, match=r"rank 33 of fc1 is outside 0\.\.32"):
        factored(small, found, {(1, "fc1"): 33})


def test_ranks(small: Student) -> None:
    found = decompose(small)
    whole = sum(one.whole for one in found.values())
    ranks = ranks_by_budget(found, 0.5)
    left = sum(rank * found[p].cost if rank else found[p].whole for p, rank in ranks.items())
    assert 0.45 * whole < left <= 0.5 * whole
    with pytest.raises(RdError, match="rank 1 in all"):
        ranks_by_budget(found, 0.99)


def test_activations_choose_other_factors_with_less_error(small: Student, wave: torch.Tensor) -> None:
    aware = decompose(small, input_covariances(small, small, [wave]))
    inputs: list[torch.Tensor] = []
    handle = small.encoder.layers[0].fc1.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0].double()))
    small(wave)
    handle.remove()
    weight = small.encoder.layers[0].fc1.weight.double()
    errors = []
    for one in (decompose(small)[1, "fc1"], aware[1, "fc1"]):
        down, up = one.factors(4)
        errors.append(float((inputs[0] @ (up @ down - weight).T).square().sum()))
    assert errors[1] < 0.95 * errors[0]


def test_two_of_four(small: Student) -> None:
    pruned = masked(small, semi_structured_masks(small))
    weight = pruned.encoder.layers[3].fc2.weight
    assert ((weight.reshape(32, -1, 4) != 0).sum(-1) == 2).all()
    kept = weight != 0
    assert torch.equal(weight[kept], small.encoder.layers[3].fc2.weight[kept])
    assert sparsity(small) == 0 and 0.48 < sparsity(pruned) < 0.5  # biases stay
    assert torch.equal(zero_masks(pruned)["encoder.layers.3.fc2.weight"], kept)
    with pytest.raises(RdError, match="multiple of 4"):
        semi_structured_masks(remove_rows(small, {1: [0]}))


def test_choices_leave_a_head_and_a_unit() -> None:
    scores = {1: [3.0, 1.0], 3: [0.5, 0.6]}
    assert lowest_overall(scores, 2) == {3: [0], 1: [1]}
    with pytest.raises(RdError, match="3 of 4 heads cannot be removed: 2 can"):
        lowest_overall(scores, 3)
    with pytest.raises(RdError, match="none would be left"):
        lowest_in_each(scores, 2)
    with pytest.raises(RdError, match="units of layer 1 cannot be removed"):
        lowest_in_each({1: [1.0, 2.0]}, 2, parts="units")
    assert lowest_in_each({1: [2.0, 1.0, 3.0]}, 0) == {} == lowest_in_each(scores, 0)


def test_saved_loaded_and_counted(small: Student, wave: torch.Tensor, tmp_path: Path) -> None:
    student = compressed(small)
    again = load_checkpoint(save_checkpoint(tmp_path / "c", student))
    assert again.config == student.config and any(map(any, again.config.layer_ranks))
    assert torch.allclose(again(wave).projections[-1], student(wave).projections[-1], atol=1e-5)
    parameters = sum(p.numel() for p in student.parameters()) - student.mask_emb.numel()
    kernel = student.encoder.pos_conv[0].weight_g.numel()
    assert weight_bytes(student.config) == 4 * (parameters - kernel)
    linear = [m for m in student.encoder.layers.modules() if isinstance(m, torch.nn.Linear)]
    counted = macs(student.config, 100)
    assert counted["projections"] + counted["ffn"] == 100 * sum(m.weight.numel() for m in linear)


def test_old_configurations_load_and_new_ones_are_checked(small: Student, make_toy, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "old", small)
    data = json.loads((folder / "config.json").read_text())
    for name in ("layer_heads", "layer_ffn_widths", "layer_ranks"):
        del data["student"][name]
    (folder / "config.json").write_text(json.dumps(data))
    assert load_checkpoint(folder).config == small.config
    for changes, message in (
        ({"layer_heads": (4, 4, 2, 4)}, "layer 4 has 4 heads and reuses the maps of layer 3, which has 2"),
        ({"layer_heads": (4, 4)}, "layer_heads has 2 entries, the student has 4 layers"),
        ({"layer_heads": (5, 5, 4, 4)}, "layer 1 has 5 heads, 1..4"),
        ({"layer_ffn_widths": (48, 48, 0, 48)}, "layer 3 has a feed-forward width of 0"),
        ({"layer_ranks": ((0,) * 6, (1, 0, 0, 0, 0, 0), (0,) * 6, (0,) * 6)}, "rank 1 of q_proj is outside 0..0"),
        ({"layer_ranks": ((0,) * 5,) * 4}, "layer 1 has 5 ranks"),
    ):
        with pytest.raises(RdError, match=message):
            make_toy(**changes)


def test_streams_exactly(small: Student) -> None:
    student, context = compressed(small), ChunkContext(chunk_frames=4, left_frames=8)
    config, frames = student.config, 24
    wave = torch.randn(1, 320 * frames + 80, generator=torch.Generator().manual_seed(3)) * 0.1
    whole = student(wave, context=context).layers[-1]
    state, parts = initial_state(config, context, batch=1, dtype=torch.float32), []
    for start in range(0, frames, 4):
        output, state = step(student, wave[:, start * 320 : (start + 4) * 320 + 80], torch.ones(1, 4), state)
        parts.append(output.layers[-1])
    streamed, skip = torch.cat(parts, dim=1), config.lookahead_frames
    assert (streamed[:, skip:] - whole[:, : frames - skip]).abs().max() < 2e-5


def test_factors_and_heads_in_either_order(small: Student, wave: torch.Tensor) -> None:
    """A rank that has become larger than its matrix is multiplied out."""
    found = decompose(small)
    low = factored(small, found, dict.fromkeys(found, 12))
    pruned = remove_heads(low, {1: [0, 1, 2]})
    assert pruned.config.layer_ranks[0] == (0, 0, 0, 0, 12, 12)
    assert pruned.config.layer_ranks[2] == (12,) * 6
    reference = remove_heads(factored(low, decompose(low), dict.fromkeys(found, 0)), {1: [0, 1, 2]})
    assert torch.allclose(pruned(wave).layers[-1], reference(wave).layers[-1], atol=1e-4)
