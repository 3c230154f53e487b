"""Public checkpoints of the ARM / Mask / STaR families and of FitHuBERT: Lightning pickle + YAML -> Student.

The YAML's Python expressions (``[(128, 10, 5)] + [(256, 3, 2)] * 4``) are read as arithmetic on lists, never evaluated.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import torch
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.student.checkpoints.unpickle import read_torch_file
from reuse_distill.student.config import StudentConfig
from reuse_distill.student.model import Student
from reuse_distill.student.whisper import build_student
from torch import Tensor

_PREFIX, _TEACHER = "student_model.", "teacher_model."
_FAMILIES = ("armhubert", "maskhubert", "starhubert")
_REDUCING = "fithubert"  # its files name no family; they have a time-reduction layer
_LONGEST_LIST = 256
_LARGEST_YAML_BYTES = 64 << 10
_SMALL_STUDENT = 1 << 20  # values
_MOST_COPIES = 4  # values of all weights for each value that the checkpoint stores

# Settings that this reader supports in one form only.
_REQUIRED: dict[str, Any] = {
    "extractor_mode": "default",
    "conv_bias": False,
    "pos_conv_depth": 1,
    "layer_type": "transformer",
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "attn_type": "",
    "pos_enc_type": "abs",
    "layerwise_proj": True,
    "pred_head_inter_dim": 0,
    "required_seq_len_multiple": 1,
    "crop_seq_to_multiple": 1,
    "n_mels": 0,
    "enable_log_mel": False,
}
# Of FitHuBERT's time reduction: a convolution before the first layer, whose kernel is its stride.
_REDUCTION: dict[str, Any] = {"tr_layer_type": "conv1d", "tr_layer_index": 0}
# Settings of the training that do not change what the student computes.
_IGNORED = (
    "feature_grad_mult",
    "max_positions",
    "layer_grad_scale",
    "depthwise_conv_kernel_size",
    "fp16",
    "encoder_layerdrop",
    "final_dim",
    "pred_layer_id",
    "init_conv_layers",
    "init_encoder_layers",
    "tr_conv1d_kernel",
    "mel_spec_head_conv_layers",
    "checkpoint_activations",
    "freeze_student_mask",
    "update_teacher_mask",
)
_USED = (
    "conv_feature_layers",
    "conv_pos",
    "conv_pos_groups",
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "reuse_pattern",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "dropout_input",
    "pred_head_final_dim",
    "enable_tr_layer",
    "tr_reduce_factor",
    *_REDUCTION,
)


def load_public_checkpoint(checkpoint: str | os.PathLike[str], config: str | os.PathLike[str]) -> Student:
    """Student (eval mode, float32) from a public ``.ckpt`` and its ``.yaml``.

    Reuse is ``renormalised``: released weights were trained with the second softmax, and reproduce their features one
    utterance at a time. Raises RdError for damaged files, settings that are not supported, and for every key of the
    checkpoint that is missing, unknown or of another shape.
    """
    shape = read_public_config(config)
    state = _student_state(read_torch_file(checkpoint), Path(checkpoint))
    if shape.time_reduction > 1:
        state = _fithubert_names(state)
    return build_strictly(shape, state, where=str(checkpoint))


def read_public_config(path: str | os.PathLike[str]) -> StudentConfig:
    """StudentConfig from the public YAML; raises RdError naming file, key and both values."""
    file = Path(path)
    data = _read_yaml(file)
    if not isinstance(data, dict) or not isinstance(data.get("distiller"), dict):
        raise RdError(f"{file}: there is no section 'distiller'", hint="give the YAML that came with the checkpoint")
    reduces = data["distiller"].get("enable_tr_layer") is True and "model" not in data
    family = _REDUCING if reduces else data.get("model", "armhubert")
    if not reduces and (not isinstance(family, str) or family not in _FAMILIES):
        family_name = plain_text(family)
        raise RdError(f"{file}: model {family_name} is unknown", hint=nearest(family_name, _FAMILIES))
    try:
        return _config(data["distiller"], family)
    except RdError as error:
        raise RdError(f"{file}: {error.message}", hint=error.hint) from None


def _read_yaml(file: Path) -> Any:
    """The plain values of a YAML file, without aliases: a few lines that refer to each other stand for gigabytes."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it refers to another place (*name), which is not read")
            return super().compose_node(parent, index)

    try:
        with file.open("rb") as stream:
            text = stream.read(_LARGEST_YAML_BYTES + 1)
        if len(text) > _LARGEST_YAML_BYTES:
            raise yaml.YAMLError(f"it is larger than {_LARGEST_YAML_BYTES} bytes")
        return yaml.load(text.decode("utf-8"), Loader)  # noqa: S506  (a SafeLoader)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        raise RdError(f"{file}: not a readable YAML file ({(str(error).splitlines() or [''])[0]:.200})") from None


