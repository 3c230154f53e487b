"""Heads beside a foreign encoder give what transformers' own model with the head gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.runtime.tasks import decode
from reuse_distill.runtime.tasks.xvector import XVectorDecoder
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


def test_a_tokenizer_is_neither_run_nor_followed(tmp_path: Path) -> None:
    """Labels come from vocab.json alone: no code of the folder runs, and no name in it leads to another file."""
    folder, marker = tmp_path / "h", tmp_path / "ran"
    make(folder, "HubertForCTC", vocab_size=6, pad_token_id=0)
    (tmp_path / "secret.json").write_text(json.dumps({f"secret{n}": n for n in range(6)}))
    (folder / "tokenizer.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    runs = {"auto_map": {"AutoTokenizer": ["tokenizer.Tokenizer", None]}, "vocab_file": "../secret.json"}
    for name in ("tokenizer_config.json", "tokenizer.json", "config.json"):
        before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(
            json.dumps({**before, **runs} if name != "config.json" else {**before, "auto_map": {}})
        )
    with pytest.raises(RdError, match=r"6 of 6 labels are missing from vocab\.json"):
        foreign_heads(read_foreign(folder))
    vocabulary(folder, LABELS)
    (head,) = foreign_heads(read_foreign(folder))
    assert head.contract.labels == tuple(LABELS) and not marker.exists()
    (folder / "vocab.json").write_text(
        json.dumps({"<pad>": "__import__('os')", "|": 1.0, "a": True, "b": -1, "c": 10**9})
    )
    with pytest.raises(RdError, match=r"6 of 6 labels are missing"):
        foreign_heads(read_foreign(folder))
    (folder / "vocab.json").write_text(json.dumps(LABELS))
    with pytest.raises(RdError, match="not a JSON object but list"):
        read_foreign(folder)


def test_classification_is_the_mean_over_time(tmp_path: Path) -> None:
    labels = {0: "no", 1: "yes", 2: "well"}
    model = make(tmp_path, "HubertForSequenceClassification", num_labels=3, classifier_proj_size=8, id2label=labels)
    wave, checkpoint = 0.1 * torch.randn(1, 6000), read_foreign(tmp_path)
    (head,) = foreign_heads(checkpoint)
    with torch.no_grad():
        ours = head.module(student_of(checkpoint)(wave).layers[-1][:, None]).mean(1)
        assert (ours - model(wave).logits).abs().max() < 1e-4
    assert head.contract.labels == ("no", "yes", "well")


@pytest.mark.parametrize("large", [False, True])
def test_a_classifier_may_weigh_all_layers(tmp_path: Path, large: bool) -> None:
    """What the first layer sees counts too, as in the classifiers that SUPERB publishes.

    Where norms come first the last layer counts behind the encoder's norm, as in transformers 4; 5 takes it before.
    """
    style = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True} if large else {}
    shape = {"num_labels": 3, "classifier_proj_size": 8, "use_weighted_layer_sum": True, **style}
    model = make(tmp_path, "WavLMForSequenceClassification", **shape)
    with torch.no_grad():
        model.layer_weights.copy_(torch.tensor([1.0, -1.0, 0.5]))
        model.classifier.weight.mul_(100)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    wave, checkpoint = 0.1 * torch.randn(1, 6000), read_foreign(tmp_path)
    (head,) = foreign_heads(checkpoint)
    assert head.config.layers == (0, 1, 2)
    with torch.no_grad():
        output = student_of(checkpoint)(wave)
        ours = head.module(torch.stack([output.encoder_input, *output.layers], dim=1)).mean(1)
        theirs = model.wavlm(wave, output_hidden_states=True)
        states = torch.stack([*theirs.hidden_states[:-1], theirs.last_hidden_state], dim=-1)
        expected = model.classifier(model.projector(states @ model.layer_weights.softmax(0)).mean(1))
        assert (ours - expected).abs().max() < 1e-4 and expected.abs().max() > 0.01
        assert large or (expected - model(wave).logits).abs().max() < 1e-5
        last = head.module(torch.stack([output.layers[-1]] * 3, dim=1)).mean(1)
        assert (last - ours).abs().max() > 1e-3
    del checkpoint.heads["classify"]["layer_weights"]
    with pytest.raises(RdError, match="layer_weights is missing or has not 3 numbers"):
        foreign_heads(checkpoint)


XVECTOR: dict[str, Any] = {
    "tdnn_dim": (10, 12, 14), "tdnn_kernel": (5, 3, 1), "tdnn_dilation": (1, 2, 1), "xvector_output_dim": 6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "weighted"),
    [
        ("Wav2Vec2ForXVector", False),
        ("WavLMForXVector", True),
        ("UniSpeechSatForXVector", True),
        ("Data2VecAudioForXVector", False),
    ],
)
def test_an_x_vector_is_transformers_own(tmp_path: Path, name: str, weighted: bool) -> None:
    """Time-delay layers, statistics and the vector's layer: recordings of several lengths, the shortest too."""
    shape = {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7} if name.startswith("Data2Vec") else {}
    model = make(tmp_path, name, use_weighted_layer_sum=weighted, **XVECTOR, **shape)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.split(".")[0] in ("tdnn", "projector", "feature_extractor", "classifier", "layer_weights"):
                value.copy_(0.3 * torch.randn_like(value))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    checkpoint = read_foreign(tmp_path)
    (head,) = foreign_heads(checkpoint)
    assert head.config.layers == ((0, 1, 2) if weighted else (2,)) and head.xvector is not None
    decoder, student = XVectorDecoder(head.contract, head.xvector), student_of(checkpoint)
    assert decoder.least_frames == 10
    for frames in (10, 11, 41, 42, 90):
        wave = 0.1 * torch.randn(1, samples_for(frames))
        with torch.no_grad():
            theirs, output = model(wave), student(wave)
            every = [output.encoder_input, *output.layers]
            rows = head.module(torch.stack([every[layer] for layer in head.config.layers], dim=1))[0].numpy()
        (event,) = decode(decoder, rows)
        assert event.end_s == pytest.approx(frames / 50)
        vector, scale = torch.tensor(event.vector), float(theirs.embeddings.abs().max())
        assert scale > 0.1 and (vector - theirs.embeddings[0]).abs().max() < 1e-4 * max(1.0, scale)
        logits = torch.from_numpy(decoder.logits(vector.numpy()))
        assert (logits - theirs.logits[0]).abs().max() < 1e-4 * max(1.0, float(theirs.logits.abs().max()))
    assert decode(decoder, rows[:9]) == [], "too short for a standard deviation"


