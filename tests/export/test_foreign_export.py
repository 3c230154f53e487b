"""Encoders of other libraries through ``rd-export``: proven, and with the features of transformers' own forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from reuse_distill.export.rd_export import main as rd_export
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.runtime.rd_stream import main as rd_stream

pytest.importorskip("transformers")
FAMILIES = (
    *("hubert", "hubert-large", "hubert-layer-post", "hubert-pre-group", "hubert-batch-norm", "distilhubert"),
    *("wav2vec2", "wav2vec2-large", "wavlm", "unispeech-sat", "unispeech-sat-large", "data2vec"),
)
BOUND = 1e-4


def speech(frames: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(4).standard_normal(samples_for(frames))).astype(np.float32)


def hidden(model: Any, wave: np.ndarray) -> list[np.ndarray]:
    """Every layer's output as transformers gives it; the last one is ``last_hidden_state``."""
    with torch.no_grad():
        found = model(torch.from_numpy(wave)[None], output_hidden_states=True)
    return [one[0].numpy() for one in (*found.hidden_states[1:-1], found.last_hidden_state)]


def exported(folder: Path, target: Path, *options: str) -> Encoder:
    assert rd_export([str(folder), "--output", str(target), *options]) == 0
    return Encoder.load(target)


def test_wavlm_large_keeps_one_table_of_positions(make_foreign: Any, tmp_path: Path) -> None:
    """Norms first, gated positions; an inner layer is given raw, as transformers gives it."""
    import onnx

    folder, model = make_foreign("wavlm-large", normalise=False, num_hidden_layers=2)
    encoder = exported(folder, tmp_path / "b", "--layers", "1,2")
    wave = speech(50)
    theirs, ours = hidden(model, wave), encoder.extract(wave)
    assert max(np.abs(ours[0] - theirs[0]).max(), np.abs(ours[1] - theirs[1]).max()) < BOUND
    proof = encoder.manifest.graph_proof
    assert proof is not None and (proof.softmaxes, proof.computed_maps, proof.reused) == (2, 2, ())
    graph = onnx.load(str(encoder.bundle.artifact)).graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    tables = [node for node in graph.node if node.op_type == "Gather" and sizes.get(node.input[0]) == (81, 4)]
    assert len(tables) == 1, "one lookup serves all layers"
    assert sum(node.op_type == "Sigmoid" for node in graph.node) == 2, "a gate in every layer"
    layers = encoder.manifest.parity["layers"]
    assert [row["layer"] for row in layers] == [1, 2] and max(row["max_abs"] for row in layers) < BOUND