def _config(section: dict[str, Any], family: str) -> StudentConfig:
    known = [*_REQUIRED, *_IGNORED, *_USED]
    for key in section:
        if key not in known:
            raise RdError(f"distiller: unknown key {key!r}", hint=nearest(str(key), known))
    for key, expected in _REQUIRED.items():
        if section.get(key, expected) != expected:
            raise RdError(f"distiller: {key} is {plain_text(section[key])}, only {expected!r} is supported")
    reduces = family == _REDUCING
    for key, expected in (_REDUCTION if reduces else {"enable_tr_layer": False}).items():
        if section.get(key, expected) != expected:
            raise RdError(f"distiller: {key} is {plain_text(section[key])}, only {expected!r} is supported")
    layers = _integer(section, "encoder_layers")
    star = family == "starhubert"
    return StudentConfig(
        conv_layers=_conv_layers(section.get("conv_feature_layers")),
        width=_integer(section, "encoder_embed_dim"),
        ffn_width=_integer(section, "encoder_ffn_embed_dim"),
        heads=_integer(section, "encoder_attention_heads"),
        layers=layers,
        reuse_layers=_reuse_layers(section.get("reuse_pattern"), layers),
        reuse_mode="renormalised",
        position_kernel=_integer(section, "conv_pos"),
        position_groups=_integer(section, "conv_pos_groups"),
        lookahead_frames=(_integer(section, "conv_pos") - 1) // 2,
        head_width=None if star else _integer(section, "pred_head_final_dim"),
        mask_embedding=not star and not reduces,
        time_reduction=_integer(section, "tr_reduce_factor") if reduces else 1,
        dropout=_probability(section, "dropout", 0.1),
        attention_dropout=_probability(section, "attention_dropout", 0.1),
        activation_dropout=_probability(section, "activation_dropout", 0.1),
        input_dropout=_probability(section, "dropout_input", 0.0),
    )


def plain_text(value: Any) -> str:
    """A value of a file for a message; anything but plain values by kind only: sharing makes them gigabytes long."""
    plain = value is None or isinstance(value, (str, bool, int, float))
    return f"{value!r:.60}" if plain else type(value).__name__


def _integer(section: dict[str, Any], key: str) -> int:
    value = section.get(key)
    if type(value) is not int or not 0 < value < 1_000_000:
        raise RdError(f"distiller: {key} is {plain_text(value)}, a positive whole number is needed")
    return value


def _probability(section: dict[str, Any], key: str, default: float) -> float:
    value = section.get(key, default)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise RdError(f"distiller: {key} is {plain_text(value)}, a number from 0 to 1 is needed")
    return float(value)


def _conv_layers(text: Any) -> tuple[tuple[int, int, int], ...]:
    value = parse_list(text, where="conv_feature_layers")
    if not all(isinstance(item, tuple) and len(item) == 3 and all(type(n) is int for n in item) for item in value):
        raise RdError(f"distiller: conv_feature_layers {text!r} is not a list of (channels, kernel, stride)")
    return tuple(value)


def _reuse_layers(text: Any, layers: int) -> tuple[int, ...]:
    """The public pattern says True where a layer computes its map, False where it reuses one."""
    if text is None:
        return ()
    pattern = parse_list(text, where="reuse_pattern")
    if len(pattern) != layers or not all(type(item) is bool for item in pattern):
        raise RdError(f"distiller: reuse_pattern {text!r} is not a list of {layers} True or False")
    return tuple(number for number, computes in enumerate(pattern, start=1) if not computes)


