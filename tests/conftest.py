"""Fixtures that every package shares."""

from __future__ import annotations

import gc
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


# Tests of exports that share nothing that takes long to make with others of their folder.
ALONE = ("heads", "families", "foreign", "melhubert", "log_mel", "compressed")


def pytest_configure() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored; programs that tests start would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # a test that imports NNCF by itself reports nothing either
    # Modules and tests live to the end: looking through them for garbage again and again is a tenth of the run.
    gc.set_threshold(100_000, 20, 20)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def group_of(nodeid: str) -> str:
    """What runs in one process, one after the other: a file, or the files that export the same students.

    In two processes at the same time each would wait for the other's exports, and both would import the engine.
    """
    file = nodeid.partition("::")[0]
    parts = file.split("/")
    if parts[:3] == ["tests", "export", "targets"] and len(parts) > 4:
        return "/".join(parts[:4])
    name = parts[-1].removeprefix("test_")
    return file if parts[:2] != ["tests", "export"] or name.startswith(ALONE) else "tests/export"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that processes end together."""

    def rank(item: pytest.Item) -> int:
        group = group_of(item.nodeid)
        return 0 if group == "tests/export" else 1 if "/export/" in group else 2 if "/distill/" in group else 3

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile`` by groups, in the order that they are collected in."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadGroups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return LoadGroups(config, log)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data beside the checkout; tests that need it skip where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("the reference data (../shared) is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "golden"


@pytest.fixture(scope="session")
def speech_dir(shared_dir: Path) -> Path:
    if not (shared_dir / "speech").is_dir():
        pytest.skip("the recordings (../shared/speech) are not beside this checkout")
    return shared_dir / "speech"


@pytest.fixture(scope="session")
def whisper_shape() -> dict[str, Any]:
    """Fields of a student that is Whisper's encoder, with windows of two seconds and a width of 32."""
    return {
        "front_end": "whisper",
        "conv_layers": ((12, 3, 1), (32, 3, 2)),
        "conv_norm": "layer",
        "frame_norm": False,
        "position": "absolute",
        "position_kernel": 1,
        "position_groups": 1,
        "lookahead_frames": 0,
        "window_frames": 100,
        "norm_first": True,
        "reuse_layers": (),
        "head_width": None,
        "width": 32,
        "ffn_width": 48,
        "heads": 4,
    }


# Encoders of other libraries, of every family and norm style.
TINY_FOREIGN: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": (32,) * 7,
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
# name -> (model class, changes of its configuration)
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("HubertModel", {}),
    "hubert-large": ("HubertModel", LARGE),
    "hubert-layer-post": ("HubertModel", {"feat_extract_norm": "layer", "conv_bias": True}),
    "hubert-pre-group": ("HubertModel", {"do_stable_layer_norm": True}),
    "hubert-eps": ("HubertModel", {"layer_norm_eps": 1e-2}),
    "hubert-batch-norm": ("HubertModel", {"conv_pos_batch_norm": True}),
    "hubert-odd-kernel": ("HubertModel", {"num_conv_pos_embeddings": 31}),
    "hubert-same-width": ("HubertModel", {"conv_dim": (48,) * 7}),
    "distilhubert": ("HubertModel", {"num_hidden_layers": 2, "feat_proj_layer_norm": False}),
    "wav2vec2": ("Wav2Vec2Model", {}),
    "wav2vec2-large": ("Wav2Vec2Model", LARGE),
    "wavlm": ("WavLMModel", {"num_buckets": 32, "max_bucket_distance": 40}),
    "wavlm-large": ("WavLMModel", {**LARGE, "num_buckets": 32, "max_bucket_distance": 40}),
    "unispeech-sat": ("UniSpeechSatModel", {}),
    "unispeech-sat-large": ("UniSpeechSatModel", LARGE),
    "data2vec": ("Data2VecAudioModel", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7, "conv_bias": True}),
}


def _foreign_model(family: str, **changes: Any) -> Any:
    """A tiny model whose attention and norms are not those of a fresh one, in eval mode."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    name, own = FOREIGN[family]
    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = kind(kind.config_class(**{**TINY_FOREIGN, **own, **changes})).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                if value.dim() < 2 or "gru_rel_pos_const" in key:
                    value.add_(0.2 * torch.randn_like(value))
                elif "rel_attn" in key:
                    value.mul_(60)
                elif ".layers." in key and "pos_conv" not in key:
                    value.mul_(8 * math.sqrt(TINY_FOREIGN["hidden_size"] / model.config.hidden_size))
            for key, value in model.named_buffers():
                if "running" in key:
                    value.add_(0.3 * torch.rand_like(value))
    return model


@pytest.fixture
def make_foreign(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """``make_foreign(family)`` -> (folder, model): a tiny transformers folder with random weights."""
    pytest.importorskip("transformers")

    def make(family: str, *, shards: str | None = None, normalise: bool | None = None, **changes: Any) -> Any:
        import transformers

        model, folder = _foreign_model(family, **changes), tmp_path / family
        model.save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
        if normalise is not None:
            transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture(scope="session")
def foreign_families() -> tuple[str, ...]:
    return tuple(FOREIGN)


# Random weights at the usual scale give uniform attention and features that hardly depend on the input, so a student
# would learn a constant: query, key and residual branches of the HuBERT that tests learn from are scaled up.
SHARPNESS, BRANCH = 2.0, 0.6  # variance of the attention scores; gain of value, output and feed-forward matrices


@pytest.fixture(scope="session")
def random_hubert() -> Callable[..., Path]:
    """Writes a transformers folder of a HuBERT with random weights: (folder, seed, layers, width, conv_width)."""
    import torch
    import transformers

    @torch.no_grad()
    def sharpen(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, torch.nn.Conv1d) and module.kernel_size[0] < 16:
                torch.nn.init.kaiming_normal_(module.weight)
        torch.nn.init.xavier_normal_(model.feature_projection.projection.weight)
        model.masked_spec_embed.normal_()
        for layer in model.encoder.layers:
            attention, forward = layer.attention, layer.feed_forward
            for matrix in (attention.q_proj, attention.k_proj):
                matrix.weight.normal_(std=(SHARPNESS / matrix.in_features) ** 0.5)
            for matrix in (attention.v_proj, attention.out_proj, forward.intermediate_dense, forward.output_dense):
                matrix.weight.normal_(std=BRANCH / matrix.in_features**0.5)

    def write(folder: Path, *, seed: int = 0, layers: int = 2, width: int = 32, conv_width: int = 16) -> Path:
        config = transformers.HubertConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=8 * width // 3,
            num_conv_pos_embeddings=64,
            conv_dim=(conv_width,) * 7,
            layerdrop=0.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = transformers.HubertModel(config).eval()
            sharpen(model)
        model.save_pretrained(folder)
        return folder

    return write