def test_the_file_tells_its_contract_itself(make_foreign: Any, tmp_path: Path) -> None:
    """Level, geometry and rules stand in the ONNX file: a client in another language needs no page of ours."""
    import onnx

    folder, model = make_foreign("hubert-large", normalise=True, num_hidden_layers=1)
    options = ("--mode", "window", "--left", "16", "--chunk", "8", "--right", "8")
    encoder = exported(folder, tmp_path / "b", *options)
    notes = {p.key: p.value for p in onnx.load(str(encoder.bundle.artifact)).metadata_props}
    assert json.loads(notes["reuse-distill.geometry"])["left_frames"] == 16
    told = json.loads(notes["reuse-distill.input"])
    assert (told["level"], told["level_epsilon"], told["field_samples"]) == ("utterance", 1e-7, 400)
    rules = notes["reuse-distill.rules"]
    assert "mean and variance of all samples heard up to the end of the window" in rules
    assert tuple(rules.split("\n")) == encoder.manifest.input.rules
    assert encoder.manifest.drift["exported"]["mean_cosine"] < 1 and encoder.manifest.approximate
    wave, stream = speech(60) + np.float32(0.05), encoder.stream()
    parts = []
    for start in range(0, len(wave), 999):  # a snapshot carries the statistics
        parts += stream.push(wave[start : start + 999])
        saved, stream = stream.snapshot(), encoder.stream()
        stream.restore(saved)
    streamed = encoder.join([*parts, *stream.finish()])
    assert np.array_equal(streamed, encoder.extract(wave))
    assert np.abs(encoder.extract(wave * np.float32(0.25)) - streamed).max() < 0.01  # 1e-7 beside the variance
    # The last window has heard everything: its frames are those of the whole utterance but for the left context.
    assert hidden(model, wave)[-1].shape == streamed.shape


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("hubert", ("--mode", "streaming"), "conv_norm is 'group'"),
        ("hubert-large", ("--mode", "streaming"), "this encoder cannot stream"),
        ("data2vec", ("--mode", "streaming"), "this encoder cannot stream"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    make_foreign: Any, tmp_path: Path, capsys: Any, family: str, options: tuple[str, ...], message: str
) -> None:
    folder, _ = make_foreign(family)
    assert rd_export([str(folder), "--output", str(tmp_path / "b"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "--mode window" in error
    assert not (tmp_path / "b").exists()


def test_whisper_offline_and_as_window(tmp_path: Path, capsys: Any) -> None:
    """A Whisper of 4 s: shorter audio is followed by silence inside the artifact, longer audio is refused by name."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "whisper"
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, decoder_layers=1, vocab_size=64,
        decoder_attention_heads=2, decoder_ffn_dim=48, max_source_positions=200, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.WhisperModel(config).eval()
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(chunk_length=4)
    extractor.save_pretrained(folder)
    encoder = exported(folder, tmp_path / "b")
    for frames in (1, 99, 199):
        wave = speech(frames)
        mel = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.no_grad():
            theirs = model.encoder(mel).last_hidden_state[0, :frames].numpy()
        assert np.abs(encoder.extract(wave) - theirs).max() < BOUND
    contract = encoder.manifest.input
    assert (contract.first_sample, contract.field_samples, contract.longest_samples) == (-520, 1040, 64_000)
    assert contract.mel is not None and contract.mel.bands == 80
    with pytest.raises(RdError, match="this encoder sees at most 4 s at once"):
        encoder.extract(np.zeros(64_001, np.float32))
    assert encoder.manifest.graph_proof is not None and encoder.manifest.graph_proof.softmaxes == 2
    sizes = ("--left", "40", "--chunk", "20", "--right", "20")
    window = exported(folder, tmp_path / "w", "--mode", "window", *sizes)
    assert window.extract(np.tile(speech(50), 8)).shape[1] == 32  # longer than 4 s
    assert rd_export([str(folder), "--output", str(tmp_path / "x"), "--mode", "window"]) == 2
    assert "this encoder sees at most 199 at once" in capsys.readouterr().err
    for target in ("coreml", "executorch"):
        assert rd_export([str(folder), "--output", str(tmp_path / "x"), "--target", target]) == 2
        error = capsys.readouterr().err
        assert f"--target {target} has no log-mel spectrum of 30 s" in error and "--target onnx" in error


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(make_foreign: Any, tmp_path: Path, family: str) -> None:
    folder, model = make_foreign(family, normalise=False)
    wave = speech(50)
    offline = exported(folder, tmp_path / "offline", "--layers", "all")
    for ours, theirs in zip(np.atleast_3d(offline.extract(wave)), hidden(model, wave), strict=True):
        assert np.abs(ours - theirs).max() < BOUND
    window = exported(folder, tmp_path / "window", "--mode", "window", "--left", "24", "--chunk", "8", "--right", "16")
    assert window.selftest().passed and window.extract(wave).shape == hidden(model, wave)[-1].shape
    half = exported(folder, tmp_path / "half", "--precision", "fp16")
    assert np.abs(half.extract(wave) - hidden(model, wave)[-1]).max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("target", "package"), [("coreml", "coremltools"), ("executorch", "executorch")])
@pytest.mark.parametrize("family", ["hubert-large", "hubert-batch-norm", "wavlm", "data2vec"])
@pytest.mark.parametrize("mode", ["offline", "window"])
def test_phones_have_every_kind_of_layer(
    make_foreign: Any, tmp_path: Path, target: str, package: str, family: str, mode: str
) -> None:
    """Norms first or in every convolution, other positions: proven, within the bound of fp32 (Core ML: evaluator)."""
    pytest.importorskip(package)
    folder, model = make_foreign(family, normalise=False, num_hidden_layers=2)
    sizes = ("--left", "24", "--chunk", "8", "--right", "16") if mode == "window" else ()
    words = [
        str(folder),
        "--target",
        target,
        "--mode",
        mode,
        *sizes,
        "--layers",
        "all",
        "--output",
        str(tmp_path / "b"),
    ]
    assert rd_export(words) == 0
    manifest = read_bundle(tmp_path / "b").manifest
    assert manifest.parity["measured"]["max_abs"] < BOUND
    assert manifest.graph_proof is not None and manifest.graph_proof.softmaxes == 2
    if target == "executorch" and mode == "offline":
        wave = speech(50)
        for ours, theirs in zip(Encoder.load(tmp_path / "b").extract(wave), hidden(model, wave), strict=True):
            assert np.abs(ours - theirs).max() < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("family", ["hubert", "wavlm-large", "data2vec"])
@pytest.mark.parametrize("mode", ["offline", "window"])
def test_int8(make_foreign: Any, tmp_path: Path, family: str, mode: str) -> None:
    demo = Path(__file__).resolve().parents[2] / "demo" / "speech"
    folder, _ = make_foreign(family, normalise=True)
    options = ("--precision", "int8", "--mode", mode, "--calibration", str(demo), "--accept-narrow-calibration")
    encoder = exported(folder, tmp_path / "b", *options)
    assert encoder.manifest.parity["measured"]["mean_cosine"] >= 0.99


@pytest.mark.slow
def test_base_shape(make_foreign: Any, tmp_path: Path) -> None:
    """HuBERT base as it is: 94 M parameters. Judged against torch in float64 too: no farther than float32 has to be.

    Measured: 4.3e-6 from transformers; 3.5e-6 from float64, transformers itself 3.0e-6. The weights of the tiny
    folders, not scaled to this width, amplify rounding: transformers is then 2.5e-4 from float64, ours 1.0e-4.
    """
    shape = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    shape |= {"conv_dim": (512,) * 7, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16}
    folder, model = make_foreign("hubert", normalise=True, **shape)
    encoder, wave = exported(folder, tmp_path / "b"), speech(99)
    level = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    ours, theirs = encoder.extract(wave), hidden(model, level)[-1]
    assert np.abs(ours - theirs).max() < BOUND
    with torch.no_grad():
        exact = model.double()(torch.from_numpy(level).double()[None]).last_hidden_state[0].numpy()
    assert np.abs(ours - exact).max() < max(2 * np.abs(theirs - exact).max(), BOUND / 2)


@pytest.mark.slow
def test_a_ctc_head_goes_along_as_window_in_int8(tmp_path: Path, capsys: Any) -> None:
    """Streaming is refused with the window offered; as a window the head's own log-probabilities come out."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.HubertConfig(
        **shape, conv_dim=(32,) * 7, num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=4, vocab_size=5
    )
    torch.manual_seed(0)
    transformers.HubertForCTC(config).save_pretrained(tmp_path / "h")
    (tmp_path / "h" / "vocab.json").write_text(json.dumps({"<pad>": 0, "|": 1, "a": 2, "b": 3, "c": 4}))
    demo = str(Path(__file__).resolve().parents[2] / "demo" / "speech")
    int8 = ("--precision", "int8", "--calibration", demo, "--accept-narrow-calibration", "--head", "own")
    words = [str(tmp_path / "h"), "--output", str(tmp_path / "s"), "--mode", "streaming", *int8]
    assert rd_export(words) == 2 and "--mode window" in capsys.readouterr().err
    encoder = exported(tmp_path / "h", tmp_path / "b", "--mode", "window", *int8)
    frames = encoder.frames(speech(50))
    assert frames.heads["ctc"].shape == (50, 5) and encoder.manifest.head("ctc").labels[2] == "a"
    assert np.abs(np.exp(frames.heads["ctc"]).sum(-1) - 1).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "window"])
