"""Attention: computed maps, the two kinds of reuse, and masks that leave no trace."""

from __future__ import annotations

import math

import pytest
import torch
from reuse_distill.student.attention import (
    MASKED,
    Attention,
    compute_map,
    join_heads,
    reuse_map,
    score_bias,
    split_heads,
)
from reuse_distill.student.layer_shape import LayerShape


def attention(*, reuse: bool = False, mode: str = "shared") -> Attention:
    torch.manual_seed(0)
    return (
        Attention(LayerShape(16, 4, 4, 32, computes=not reuse), reuse_mode=mode, dropout=0.0)
        .double()
        .requires_grad_(False)
    )


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def map_of_others() -> torch.Tensor:
    scores = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return compute_map(3 * scores, None)


def test_heads_split_and_join(frames: torch.Tensor) -> None:
    heads = split_heads(frames, 4)
    assert heads.shape == (2, 4, 9, 4)
    assert torch.equal(heads[1, 2, 5], frames[1, 5, 8:12])
    assert torch.equal(join_heads(heads), frames)


def test_a_computing_layer_is_scaled_dot_product_attention(frames: torch.Tensor) -> None:
    layer = attention()
    output, computed = layer(frames, None, None)
    q, k, v = (split_heads(p(frames), 4) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(output, layer.out_proj(join_heads(expected)), atol=1e-12, rtol=0)
    torch.testing.assert_close(computed.sum(-1), torch.ones(2, 4, 9, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_reusing_layer_has_no_query_and_no_key() -> None:
    assert {name for name, _ in attention(reuse=True).named_parameters()} == {
        "v_proj.weight",
        "v_proj.bias",
        "out_proj.weight",
        "out_proj.bias",
    }


@pytest.mark.parametrize("mode", ["shared", "renormalised"])
def test_a_reusing_layer_weights_its_values_with_the_given_map(mode: str, frames, map_of_others) -> None:
    layer = attention(reuse=True, mode=mode)
    output, handed_on = layer(frames, map_of_others, None)
    weights = map_of_others if mode == "shared" else map_of_others.exp() / map_of_others.exp().sum(-1, keepdim=True)
    context = torch.einsum("bhts,bhsd->bhtd", weights, split_heads(layer.v_proj(frames), 4))
    torch.testing.assert_close(output, layer.out_proj(join_heads(context)), atol=1e-12, rtol=0)
    assert handed_on is map_of_others, "the computed map itself is handed on, not its softmax"


def test_a_reusing_layer_cannot_be_first(frames: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="needs the map of a layer before it"):
        attention(reuse=True)(frames, None, None)


def test_renormalised_reuse_is_nearly_a_mean_over_time() -> None:
    """softmax of a map: no weight above e / (T - 1 + e), and even a map with all its weight on one key comes close."""
    sharp = torch.eye(100, dtype=torch.float64)[None, None]
    weights = reuse_map(sharp, None, mode="renormalised")
    assert float(weights.max()) == pytest.approx(math.e / (99 + math.e))
    assert float((weights - 0.01).abs().sum(-1).max() / 2) < 0.02, "total variation to uniform"
    assert torch.equal(reuse_map(sharp, None, mode="shared"), sharp)


def test_renormalised_reuse_masks_again(map_of_others: torch.Tensor) -> None:
    """Keys with weight 0 in the map would get exp(0) = 1: the mask has to be applied a second time."""
    allowed = torch.arange(9) < 6
    bias = score_bias(allowed, torch.float64)
    weights = reuse_map(map_of_others, bias, mode="renormalised")
    assert float(weights[..., 6:].abs().max()) == 0
    assert float(reuse_map(map_of_others, None, mode="renormalised")[..., 6:].min()) > 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masked_keys_have_exactly_no_weight(dtype: torch.dtype) -> None:
    allowed = torch.tensor([True, True, False, True])
    scores = torch.tensor([[60.0, -60.0, 60.0, 0.0]]).to(dtype)
    weights = compute_map(scores, score_bias(allowed, dtype))
    assert weights[0, 2] == 0
    assert weights.isfinite().all()
    assert torch.equal(weights, compute_map(scores[:, allowed], None)[:, [0, 1, 0, 2]] * allowed.to(dtype))


def test_the_bias_is_exact_and_finite_in_half_precision() -> None:
    bias = score_bias(torch.tensor([True, False]), torch.float16)
    assert bias.tolist() == [0.0, MASKED], "-1e4 is a float16 number, not a rounded one"
    assert (bias[1] + torch.tensor(-50_000.0, dtype=torch.float16)).isfinite(), "and leaves room for any score"


def test_the_bias_takes_validity_as_numbers_too() -> None:
    """The step has its masks as 0/1 floats: that is what a graph carries."""
    as_bool = torch.tensor([True, False, True])
    assert torch.equal(score_bias(as_bool, torch.float32), score_bias(as_bool.float(), torch.float32))


def test_a_row_without_any_key_is_finite() -> None:
    """Queries in the padding of a chunk see nothing; what they give means nothing but must not poison."""
    weights = compute_map(torch.randn(1, 5), score_bias(torch.zeros(5, dtype=torch.bool), torch.float32))
    assert weights.isfinite().all()
    assert float(weights.sum()) == pytest.approx(1)
