"""The whole student: padding leaves no trace, masks, maps, errors."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext, Student

FAMILIES = [("tiny-stream", {}), ("tiny", {}), ("tiny", {"reuse_mode": "renormalised", "reuse_layers": (2, 3)})]
CONTEXTS = [None, ChunkContext(4, 6)]


@pytest.fixture(params=FAMILIES, ids=["stream", "group-norm", "renormalised"])
def student(request, small_config, randomised) -> Student:
    name, changes = request.param
    return randomised(small_config(name, **changes))


@pytest.fixture
def batch(noise) -> tuple[torch.Tensor, torch.Tensor]:
    """Two utterances of 7 and 20 frames, zero padded."""
    wave = torch.stack([noise(320 * 20 + 80), noise(320 * 20 + 80, seed=2)])
    wave[0, 2400:] = 0
    return wave, torch.tensor([2400, 6480])


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("garbage", [0.5, 1e4, float("inf"), float("nan")])
def test_what_stands_in_padding_changes_nothing(student, batch, garbage: float, context) -> None:
    wave, lengths = batch
    spoilt = wave.clone()
    spoilt[0, 2400:] = garbage
    clean, ours = student(wave, lengths, context=context), student(spoilt, lengths, context=context)
    for key in ("layers", "projections"):
        for a, b in zip(getattr(clean, key), getattr(ours, key), strict=True):
            assert torch.equal(a[0, :7], b[0, :7])
            assert torch.equal(a[1], b[1])
            assert b.isfinite().all(), "not even in the padding itself"


def test_padding_is_never_attended_to(student, batch) -> None:
    output = student(*batch, with_maps=True)
    for weights in output.maps:
        assert weights[0, ..., 7:].abs().max() == 0
        assert weights[1].min() > 0


@pytest.mark.parametrize("context", CONTEXTS)
def test_batch_mates_do_not_matter(student, batch, context) -> None:
    wave, lengths = batch
    together = student(wave, lengths, context=context)
    turned = student(wave.flip(0), lengths.flip(0), context=context)
    alone = student(wave[:1, :2400], context=context)
    for a, b, c in zip(together.layers, turned.layers, alone.layers, strict=True):
        torch.testing.assert_close(a, b.flip(0), atol=1e-10, rtol=0)
        torch.testing.assert_close(a[:1, :7], c, atol=1e-10, rtol=0)


def test_an_utterance_without_a_frame_is_finite_and_alone(student, batch) -> None:
    """399 samples give no frame; its row is all padding and harms nobody."""
    wave, _ = batch
    output = student(wave, torch.tensor([399, 6480]))
    assert output.padding.sum(1).tolist() == [20, 0]
    assert all(x.isfinite().all() for x in output.layers)
    torch.testing.assert_close(output.layers[-1][1:], student(wave[1:]).layers[-1], atol=1e-10, rtol=0)


def test_shapes(student, batch) -> None:
    output = student(*batch, with_maps=True)
    assert [tuple(x.shape) for x in output.layers] == [(2, 20, 16)] * 4
    assert [tuple(x.shape) for x in output.projections] == [(2, 20, 12)] * 4
    assert [tuple(x.shape) for x in output.maps] == [(2, 4, 20, 20)] * 4
    assert output.conv_features.shape == (2, 16, 20)
    assert output.padding.sum(1).tolist() == [13, 0]
    assert not student(batch[0]).maps


def test_reusing_layers_take_the_map_of_the_last_computing_layer(small_config, randomised, noise) -> None:
    student = randomised(small_config(layers=6, reuse_layers=(2, 3, 5)))
    maps = student(noise(3280)[None], with_maps=True).maps
    assert maps[0] is maps[1] is maps[2]
    assert maps[3] is maps[4]
    assert len({id(m) for m in maps}) == 3
    assert [student.config.map_source(n) for n in range(1, 7)] == [1, 1, 1, 4, 4, 6]


def test_masked_frames_do_not_depend_on_the_audio(student, noise) -> None:
    wave, mask = noise(320 * 20 + 80)[None], torch.ones(1, 20, dtype=torch.bool)
    ours = student(wave, mask=mask)
    assert torch.equal(ours.features, student.mask_emb.expand(1, 20, 16))
    assert torch.equal(ours.layers[-1], student(2 * wave, mask=mask).layers[-1])


def test_a_mask_in_padding_has_no_effect(student, batch) -> None:
    """Padded frames are zeros for the positional convolution, masked or not."""
    wave, lengths = batch
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, 2:5] = True
    beyond = mask.clone()
    beyond[0, 7:] = True
    a, b = student(wave, lengths, mask), student(wave, lengths, beyond)
    assert torch.equal(a.features, b.features)
    assert torch.equal(a.layers[-1], b.layers[-1])
    assert not torch.equal(a.layers[-1], student(wave, lengths).layers[-1])


def test_no_heads(small_config, randomised, noise) -> None:
    student = randomised(small_config("starhubert", head_width=None))
    output = student(noise(3280)[None])
    assert output.projections == []
    assert len(output.layers) == 4
    assert not any(name.startswith("proj_head") for name, _ in student.named_parameters())


def test_a_mask_without_a_mask_embedding(small_config, randomised, noise) -> None:
    student = randomised(small_config(mask_embedding=False))
    with pytest.raises(RdError, match="no mask embedding"):
        student(noise(3280)[None], mask=torch.zeros(1, 10, dtype=torch.bool))


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_too_short(samples: int, student) -> None:
    with pytest.raises(RdError, match=f"{samples} samples give no frame, the first one needs 400"):
        student(torch.zeros(1, samples, dtype=torch.float64))


def test_one_frame_and_silence_are_finite(student) -> None:
    for samples in (400, 719, 16_000):
        output = student(torch.zeros(1, samples, dtype=torch.float64))
        assert all(x.isfinite().all() for x in [*output.layers, *output.projections])


def test_a_chunk_as_long_as_the_audio_is_full_context(student, noise) -> None:
    wave = noise(320 * 20 + 80)[None]
    full, chunked = student(wave), student(wave, context=ChunkContext(64, 0))
    torch.testing.assert_close(chunked.layers[-1], full.layers[-1], atol=1e-12, rtol=0)
    narrow = student(wave, context=ChunkContext(2, 2))
    assert float((narrow.layers[-1] - full.layers[-1]).abs().max()) > 0.01


def test_every_parameter_gets_a_gradient(student, noise) -> None:
    student.requires_grad_(True)
    mask = torch.arange(20)[None] % 3 == 0
    output = student(noise(320 * 20 + 80)[None], mask=mask)
    sum(x.square().mean() for x in output.projections).backward()
    without = [name for name, p in student.named_parameters() if p.grad is None]
    assert without == []


def test_dropout_acts_in_training_only(small_config, noise) -> None:
    config = small_config(attention_dropout=0.0, dropout=0.0, activation_dropout=0.0, input_dropout=0.5)
    for field in ("attention_dropout", "dropout", "activation_dropout", "input_dropout"):
        settings = dict.fromkeys(("attention_dropout", "dropout", "activation_dropout", "input_dropout"), 0.0)
        student = Student(dataclasses.replace(config, **{**settings, field: 0.5})).requires_grad_(False)
        wave = noise(3280, dtype=torch.float32)[None]
        assert not torch.equal(student.train()(wave).layers[-1], student(wave).layers[-1]), field
        assert torch.equal(student.eval()(wave).layers[-1], student(wave).layers[-1]), field
