"""Teachers from torchaudio's bundles: its own modules where they import, a stand-in of their surface elsewhere."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.runtime.errors import RdError
from torch import Tensor, nn

CONV = [(8, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2]


class Block(nn.Module):
    """A convolution of the front end as torchaudio has it."""

    def __init__(self, before: int, shape: tuple[int, int, int], *, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, *shape, bias=False)
        self.layer_norm = nn.GroupNorm(shape[0], shape[0]) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.gelu(x if self.layer_norm is None else self.layer_norm(x))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm_first = False
        self.attention = SelfAttention(width, 4)
        self.layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = nn.Module()
        self.feed_forward.intermediate_dense = nn.Linear(width, 48)
        self.feed_forward.output_dense = nn.Linear(48, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.attention(x))
        inner = F.gelu(self.feed_forward.intermediate_dense(x))
        return self.final_layer_norm(x + self.feed_forward.output_dense(inner))


class StandIn(nn.Module):
    """HUBERT_BASE in small: ``extract_features`` gives the output of every layer."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        befores = [1, *(shape[0] for shape in CONV)]
        self.feature_extractor = nn.Module()
        self.feature_extractor.conv_layers = nn.ModuleList(
            Block(before, shape, norm=n == 0) for n, (before, shape) in enumerate(zip(befores, CONV, strict=False))
        )
        self.encoder, transformer = nn.Module(), nn.Module()
        self.encoder.feature_projection = nn.Module()
        self.encoder.feature_projection.layer_norm = nn.LayerNorm(8)
        self.encoder.feature_projection.projection = nn.Linear(8, width)
        transformer.pos_conv_embed = nn.Module()
        conv = nn.Conv1d(width, width, 128, padding=64, groups=16)
        transformer.pos_conv_embed.conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
        transformer.layer_norm = nn.LayerNorm(width)
        transformer.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.encoder.transformer = transformer
        self.aux = nn.Linear(width, 5)  # of recognisers

    def extract_features(self, wave: Tensor) -> tuple[list[Tensor], None]:
        x = wave[:, None]
        for block in self.feature_extractor.conv_layers:
            x = block(x)
        projection, transformer = self.encoder.feature_projection, self.encoder.transformer
        x = projection.projection(projection.layer_norm(x.transpose(1, 2)))
        position = F.gelu(transformer.pos_conv_embed.conv(x.transpose(1, 2))[..., :-1]).transpose(1, 2)
        x, found = transformer.layer_norm(x + position), []
        for layer in transformer.layers:
            x = layer(x)
            found.append(x)
        return found, None