def parse_list(text: Any, *, where: str) -> list[Any]:
    """A list written in Python's notation with ``+`` and ``*``, read without evaluating anything.

    Raises RdError for names, calls, attributes and everything else that is not a list of plain values.
    """
    if not isinstance(text, str):
        raise RdError(f"distiller: {where} is {type(text).__name__}, a list written as text is needed")
    try:
        value = _fold(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        value = None
    if not isinstance(value, list):
        raise RdError(
            f"distiller: {where} {text[:80]!r} is not a plain list",
            hint="only lists, tuples, numbers, True/False, + and * are read; nothing is evaluated",
        )
    return value


def _fold(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_fold(item) for item in node.elts]
        return tuple(items) if isinstance(node, ast.Tuple) else items
    if isinstance(node, ast.BinOp):
        left, right = _fold(node.left), _fold(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(node.op, ast.Mult) and isinstance(left, list) and type(right) is int:
            if len(left) * right > _LONGEST_LIST:
                raise ValueError("list too long")
            return left * right
    raise ValueError(f"not a plain value: {ast.dump(node):.40}")


def _student_state(data: Any, file: Path) -> dict[str, Tensor]:
    state = data.get("state_dict") if isinstance(data, dict) else None
    if not isinstance(state, dict):
        raise RdError(f"{file}: there is no 'state_dict'", hint="give the Lightning checkpoint of the student")
    unknown = [key for key in state if not str(key).startswith((_PREFIX, _TEACHER))]
    if unknown:
        raise RdError(f"{file}: unknown keys {', '.join(map(str, unknown[:5]))}")
    student = {key.removeprefix(_PREFIX): value for key, value in state.items() if key.startswith(_PREFIX)}
    if not student:
        raise RdError(f"{file}: no key starts with {_PREFIX!r}: this is not a distilled student")
    # STaR keeps an unused output layer of its pre-training, which the authors' own loader drops.
    return {key: value for key, value in student.items() if not key.startswith("final_proj.")}


def _fithubert_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reduction is layer 0 of the public list; an upsampler beside the heads' own is never used."""
    renamed = {}
    for key, value in state.items():
        number = key.split(".")[2] if key.startswith("encoder.layers.") else ""
        if number == "0":
            key = key.replace("encoder.layers.0.", "encoder.reduction.")
        elif number.isdigit():
            key = key.replace(f"encoder.layers.{number}.", f"encoder.layers.{int(number) - 1}.", 1)
        if not key.startswith("upsampler."):
            renamed[key] = value
    return renamed


def build_strictly(config: StudentConfig, state: dict[str, Any], *, where: str) -> Student:
    """Student (eval mode, float32) with the weights of ``state``.

    Shapes are compared before any memory is taken. RdError names every missing, unknown or misshapen key.
    """
    if config.layers > len(state):
        raise RdError(
            f"{where}: {config.layers} layers, the checkpoint has {len(state)} parameters in all",
            hint="the checkpoint and its configuration do not belong together",
        )
    with torch.device("meta"):
        student = build_student(config)
    load_strictly(student, state, where=where)
    return student.eval()


def load_strictly(student: Student, state: dict[str, Any], *, where: str) -> None:
    """Give ``student`` the weights of ``state``, as float32 copies; RdError names what does not fit."""
    _check_stored(state, where)
    problems = _problems({key: tuple(value.shape) for key, value in student.state_dict().items()}, state)
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise RdError(
            f"{where}: {'; '.join(problems[:8])}{more}",
            hint="the checkpoint and its configuration do not belong together",
        )
    copies = {key: value.detach().to(torch.float32, copy=True) for key, value in state.items()}
    on_meta = any(parameter.is_meta for parameter in student.parameters())  # then there is nothing to copy into
    student.load_state_dict(copies, strict=True, assign=on_meta)


def _check_stored(state: dict[str, Any], where: str) -> None:
    """Weights that share their values are copied: raises RdError where that needs far more memory than they do."""
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    stored = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    needed = sum(value.numel() for value in tensors)
    if needed > _MOST_COPIES * sum(stored.values()) + _SMALL_STUDENT:
        raise RdError(
            f"{where}: weights of {needed} values are made of {sum(stored.values())} stored bytes",
            hint="save the checkpoint with weights of their own",
        )


def _problems(expected: dict[str, tuple[int, ...]], state: dict[str, Any]) -> list[str]:
    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unknown {key}" for key in state if key not in expected]
    for key, shape in expected.items():
        value = state.get(key)
        if key in state and not isinstance(value, Tensor):
            problems.append(f"{key} is not a tensor")
        elif isinstance(value, Tensor) and tuple(value.shape) != shape:
            problems.append(f"{key} has shape {tuple(value.shape)}, the configuration says {shape}")
        elif isinstance(value, Tensor) and not value.isfinite().all():
            problems.append(f"{key} has values that are not finite")
    return problems
