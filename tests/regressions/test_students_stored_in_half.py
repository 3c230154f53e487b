"""A student whose weights are stored in float16 or int8 is computed in float32 by transformers too.

transformers takes the type of the file where ``config.json`` names none: convolutions then met float32 audio.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reuse_distill.student import Student, load_checkpoint, preset, save_checkpoint
from safetensors.torch import load_file, save_file


def test_auto_model_computes_in_float32(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import reuse_distill.hf  # noqa: F401

    shape = {"width": 32, "ffn_width": 48, "heads": 2, "layers": 2, "reuse_layers": (2,), "position_groups": 4}
    torch.manual_seed(0)
    folder = save_checkpoint(tmp_path / "student", Student(preset("tiny", **shape)).eval())
    weights = folder / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    wave = 0.1 * torch.randn(1, 6000)
    with torch.no_grad():
        found = transformers.AutoModel.from_pretrained(folder)(wave).last_hidden_state
        assert (found - load_checkpoint(folder)(wave).layers[-1]).abs().max() <= 1e-6
    half = transformers.AutoModel.from_pretrained(folder, dtype=torch.float16)
    assert next(half.parameters()).dtype == torch.float16, "what is requested is kept"


def test_the_shipped_student_is_a_folder_for_transformers() -> None:
    """Its own folder, as it is installed: with what ``AutoFeatureExtractor`` reads."""
    transformers = pytest.importorskip("transformers")
    folder = Path(__file__).resolve().parents[2] / "student" / "weights" / "pocket-stream"
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    assert (extractor.do_normalize, extractor.sampling_rate) == (False, 16_000)


@pytest.mark.parametrize("name", ["pocket", "pocket-stream"])
def test_auto_model_reads_int8(name: str) -> None:
    """transformers took the stored int8 for the weights, and said so in a warning only."""
    transformers = pytest.importorskip("transformers")
    import reuse_distill.hf  # noqa: F401

    folder = Path(__file__).resolve().parents[2] / "student" / "weights" / name
    wave = 0.1 * torch.randn(1, 6000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = transformers.AutoModel.from_pretrained(folder)(wave).last_hidden_state
        assert (features - load_checkpoint(folder)(wave).layers[-1]).abs().max() <= 1e-5
    assert next(transformers.AutoModel.from_pretrained(folder, dtype=torch.float16).parameters()).dtype == torch.float16
