"""The loop over layers, and attention with caches in both of its forms."""

from __future__ import annotations

import torch
from reuse_distill.student import Student, preset
from reuse_distill.student.layer import CachedAttention, HeadForm, run_layers


def test_every_layer_gets_the_output_before_it_and_the_last_computed_map() -> None:
    seen = []

    def call(index, layer, x, source):
        seen.append((index, layer, float(x), None if source is None else float(source)))
        return x + 1, source if layer == "reuses" else x * 10

    outputs = run_layers(["computes", "reuses", "computes", "reuses"], torch.tensor(1.0), call)
    assert [float(x) for x in outputs] == [2, 3, 4, 5]
    assert seen == [(0, "computes", 1, None), (1, "reuses", 2, 10), (2, "computes", 3, 10), (3, "reuses", 4, 30)]


def test_without_caches_it_is_the_encoders_own_attention_batched_or_as_rows() -> None:
    torch.manual_seed(0)
    student = Student(preset("tiny-stream")).eval().requires_grad_(False)
    x = torch.randn(1, 7, student.config.width)
    expected = student.encoder.run(x, None)
    batched = run_layers(student.encoder.layers, x, CachedAttention(None))
    rows_form = HeadForm(
        lambda rows, heads: rows.unflatten(1, (heads, -1)).transpose(0, 1),
        lambda context: context.transpose(0, 1).flatten(1),
        torch.bmm,
    )
    rows = run_layers(student.encoder.layers, x[0], CachedAttention(None, form=rows_form))
    for ours, form, one in zip(expected, batched, rows, strict=True):
        torch.testing.assert_close(form, ours)
        torch.testing.assert_close(one[None], ours)


def test_cached_frames_are_attended_to_as_if_they_stood_before_the_input() -> None:
    torch.manual_seed(0)
    student = Student(preset("tiny-stream")).eval().requires_grad_(False)
    layers = student.encoder.layers[:2]  # the second one reuses the map of the first
    x = torch.randn(1, 9, student.config.width)
    whole = CachedAttention(None)
    run_layers(layers[:1], x, whole)
    first = run_layers(layers[:1], x, CachedAttention(None))[0]
    keys, values = whole.new_keys[0][..., :5, :], whole.new_values[0][..., :5, :]
    part = run_layers(layers[:1], x[:, 5:], CachedAttention(None, [keys], [values]))[0]
    torch.testing.assert_close(part, first[:, 5:])
