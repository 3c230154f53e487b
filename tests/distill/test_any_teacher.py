"""``rd-distill run pocket-stream --teacher FOLDER`` for every family, without a width or a layer by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from reuse_distill.distill.cli import main
from reuse_distill.student import load_checkpoint

SMALL = {
    "num_attention_heads": 2, "intermediate_size": 32, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "conv_dim": (8,) * 7,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPER = {
    "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "vocab_size": 20, "decoder_layers": 1,
    "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
    "decoder_start_token_id": 1,
}  # fmt: skip
CASES = (
    ("Hubert", 3, 32, {}, "1<-1, 2<-1, 3<-2, 4<-2, 5<-2, 6<-3"),
    ("Hubert", 12, 48, LARGE, "1<-2, 2<-4, 3<-6, 4<-8, 5<-10, 6<-12"),
    ("WavLM", 6, 32, {}, "1<-1, 2<-2, 3<-3, 4<-4, 5<-5, 6<-6"),
    ("Wav2Vec2", 2, 32, LARGE, "1<-1, 2<-1, 3<-1, 4<-1, 5<-2, 6<-2"),
    ("Data2VecAudio", 4, 32, {}, "1<-1, 2<-1, 3<-2, 4<-3, 5<-3, 6<-4"),
    ("UniSpeechSat", 2, 64, {}, "1<-1, 2<-1, 3<-1, 4<-1, 5<-2, 6<-2"),
    ("Whisper", 2, 32, {}, "1<-1, 2<-1, 3<-1, 4<-1, 5<-2, 6<-2"),
)


def teacher(folder: Path, family: str, layers: int, width: int, changes: dict) -> Path:
    torch.manual_seed(2)
    if family == "Whisper":
        sizes = {**WHISPER, "encoder_layers": layers, "d_model": width}
    else:
        sizes = {**SMALL, "num_hidden_layers": layers, "hidden_size": width, **changes}
    config = getattr(transformers, f"{family}Config")(**sizes)
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("family", "layers", "width", "changes", "pairs"), CASES)
def test_a_student_of_any_teacher(
    tmp_path: Path,
    audio_folder: Path,
    capsys: pytest.CaptureFixture[str],
    family: str,
    layers: int,
    width: int,
    changes: dict,
    pairs: str,
) -> None:
    folder = teacher(tmp_path / "my-teacher", family, layers, width, changes)
    words = ["run", "pocket-stream", "--teacher", str(folder), "--data", str(audio_folder), "--steps", "1"]
    words += ["--output", str(tmp_path / "run"), "data.batch_size=2", "data.crop_seconds=0.5"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert pairs in said.err and "next: rd-export" in said.err
    assert said.out.strip() == str(tmp_path / "run" / "student")
    student = load_checkpoint(tmp_path / "run" / "student")
    assert (student.config.head_width, student.config.layers) == (width, 6)
    losses = json.loads((tmp_path / "run" / "student" / "training.json").read_text())["losses"]
    assert len(losses) == 1 and 0 < losses[0] < 100