def test_a_classifier_over_all_layers_goes_along(tmp_path: Path, mode: str, capsys: Any) -> None:
    """Offline its mean over time is transformers' answer; what layer 1 sees is in the graph and does not come out."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    shape |= {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4}
    torch.manual_seed(0)
    config = transformers.WavLMConfig(**shape, num_labels=3, classifier_proj_size=8, use_weighted_layer_sum=True)
    model = transformers.WavLMForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "h")
    sizes = ("--left", "24", "--chunk", "8", "--right", "16") if mode == "window" else ()
    encoder = exported(tmp_path / "h", tmp_path / "b", "--mode", mode, *sizes, "--head", "own")
    assert encoder.manifest.layers == (2,) and encoder.manifest.parity["heads"]["label"]["measured"]["agreement"] == 1
    wave = speech(50)
    if mode == "offline":
        with torch.no_grad():
            theirs = model(torch.from_numpy(wave)[None]).logits[0].numpy()
        assert np.abs(encoder.frames(wave).heads["label"].mean(0) - theirs).max() < BOUND
    pytest.importorskip("coremltools")
    words = [str(tmp_path / "h"), "--head", "own", "--target", "coreml", "--mode", mode, *sizes]
    assert rd_export([*words, "--output", str(tmp_path / "c")]) == 0
    heads = json.loads((tmp_path / "c" / "manifest.json").read_text())["parity"]["heads"]
    assert heads["label"]["measured"]["max_abs"] < BOUND and heads["label"]["measured"]["agreement"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "precision"), [("offline", "fp32"), ("window", "int8-dynamic"), ("offline", "fp16")])
def test_x_vectors_go_along(tmp_path: Path, mode: str, precision: str, capsys: Any) -> None:
    """Offline the vector is transformers' own; a stream of windows keeps statistics and gives what `events` gives."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    shape |= {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4}
    shape |= {"tdnn_dim": (16, 16, 24), "tdnn_kernel": (5, 3, 1), "tdnn_dilation": (1, 2, 1), "xvector_output_dim": 8}
    torch.manual_seed(0)
    model = transformers.WavLMForXVector(transformers.WavLMConfig(**shape)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.split(".")[0] in ("tdnn", "projector", "feature_extractor"):
                value.copy_(0.3 * torch.randn_like(value))
    model.save_pretrained(tmp_path / "x")
    sizes = ("--left", "24", "--chunk", "8", "--right", "16") if mode == "window" else ()
    words = ("--mode", mode, "--precision", precision, *sizes, "--head", "own")
    encoder, wave = exported(tmp_path / "x", tmp_path / "b", *words), speech(77)
    (event,) = encoder.events(wave, "xvector")
    entry = encoder.manifest.parity["heads"]["xvector"]["measured"]
    assert entry["seen"]["least_cosine_of_vectors"] > (0.9999 if precision == "fp32" else 0.99)
    with torch.no_grad():
        theirs = model(torch.from_numpy(wave)[None]).embeddings[0].numpy()
    difference = np.abs(np.array(event.vector) - theirs).max() / max(1.0, float(np.abs(theirs).max()))
    assert difference < {"fp32": BOUND, "fp16": 0.05}.get(precision, 0.5)
    stream, task = encoder.stream(), encoder.task_stream("xvector")
    if mode == "window":
        for start in range(0, len(wave), 4321):
            for frames in stream.push(wave[start : start + 4321]):
                assert task.push(frames.heads["xvector"]) == []
        for frames in stream.finish():
            task.push(frames.heads["xvector"])
        assert task.finish() == [event]
    capsys.readouterr()
    sound = tmp_path / "speech.wav"
    sf.write(sound, wave, 16_000, subtype="FLOAT")
    assert rd_stream([str(sound), str(tmp_path / "b"), "--head", "xvector", "--output", "jsonl"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert np.allclose(line["vector"], event.vector, atol=1e-4) and line["end_s"] == pytest.approx(77 / 50, abs=1e-3)
    (tmp_path / "b" / "xvector.npz").write_bytes(b"damaged")
    with pytest.raises(RdError, match=r"xvector\.npz"):
        Encoder.load(tmp_path / "b")