def test_x_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "WavLMForXVector", **XVECTOR)
    file = tmp_path / "config.json"
    before = json.loads(file.read_text())
    for changes, message in (
        ({"tdnn_kernel": [5, 3]}, "3 tdnn_dim, 2 tdnn_kernel and 3 tdnn_dilation"),
        ({"tdnn_dim": [10, 12, 15]}, r"tdnn\.2\.kernel has shape \(14, 12\), config.json says \(15, 12\)"),
        ({"tdnn_dilation": [1, 0, 1]}, "a list of whole numbers is needed"),
        ({"tdnn_dilation": [1, 5000, 1]}, "are not possible"),
        ({"use_weighted_layer_sum": True}, "layer_weights is missing"),
    ):
        file.write_text(json.dumps({**before, **changes}))
        with pytest.raises(RdError, match=message):
            foreign_heads(read_foreign(tmp_path))
    file.write_text(json.dumps(before))
    checkpoint = read_foreign(tmp_path)
    del checkpoint.heads["xvector"]["feature_extractor.weight"]
    with pytest.raises(RdError, match="feature_extractor is missing or not finite"):
        foreign_heads(checkpoint)


def test_an_encoder_without_a_head_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "HubertModel")
    with pytest.raises(RdError, match="has no head of a task"):
        foreign_heads(read_foreign(tmp_path))
