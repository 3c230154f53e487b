"""The heads that are shipped: bound to the shipped student, small, and inside the shipped bundle as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from reuse_distill.runtime.bundle_format.bundle import SHIPPED, file_sha256, read_bundle
from reuse_distill.student.tasks import load_head

WEIGHTS = Path(__file__).resolve().parents[3] / "student" / "weights"


@pytest.mark.parametrize(("name", "kind"), [("keywords", "spot"), ("units", "units")])
def test_a_shipped_head_fits_the_shipped_student_and_is_in_the_bundle(name: str, kind: str) -> None:
    folder = WEIGHTS / "pocket-stream-heads" / name
    head = load_head(folder)
    sha256 = file_sha256(WEIGHTS / "pocket-stream" / "model.safetensors")
    head.check_fits(sha256=sha256, width=256, known=(1, 2, 3, 4, 5, 6), where="pocket-stream")
    assert head.config.output.kind == kind and head.config.metrics
    assert sum(file.stat().st_size for file in folder.iterdir()) < 120_000
    assert "LibriSpeech" in (folder / "README.md").read_text(encoding="utf-8")
    contract = read_bundle(SHIPPED).manifest.head(name)
    assert contract.source["weights_sha256"] == head.sha256
    assert contract.labels == head.config.output.labels and contract.size == head.config.output.size
