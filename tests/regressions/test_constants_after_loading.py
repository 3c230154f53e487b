"""A student with a log-mel front end has its filters after ``AutoModel.from_pretrained``.

They are in no file. transformers 5 makes models without memory, fills in what files hold, and left them uninitialised:
the features were NaN.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reuse_distill.student import Student, load_checkpoint, preset, save_checkpoint


@pytest.mark.parametrize("where", ["registered", "published"])
def test_auto_model_has_the_filters(tmp_path: Path, where: str) -> None:
    transformers = pytest.importorskip("transformers")
    from reuse_distill.distill.cli import main as rd_distill

    torch.manual_seed(0)
    shape = {"width": 32, "ffn_width": 48, "heads": 2, "layers": 2, "reuse_layers": (2,), "position_groups": 4}
    student = Student(preset("pocket-stream", **shape, conv_layers=((24, 3, 1), (32, 3, 2)))).eval()
    folder = save_checkpoint(tmp_path / "student", student)
    if where == "published":
        assert rd_distill(["publish", str(folder), "--to", str(tmp_path / "hub"), "--licence", "Apache-2.0"]) == 0
        model = transformers.AutoModel.from_pretrained(tmp_path / "hub", trust_remote_code=True)
    else:
        import reuse_distill.hf  # noqa: F401

        model = transformers.AutoModel.from_pretrained(folder)
    wave = 0.1 * torch.randn(2, 6000)
    with torch.no_grad():
        found, expected = model(wave).last_hidden_state, load_checkpoint(folder)(wave).layers[-1]
    assert expected.std() > 0.1 and (found - expected).abs().max() <= 1e-6
