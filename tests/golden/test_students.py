"""Students against the public reference: one utterance at a time equal, in a batch different on purpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from reuse_distill.student import Student, StudentOutput
from reuse_distill.student.attention import join_heads, padding_mask
from reuse_distill.student.position import pad_context

FRAMES = {"w0": 99, "w1": 154}


def gap(ours: torch.Tensor, stored: np.ndarray) -> float:
    assert tuple(ours.shape) == stored.shape
    return float((ours - torch.from_numpy(stored)).abs().max())


@pytest.mark.parametrize("name", ["w0", "w1"])
class TestOneUtterance:
    def test_front_end(self, case, name: str) -> None:
        ours = case.student(case.waves[name][None])
        assert gap(ours.conv_features, case.stored[f"{name}_conv_features"]) <= case.bound
        assert gap(ours.features, case.stored[f"{name}_features"]) <= case.bound

    def test_every_layer(self, case, name: str) -> None:
        ours = case.student(case.waves[name][None])
        for mine, stored in zip(ours.layers, case.layers(name), strict=True):
            assert gap(mine, stored) <= case.bound
            assert np.abs(stored).max() > 1, "the stored layers are not trivially small"

    def test_every_projection(self, case, name: str) -> None:
        ours = case.student(case.waves[name][None])
        assert len(ours.projections) == (0 if case.family == "starhubert_tiny" else 4)
        for mine, stored in zip(ours.projections, case.projections(name), strict=True):
            assert gap(mine, stored) <= case.bound

    def test_lengths_change_nothing(self, case, name: str) -> None:
        wave = case.waves[name][None]
        ours = case.student(wave, torch.tensor([wave.shape[1]]))
        assert not ours.padding.any()
        for mine, stored in zip(ours.layers, case.layers(name), strict=True):
            assert gap(mine, stored) <= case.bound


def test_encoder_input(masking_case) -> None:
    ours = masking_case.student(masking_case.waves["w0"][None])
    assert gap(ours.encoder_input, masking_case.stored["w0_encoder_input"]) <= masking_case.bound


def test_star_stages(all_cases) -> None:
    case = all_cases["starhubert_tiny"]
    for name in FRAMES:
        ours = case.student(case.waves[name][None])
        assert gap(ours.layers[-1].transpose(0, 1), case.stored[f"{name}_x_TBD"]) <= case.bound
        assert gap(ours.encoder_input.transpose(0, 1), case.stored[f"{name}_pre_trf_TBD"]) <= case.bound
        assert gap(ours.features.transpose(0, 1), case.stored[f"{name}_post_cnn_TBD"]) <= case.bound


def test_attention_probabilities(reusing_case) -> None:
    ours = reusing_case.student(reusing_case.waves["w0"][None], with_maps=True)
    assert gap(ours.maps[0].transpose(0, 1), reusing_case.stored["w0_attn_probs_0"]) <= reusing_case.bound


@pytest.mark.parametrize("layer", [0, 3])
def test_attention_averaged_over_heads(all_cases, layer: int) -> None:
    case = all_cases["starhubert_tiny"]
    ours = case.student(case.waves["w0"][None], with_maps=True)
    assert gap(ours.maps[layer].mean(1), case.stored[f"w0_attn_headmean_{layer}"]) <= case.bound


class TestOurBatch:
    """An utterance in a padded batch is the utterance alone."""

    def test_each_utterance_equals_itself_alone(self, case) -> None:
        wave, lengths = case.batch()
        batch = case.student(wave, lengths)
        for row, (name, frames) in enumerate(FRAMES.items()):
            alone = case.student(case.waves[name][None])
            assert int((~batch.padding[row]).sum()) == frames
            for key in ("layers", "projections"):
                for mine, single in zip(getattr(batch, key), getattr(alone, key), strict=True):
                    assert float((mine[row, :frames] - single[0]).abs().max()) <= 1e-5

    def test_padding_is_the_reference_s(self, case) -> None:
        wave, lengths = case.batch()
        assert np.array_equal(case.student(wave, lengths).padding.numpy(), case.stored["batch_padding_mask"])

    def test_masked_batch_equals_masked_utterances(self, masking_case) -> None:
        wave, lengths = masking_case.batch()
        mask = torch.from_numpy(masking_case.stored["batchmasked_mask_indices"])
        batch = masking_case.student(wave, lengths, mask)
        for row, (name, frames) in enumerate(FRAMES.items()):
            alone = masking_case.student(masking_case.waves[name][None], mask=mask[row : row + 1, :frames])
            assert float((batch.layers[-1][row, :frames] - alone.layers[-1][0]).abs().max()) <= 1e-5


def reference_batch(student: Student, wave: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor | None) -> list:
    """What the reference computes for a padded batch, put together from our pieces: layers [B, F, C].

    Two things differ from ours: norm statistics of the front end run over the padding, and a reusing layer reads the
    maps [H, B, F, F] as if they were [B, H, F, F]: slot (b, h) gets head n // B of utterance n % B, n = b * H + h,
    masked for the padding of b.
    """
    _, x = student.frames(wave)
    padding = padding_mask(lengths, x.shape[1])
    if mask is not None:
        x = torch.where(mask[..., None], student.mask_emb, x)
    x = x.masked_fill(padding[..., None], 0.0)
    config = student.config
    padded = pad_context(x.transpose(1, 2), kernel=config.position_kernel, lookahead=config.lookahead_frames)
    x = student.encoder.add_position(x, padded)
    layers, computed = [], None
    for layer in student.encoder.layers:
        attention = layer.self_attn
        if attention.reuse:
            maps = computed.transpose(0, 1).reshape(computed.shape)  # [H, B, F, F] read as [B, H, F, F]
        else:
            maps = attention.queries(x) @ attention.keys(x).transpose(-1, -2)
        maps = maps.masked_fill(padding[:, None, None, :], -torch.inf).softmax(-1)
        computed = computed if attention.reuse else maps
        x = layer.after_attention(x, attention.out_proj(join_heads(maps @ attention.values(x))))
        layers.append(x)
    return layers


class TestTheReferencesBatch:
    """The reference's batch depends on the batch mates. We know exactly how, and do not do it."""

    def test_we_can_reproduce_it(self, case) -> None:
        layers = reference_batch(case.student, *case.batch(), None)
        for mine, stored in zip(layers, case.layers("batch"), strict=True):
            assert gap(mine, stored) <= case.bound  # padded frames too

    def test_we_can_reproduce_it_masked(self, masking_case) -> None:
        mask = torch.from_numpy(masking_case.stored["batchmasked_mask_indices"])
        layers = reference_batch(masking_case.student, *masking_case.batch(), mask)
        stored = masking_case.stored["batchmasked_layer_results_3"]
        assert gap(layers[-1], stored) <= masking_case.bound
        assert gap(masking_case.student.proj_head[3](layers[-1]), masking_case.stored["batchmasked_x"]) <= 1e-4

    def difference(self, case, row: int, name: str) -> list[float]:
        """Max abs per layer between our batch and the reference's, over the valid frames of ``name``."""
        wave, lengths = case.batch()
        ours: StudentOutput = case.student(wave, lengths)
        frames = FRAMES[name]
        return [
            float((mine[row, :frames] - torch.from_numpy(stored[row, :frames])).abs().max())
            for mine, stored in zip(ours.layers, case.layers("batch"), strict=True)
        ]

    def test_the_longest_utterance_differs_by_the_mixed_heads_only(self, case) -> None:
        """No padding, so no statistics over padding: equal up to the first reusing layer, then 0.005 to 0.1."""
        differences = self.difference(case, 1, "w1")
        assert differences[0] <= case.bound
        for difference in differences[1:]:
            if case.student.config.reuse_layers:
                assert 0.005 < difference < 0.1
            else:
                assert difference <= case.bound

    def test_the_padded_utterance_differs_by_statistics_over_padding(self, case) -> None:
        """From the first layer on, in every family: at least 0.3 of features of about 4."""
        for difference in self.difference(case, 0, "w0"):
            assert 0.3 < difference < 4

    def test_the_padded_utterance_differs_in_a_masked_batch(self, masking_case) -> None:
        wave, lengths = masking_case.batch()
        mask = torch.from_numpy(masking_case.stored["batchmasked_mask_indices"])
        ours = masking_case.student(wave, lengths, mask).layers[-1]
        stored = torch.from_numpy(masking_case.stored["batchmasked_layer_results_3"])
        assert float((ours[0, :99] - stored[0, :99]).abs().max()) > 0.3
        longest = float((ours[1] - stored[1]).abs().max())
        assert (longest > 0.005) == bool(masking_case.student.config.reuse_layers)


def test_shared_reuse_is_another_model(reusing_case) -> None:
    """The method as published and what the released weights compute are split by far more than the bound."""
    published = Student(dataclasses.replace(reusing_case.student.config, reuse_mode="shared")).eval()
    published.load_state_dict(reusing_case.student.state_dict())
    with torch.no_grad():
        ours = published(reusing_case.waves["w0"][None]).layers
    stored = reusing_case.layers("w0")
    assert gap(ours[0], stored[0]) <= reusing_case.bound
    assert gap(ours[1], stored[1]) > 0.5
    cosine = torch.cosine_similarity(ours[3], torch.from_numpy(stored[3]), dim=-1).mean()
    assert 0.85 < float(cosine) < 0.995
