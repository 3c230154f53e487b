"""A pruned and factored student exports like any other: smaller, proven, within the bound of its parity."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from reuse_distill.distill.compress.head_pruning import remove_heads
from reuse_distill.distill.compress.low_rank import decompose, factored, ranks_by_budget
from reuse_distill.distill.compress.reshaping import lowest_in_each
from reuse_distill.distill.compress.width_pruning import remove_rows, row_scores
from reuse_distill.export.rd_export import main
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.student import ChunkContext, Student, preset, save_checkpoint
from reuse_distill.student.cost import weight_bytes


def test_a_compressed_student_streams_through_the_runtime(tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = dataclasses.replace(
        preset("pocket-stream"), width=64, ffn_width=128, layers=4, reuse_layers=(2, 4), position_groups=4,
        conv_layers=((32, 3, 1), (64, 3, 2)), head_width=48, context=ChunkContext(4, 12),
    )  # fmt: skip
    student = Student(config).eval()
    small = remove_heads(student, {1: [0], 3: [1, 2]})
    small = remove_rows(small, lowest_in_each(row_scores(small), 64, parts="units"))
    found = decompose(small)
    small = factored(small, found, ranks_by_budget(found, 0.4)).requires_grad_(False)
    folder, bundle = save_checkpoint(tmp_path / "small", small), tmp_path / "bundle"
    words = ["--target", "onnx", "--mode", "streaming", "--batch", "1", "--output", str(bundle)]
    assert main([str(folder), *words]) == 0
    manifest = read_bundle(bundle).manifest
    assert manifest.graph_proof is not None and [one.layer for one in manifest.graph_proof.reused] == [2, 4]
    assert [state.shape[1] for state in manifest.states if state.name.startswith("values")] == [3, 3, 2, 2]
    assert (bundle / "model.onnx").stat().st_size < 0.9 * weight_bytes(student.config)
