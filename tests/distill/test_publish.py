"""Student folders in transformers: the same features, registered or by the module of a published folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.distill.cli import main as rd_distill
from reuse_distill.student import Student, load_checkpoint, preset, save_checkpoint
from reuse_distill.student.checkpoints.checkpoint import is_packed
from reuse_distill.student.foreign import is_foreign

transformers = pytest.importorskip("transformers")
SMALL = {"width": 32, "ffn_width": 48, "heads": 2, "layers": 4, "reuse_layers": (2, 4), "position_groups": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_checkpoint(tmp_path / "student", Student(preset("tiny", **SMALL, head_width=24)).eval())


@pytest.fixture
def wave() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(9_000)).astype(np.float32)


def test_auto_model_gives_our_features(folder: Path, wave: np.ndarray) -> None:
    import reuse_distill.hf  # noqa: F401

    assert not is_foreign(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    one = extractor(wave, sampling_rate=16_000, return_tensors="pt")
    two = extractor([wave, wave[:5_000]], sampling_rate=16_000, padding=True, return_tensors="pt")
    student = load_checkpoint(folder)
    with torch.no_grad():
        output = model(one.input_values, output_hidden_states=True)
        batch = model(**two)
        ours = student(torch.from_numpy(wave)[None])
        shorter = student(torch.from_numpy(wave[:5_000])[None])
    assert not model.training and output.last_hidden_state.std() > 0.1
    assert (output.last_hidden_state - ours.layers[-1]).abs().max() <= 1e-6
    frames = shorter.layers[-1].shape[1]
    assert (batch.last_hidden_state[1:, :frames] - shorter.layers[-1]).abs().max() <= 1e-4
    assert len(output.hidden_states) == 5 and len(output.projections) == 4
    assert (output.projections[-1] - ours.projections[-1]).abs().max() <= 1e-6


def test_what_is_stored_in_int8_is_published_in_floats(folder: Path, tmp_path: Path) -> None:
    small = save_checkpoint(tmp_path / "small", load_checkpoint(folder), int8=True)
    assert rd_distill(["publish", str(small), "--to", str(tmp_path / "hub"), "--licence", "Apache-2.0"]) == 0
    published, ours = load_checkpoint(tmp_path / "hub").state_dict(), load_checkpoint(small).state_dict()
    assert not is_packed(tmp_path / "hub" / "model.safetensors")
    assert all(torch.equal(value, ours[name].half().float()) for name, value in published.items())


def test_a_published_folder_works_elsewhere(folder: Path, tmp_path: Path, wave: np.ndarray, capsys) -> None:
    target = tmp_path / "hub"
    assert rd_distill(["publish", str(folder), "--to", str(target)]) == 2
    assert "does not say under which licence" in capsys.readouterr().err and not target.exists()
    assert rd_distill(["publish", str(folder), "--to", str(target), "--licence", "Apache-2.0", "--name", "me/it"]) == 0
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and 'AutoModel.from_pretrained("me/it")' in card
    assert "Unmeasured." in card
    assert rd_distill(["publish", str(folder), "--to", str(target), "--licence", "Apache-2.0"]) == 2
    np.save(tmp_path / "wave.npy", wave)
    code = (  # a process that knows nothing of us: the folder's own module does it
        "import sys, numpy as np, torch, transformers as T; folder, wave, out = sys.argv[1:]\n"
        "m = T.AutoModel.from_pretrained(folder, trust_remote_code=True)\n"
        "x = T.AutoFeatureExtractor.from_pretrained(folder)(np.load(wave), sampling_rate=16000, return_tensors='pt')\n"
        "np.save(out, m(**x).last_hidden_state.detach().numpy())"
    )
    words = [sys.executable, "-c", code, str(target), str(tmp_path / "wave.npy"), str(tmp_path / "out.npy")]
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    subprocess.run(words, check=True, env=environment, capture_output=True, timeout=280)
    with torch.no_grad():
        expected = load_checkpoint(folder)(torch.from_numpy(wave)[None]).layers[-1].numpy()
    assert np.abs(np.load(tmp_path / "out.npy") - expected).max() <= 1e-6


def test_a_published_folder_is_exported_without_its_module(folder: Path, tmp_path: Path) -> None:
    """Nothing of ours runs a folder's code."""
    target = tmp_path / "hub"
    rd_distill(["publish", str(folder), "--to", str(target), "--licence", "mit"])
    (target / "modeling_reuse_distill.py").write_text("raise SystemExit('executed')")
    assert json.loads((target / "config.json").read_text())["auto_map"]
    assert load_checkpoint(target).config == load_checkpoint(folder).config


def test_the_card_fetches_before_it_exports(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``rd-export`` refuses the name of a hub; the next command has the name that was given."""
    to = tmp_path / "hub"
    words = ["publish", str(folder), "--to", str(to), "--licence", "apache-2.0", "--name", "me/small"]
    assert rd_distill(words) == 0
    card = (to / "README.md").read_text(encoding="utf-8")
    assert "hf download me/small --local-dir small\nrd-export small " in card and "rd-export me/" not in card
    assert f"next: hf upload me/small {to}" in capsys.readouterr().err
