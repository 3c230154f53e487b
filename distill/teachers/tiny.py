"""A small HuBERT: its shape, and one with random weights, which has a teacher's interfaces and no knowledge.

Random weights at the usual scale give uniform attention and features that hardly depend on the input, so a student
learns a constant. Query, key and residual branches are therefore scaled up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill.files import check_writable, write_json
from reuse_distill.distill.teachers.vendor import transformers
from reuse_distill.runtime.errors import RdError

NOTE = "teacher.json"
LAYERS, WIDTH, CONV_WIDTH, HEADS = 6, 192, 64, 4
SHARPNESS = 2.0  # standard deviation of the attention scores
BRANCH = 1.2  # scale of the value, output and feed-forward matrices against PyTorch's default


def hubert_config(*, layers: int = LAYERS, width: int = WIDTH, conv_width: int = CONV_WIDTH) -> Any:
    """The shape of the small teacher."""
    return transformers().HubertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=8 * width // 3,
        num_conv_pos_embeddings=64,
        hidden_dropout=0.05,
        attention_dropout=0.0,
        activation_dropout=0.0,
        conv_dim=(conv_width,) * 7,
        layerdrop=0.0,
        feat_proj_dropout=0.0,
        mask_time_prob=0.65,
    )


def make_teacher(
    folder: Path, *, seed: int = 0, layers: int = LAYERS, width: int = WIDTH, conv_width: int = CONV_WIDTH
) -> Path:
    """Write a transformers folder of a random HuBERT with ``layers`` layers of ``width`` channels.

    The folder's README says that it is random. Raises RdError where the folder already holds a model.
    """
    check_free(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers().HubertModel(hubert_config(layers=layers, width=width, conv_width=conv_width)).eval()
        _sharpen(model)
    return write_teacher(folder, model, {"weights": "random: never trained, knows nothing about speech", "seed": seed})


def check_free(folder: Path) -> None:
    """Raises RdError where ``folder`` holds a model, or nothing can be written in it."""
    if (folder / "config.json").exists():
        raise RdError(f"{folder} already holds a model", hint="name another folder")
    check_writable(folder)


def write_teacher(folder: Path, model: Any, note: dict[str, Any]) -> Path:
    """The transformers folder of ``model``, with ``note`` as teacher.json and in its README. RdError: a full disk."""
    try:
        model.save_pretrained(folder)
    except Exception as error:  # an OSError without a name, or safetensors' own
        raise RdError(f"{folder} was not written: {error}", hint="free disk space, and remove the folder") from None
    (folder / "model.safetensors").chmod(0o644)
    note = {**note, "parameters": sum(p.numel() for p in model.parameters())}
    write_json(folder / NOTE, note)
    lines = "\n".join(f"- {key}: {value}" for key, value in note.items())
    text = f"# A small HuBERT for demos and tests\n\nMade by `rd-distill make-teacher`.\n\n{lines}\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


@torch.no_grad()
def _sharpen(model: Any) -> None:
    """Scale weights so that attention chooses and every layer changes its input."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d) and module.kernel_size[0] < 16:
            torch.nn.init.kaiming_normal_(module.weight)
    torch.nn.init.xavier_normal_(model.feature_projection.projection.weight, gain=1.0)
    model.masked_spec_embed.normal_()
    for layer in model.encoder.layers:
        attention = layer.attention
        width = attention.q_proj.in_features
        # Inputs have unit variance (layer norm): a score q.k / sqrt(D) has the standard deviation std^2 * width.
        spread = (SHARPNESS**0.5) / width**0.5
        for matrix in (attention.q_proj, attention.k_proj):
            matrix.weight.normal_(std=spread)
        for matrix in (attention.v_proj, attention.out_proj):
            matrix.weight.normal_(std=BRANCH * 0.5 / width**0.5)
        forward = layer.feed_forward
        forward.intermediate_dense.weight.normal_(std=BRANCH * 0.5 / width**0.5)
        layer.feed_forward.output_dense.weight.normal_(
            std=BRANCH * 0.5 / layer.feed_forward.output_dense.in_features**0.5
        )
