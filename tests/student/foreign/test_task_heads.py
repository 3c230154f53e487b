"""Heads beside a foreign encoder give what transformers' own model with the head gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.foreign import read_foreign, student_of
from reuse_distill.student.foreign.task_heads import foreign_heads

transformers = pytest.importorskip("transformers")
TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
LABELS = ["<pad>", "|", "a", "b", "c", "d"]


def make(folder: Path, name: str, **changes: Any) -> Any:
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**TINY, **changes})).eval()
    model.save_pretrained(folder)
    return model


def vocabulary(folder: Path, labels: list[str]) -> None:
    (folder / "vocab.json").write_text(json.dumps({label: number for number, label in enumerate(labels)}))


@pytest.mark.parametrize("name", ["HubertForCTC", "WavLMForCTC", "Wav2Vec2ForCTC"])
def test_ctc(tmp_path: Path, name: str) -> None:
    model, wave = make(tmp_path, name, vocab_size=6, pad_token_id=0), 0.1 * torch.randn(1, 6000)
    vocabulary(tmp_path, LABELS)
    checkpoint = read_foreign(tmp_path)
    (head,) = foreign_heads(checkpoint)
    with torch.no_grad():
        expected = model(wave).logits.log_softmax(-1)
        ours = head.module(student_of(checkpoint)(wave).layers[-1][:, None])
    assert (ours - expected).abs().max() < 1e-4 and expected.std() > 0.01
    output = head.contract
    assert (output.kind, output.labels, output.blank, output.delimiter) == ("ctc", tuple(LABELS), 0, "|")
    head.check_fits(sha256=checkpoint.sha256, width=32, known=(1, 2), where="here")


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "HubertForCTC", vocab_size=6, pad_token_id=0)
    with pytest.raises(RdError, match=r"6 of 6 labels are missing from vocab\.json, such as 0"):
        foreign_heads(read_foreign(tmp_path))
    vocabulary(tmp_path, LABELS[:4])
    with pytest.raises(RdError, match=r"2 of 6 labels are missing from vocab\.json, such as 4"):
        foreign_heads(read_foreign(tmp_path))
    vocabulary(tmp_path, LABELS)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token_id": 17}))
    with pytest.raises(RdError, match="blank 17 is none of the 6 labels"):
        foreign_heads(read_foreign(tmp_path))


def test_classification_is_the_mean_over_time(tmp_path: Path) -> None:
    labels = {0: "no", 1: "yes", 2: "well"}
    model = make(tmp_path, "HubertForSequenceClassification", num_labels=3, classifier_proj_size=8, id2label=labels)
    wave, checkpoint = 0.1 * torch.randn(1, 6000), read_foreign(tmp_path)
    (head,) = foreign_heads(checkpoint)
    with torch.no_grad():
        ours = head.module(student_of(checkpoint)(wave).layers[-1][:, None]).mean(1)
        assert (ours - model(wave).logits).abs().max() < 1e-4
    assert head.contract.labels == ("no", "yes", "well")


def test_heads_that_see_more_than_the_last_layer_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "w", "HubertForSequenceClassification", num_labels=3, use_weighted_layer_sum=True)
    with pytest.raises(RdError, match="use_weighted_layer_sum"):
        foreign_heads(read_foreign(tmp_path / "w"))
    make(tmp_path / "n", "HubertModel")
    with pytest.raises(RdError, match="has no head of a task"):
        foreign_heads(read_foreign(tmp_path / "n"))