class Normalised(nn.Module):
    """What torchaudio puts around the Large models."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.normalize_waveform = model, True

    def extract_features(self, wave: Tensor) -> Any:
        return self.model.extract_features(F.layer_norm(wave, wave.shape))


class Bundle:
    sample_rate = 16_000

    def __init__(self, model: nn.Module | Exception) -> None:
        self.model = model

    def get_model(self) -> nn.Module:
        if isinstance(self.model, Exception):
            raise self.model
        return self.model.eval()


@pytest.fixture
def models(monkeypatch) -> dict[str, nn.Module]:
    """A torchaudio with three bundles."""
    torch.manual_seed(0)
    found = {"HUBERT_BASE": StandIn(), "WAV2VEC2_BASE": StandIn(layers=3), "HUBERT_LARGE": Normalised(StandIn())}
    bundles = {name: Bundle(model) for name, model in found.items()}
    bundles |= {"OFFLINE": Bundle(OSError("no route to host")), "CONVTASNET_BASE": Bundle(nn.Linear(1, 1))}
    bundles["HDEMUCS"] = Bundle(nn.Linear(1, 1))
    bundles["HDEMUCS"].sample_rate = 44_100
    library = types.ModuleType("torchaudio")
    library.__spec__ = ModuleSpec("torchaudio", None)  # transformers looks for it
    library.pipelines = types.SimpleNamespace(**bundles, Wav2Vec2Bundle=Bundle)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchaudio", library)
    return found


@pytest.mark.parametrize("name", ["HUBERT_BASE", "WAV2VEC2_BASE", "HUBERT_LARGE"])
def test_layers_are_those_that_the_bundle_extracts(models: dict[str, nn.Module], name: str) -> None:
    """In the same order and number as transformers' hidden_states after the first."""
    teacher = open_teacher(f"torchaudio:{name}")
    wave = 0.1 * torch.randn(1, 8_000)
    with torch.no_grad():
        expected = models[name].extract_features(wave)[0]
    layers = teacher.hidden_states(wave)
    assert len(layers) == len(expected) == teacher.info.layers
    for ours, theirs in zip(layers, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-5
    assert teacher.info.name == f"torchaudio:{name}" and len(teacher.info.sha256) == 64


def test_it_teaches_without_masks(
    models: dict[str, nn.Module], audio_folder: Path, small_recipe: Path, tmp_path
) -> None:
    settings = RunSettings("torchaudio:HUBERT_BASE", audio_folder, tmp_path / "run", device="cpu")
    with pytest.raises(RdError, match="torchaudio:HUBERT_BASE has no mask embedding"):
        run(load_recipe(str(small_recipe)), settings)
    assert not settings.output.exists()
    run(load_recipe(str(small_recipe), ["loss.kind=hint", "training.steps=2"]), settings)
    assert '"name": "torchaudio:HUBERT_BASE"' in (settings.output / "run.json").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HUBERT_BAES", r"has no bundle 'HUBERT_BAES'\n\nhint: did you mean 'HUBERT_BASE'"),
        ("Wav2Vec2Bundle", "has no bundle 'Wav2Vec2Bundle'"),
        ("HDEMUCS", "is not of a model of 16000 Hz audio"),
        ("CONVTASNET_BASE", "is not an encoder of the wav2vec 2.0 family"),
        ("OFFLINE", r"cannot be loaded: no route to host\n\nhint: torchaudio fetches it on first use"),
    ],
)
def test_bundles_that_are_refused(models: dict[str, nn.Module], name: str, message: str) -> None:
    with pytest.raises(RdError, match=message):
        open_teacher(f"torchaudio:{name}")


def test_a_missing_torchaudio_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    with pytest.raises(
        RdError, match=r"torchaudio cannot be imported.*\n\nhint: pip install \"\.\[torchaudio\]\" in the checkout"
    ):
        open_teacher("torchaudio:HUBERT_BASE")


@pytest.mark.parametrize("kind", ["HUBERT_BASE", "HUBERT_LARGE", "WAVLM_BASE", "WAVLM_LARGE"])
def test_models_of_the_real_torchaudio(kind: str, monkeypatch) -> None:
    """Small models of its own classes, as its bundles build them."""
    torchaudio = pytest.importorskip("torchaudio")
    large = kind.endswith("LARGE")
    shape: dict[str, Any] = {
        "extractor_mode": "layer_norm" if large else "group_norm", "extractor_conv_layer_config": CONV,
        "extractor_conv_bias": large, "encoder_embed_dim": 32, "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 128, "encoder_pos_conv_groups": 16, "encoder_num_layers": 3, "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.0, "encoder_ff_interm_features": 48, "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0, "encoder_layer_norm_first": large, "encoder_layer_drop": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind.startswith("WAVLM"):
        model = torchaudio.models.wavlm_model(
            **shape, encoder_max_distance=800, encoder_num_buckets=320, aux_num_out=None
        )
    else:
        model = torchaudio.models.wav2vec2_model(**shape, aux_num_out=None)
    model.eval()
    monkeypatch.setattr(torchaudio.pipelines, kind, Bundle(Normalised(model) if large else model))
    wave = 0.1 * torch.randn(1, 8_000)
    with torch.no_grad():
        expected = getattr(torchaudio.pipelines, kind).get_model().extract_features(wave)[0]
    for ours, theirs in zip(open_teacher(f"torchaudio:{kind}").hidden_states(wave), expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-4
