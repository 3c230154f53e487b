"""Public checkpoints: written here as the public trainer writes them, read without executing anything."""

from __future__ import annotations

import dataclasses
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student
from reuse_distill.student.checkpoints.public import load_public_checkpoint, parse_list, read_public_config
from reuse_distill.student.config import conv_stack

CONV = "[(6, 10, 5)] + [(5, 1, 1)] + [(5, 3, 2)] * 4 + [(16, 1, 1)] + [(16, 2, 2)] * 2"
DISTILLER = {
    "extractor_mode": "default",
    "conv_feature_layers": CONV,
    "feature_grad_mult": 1.0,
    "conv_bias": False,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "pos_conv_depth": 1,
    "max_positions": 100_000,
    "layer_type": "transformer",
    "encoder_layers": 4,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 4,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "reuse_pattern": "[True, False, True, False]",
    "dropout": 0.1,
    "dropout_input": 0.05,
    "pred_head_final_dim": 12,
}


@pytest.fixture
def reference(small_config, randomised) -> Student:
    """The student that the files describe."""
    return randomised(small_config("tiny", reuse_mode="renormalised", input_dropout=0.05), dtype=torch.float32)


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[..., Path]:
    """The public YAML with ``changes`` to its distiller section; None removes a key."""

    def write(model: object = "armhubert", **changes: object) -> Path:
        section = {key: value for key, value in {**DISTILLER, **changes}.items() if value is not None}
        data = {"teacher": {"teacher_model": "x.pt"}, "train": {"num_epochs": 2}, "distiller": section, "model": model}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
        return tmp_path / "config.yaml"

    return write


@pytest.fixture
def write_checkpoint(tmp_path: Path, reference: Student, monkeypatch) -> Callable[..., Path]:
    """A Lightning file: teacher and student weights, optimiser, a schedule of a library that is gone afterwards."""

    def write(change: Callable[[dict[str, Any]], object] | None = None) -> Path:
        library = types.ModuleType("foreign_schedules")
        exec("class Warmup:\n    def __init__(self): self.steps = 1", library.__dict__)
        state = {f"student_model.{key}": value for key, value in reference.state_dict().items()}
        state["teacher_model.model.mask_emb"] = torch.zeros(3)
        if change is not None:
            change(state)
        data = {"epoch": 1, "state_dict": state, "lr_schedulers": [library.Warmup()], "pytorch-lightning_version": "1"}
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, "foreign_schedules", library)
            torch.save(data, tmp_path / "model.ckpt")
        return tmp_path / "model.ckpt"

    return write


def test_reads_back_what_was_trained(write_checkpoint, write_yaml, reference: Student, noise) -> None:
    student = load_public_checkpoint(write_checkpoint(), write_yaml())
    assert student.config == reference.config
    assert not student.training
    wave = noise(3280, dtype=torch.float32)[None]
    for ours, theirs in zip(student(wave).projections, reference(wave).projections, strict=True):
        assert torch.equal(ours, theirs)


def test_half_precision_weights(write_checkpoint, write_yaml, reference: Student) -> None:
    path = write_checkpoint(lambda state: state.update({k: v.half() for k, v in state.items()}))
    student = load_public_checkpoint(path, write_yaml())
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert torch.equal(student.mask_emb, reference.mask_emb.half().float())


def test_star_drops_its_unused_output_layer(write_checkpoint, write_yaml) -> None:
    def to_star(state: dict[str, Any]) -> None:
        for key in [k for k in state if "proj_head" in k or "student_model.mask_emb" in k]:
            del state[key]
        state["student_model.final_proj.weight"] = torch.zeros(5, 16)
        state["student_model.final_proj.bias"] = torch.zeros(5)

    student = load_public_checkpoint(write_checkpoint(to_star), write_yaml("starhubert", pred_head_final_dim=None))
    assert (student.proj_head, student.mask_emb) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("student_model.mask_emb"), "missing mask_emb"),
        (lambda s: s.update({"student_model.surprise": torch.zeros(1)}), "unknown surprise"),
        (lambda s: s.update({"student_model.mask_emb": torch.zeros(15)}), "mask_emb has shape (15,), the config"),
        (lambda s: s.update({"student_model.mask_emb": [1.0]}), "mask_emb is not a tensor"),
        (lambda s: s["student_model.mask_emb"].__setitem__(3, float("nan")), "mask_emb has values that are not finite"),
        (lambda s: s.update({"discriminator.w": torch.zeros(1)}), "unknown keys discriminator.w"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("student")], "no key starts with 'student_model.'"),
    ],
)
def test_weights_that_do_not_fit(change, message: str, write_checkpoint, write_yaml) -> None:
    with pytest.raises(RdError) as caught:
        load_public_checkpoint(write_checkpoint(change), write_yaml())
    assert caught.value.message.startswith(str(write_yaml().parent / "model.ckpt"))
    assert message in caught.value.message


def test_the_yaml_of_another_size(write_checkpoint, write_yaml) -> None:
    with pytest.raises(RdError) as caught:
        load_public_checkpoint(write_checkpoint(), write_yaml(encoder_ffn_embed_dim=32))
    assert "encoder.layers.0.fc1.weight has shape (24, 16), the configuration says (32, 16)" in caught.value.message


def test_many_problems_are_counted(write_checkpoint, write_yaml) -> None:
    with pytest.raises(RdError, match=r"missing .* and \d+ more"):
        load_public_checkpoint(
            write_checkpoint(lambda s: [s.pop(k) for k in list(s) if ".encoder." in k]), write_yaml()
        )


def test_a_file_without_weights(tmp_path: Path, write_yaml) -> None:
    for data in ({"model": {}}, [1, 2], {"state_dict": 3}):
        torch.save(data, tmp_path / "a.ckpt")
        with pytest.raises(RdError, match="there is no 'state_dict'"):
            load_public_checkpoint(tmp_path / "a.ckpt", write_yaml())


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_checkpoint(keep: float, write_checkpoint, write_yaml) -> None:
    path = write_checkpoint()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(RdError, match="cut short") as caught:
        load_public_checkpoint(path, write_yaml())
    assert "again" in caught.value.hint


def test_the_files_in_the_wrong_order(write_checkpoint, write_yaml) -> None:
    with pytest.raises(RdError, match="not a readable YAML file"):
        load_public_checkpoint(write_yaml(), write_checkpoint())


HOSTILE = [
    "__import__('pathlib').Path({marker!r}).touch() or [(6, 10, 5)]",
    "[__import__('pathlib').Path({marker!r}).touch()]",
    "[(lambda: open({marker!r}, 'w'))()]",
    "[(6, 10, 5) for _ in [open({marker!r}, 'w')]]",
    "[().__class__.__base__.__subclasses__()]",
    "[f\"{{open({marker!r}, 'w')}}\"]",
    "[x := 1]",
    "[(os.system('true'), 10, 5)]",
    "layers",
    "[*[(6, 10, 5)]]",
    "[(6, 10, 5)] * 10 ** 10",
    "[(6, 10, 5)] * 1000000000000",
    "[[(6, 10, 5)] * 200] * 200 * 200",
    "[(6, 10, 5)] * True",
    "[(6, 10, 5)][0]",
    "[1.5]; 3",
    "[",
    "",
    "(" * 10_000,
    "[" + "1+" * 20_000 + "1]",
    "'text'",
    "5",
]


@pytest.mark.parametrize("expression", HOSTILE, ids=range(len(HOSTILE)))
def test_code_in_the_yaml_is_not_evaluated(expression: str, tmp_path: Path, write_yaml) -> None:
    marker = tmp_path / "executed"
    expression = expression.format(marker=str(marker)) if "{" in expression else expression
    for key in ("conv_feature_layers", "reuse_pattern"):
        before = time.monotonic()
        with pytest.raises(RdError, match=f"config.yaml: distiller: {key} .* is not a") as caught:
            read_public_config(write_yaml(**{key: expression}))
        assert time.monotonic() - before < 20, "a huge multiplication is refused, not carried out"
        assert len(caught.value.message) < 400
    assert not marker.exists()


def test_lists_are_read_as_python_writes_them() -> None:
    assert parse_list("[(1, 2)] + [(3, 4)] * 2", where="x") == [(1, 2), (3, 4), (3, 4)]
    assert parse_list("([True] + [False]) * 2", where="x") == [True, False, True, False]
    assert parse_list("[]", where="x") == []
    assert tuple(parse_list(CONV, where="x")) == conv_stack(6, 5, 16)


@pytest.mark.parametrize("expression", ["[1] * 257", "[1] * 100000", "[[1] * 200] * 200 * 2", "[1] * 200 * 200"])
def test_a_multiplication_is_not_carried_out_beyond_any_real_stack(expression: str) -> None:
    with pytest.raises(RdError, match=r"x '.*' is not a plain list"):
        parse_list(expression, where="x")
    assert len(parse_list("[1] * 256", where="x")) == 256


def test_a_list_that_is_a_list_already(write_yaml) -> None:
    with pytest.raises(RdError, match="conv_feature_layers is list, a list written as text is needed"):
        read_public_config(write_yaml(conv_feature_layers=[[6, 10, 5]]))


BAD_SETTINGS = [
    ({"encoder_layer": 4}, "unknown key 'encoder_layer'", "did you mean 'encoder_layers'?"),
    ({"extractor_mode": "layer_norm"}, "extractor_mode is 'layer_norm', only 'default' is supported", None),
    ({"layer_norm_first": True}, "layer_norm_first is True, only False is supported", None),
    ({"attn_type": "conformer"}, "attn_type is 'conformer', only '' is supported", None),
    ({"enable_tr_layer": True}, "enable_tr_layer is True", None),
    ({"encoder_embed_dim": None}, "encoder_embed_dim is None, a positive whole number is needed", None),
    ({"encoder_layers": "twelve"}, "encoder_layers is 'twelve', a positive whole number", None),
    ({"encoder_layers": True}, "encoder_layers is True, a positive whole number", None),
    ({"encoder_attention_heads": 0}, "encoder_attention_heads is 0, a positive whole number", None),
    ({"encoder_embed_dim": 10**12}, "encoder_embed_dim is 1000000000000, a positive whole number", None),
    ({"encoder_attention_heads": 3}, "width 16 is not a multiple of the 3 heads", None),
    ({"pred_head_final_dim": None}, "pred_head_final_dim is None", None),
    ({"dropout": "much"}, "dropout is 'much', a number from 0 to 1 is needed", None),
    ({"dropout_input": 2}, "dropout_input is 2, a number from 0 to 1 is needed", None),
    ({"reuse_pattern": "[True, False]"}, "is not a list of 4 True or False", None),
    ({"reuse_pattern": "[1, 0, 1, 0]"}, "is not a list of 4 True or False", None),
    ({"reuse_pattern": "[False, False, True, False]"}, "reuse_layers [1] are outside 2..4", "always computes its own"),
    ({"conv_feature_layers": None}, "conv_feature_layers is NoneType", None),
    ({"conv_feature_layers": "[(6, 10)]"}, "is not a list of (channels, kernel, stride)", None),
    ({"conv_feature_layers": "[(6, 10, True)]"}, "is not a list of (channels, kernel, stride)", None),
    ({"conv_feature_layers": "[(6, 10, 5)]"}, "stride 5 and receptive field 10 samples", "conv_stack"),
    ({"conv_feature_layers": "[(0, 10, 5)]"}, "has a value outside 1..", None),
]


@pytest.mark.parametrize(("changes", "message", "hint"), BAD_SETTINGS)
def test_bad_settings(changes: dict, message: str, hint: str | None, write_yaml) -> None:
    with pytest.raises(RdError) as caught:
        read_public_config(write_yaml(**changes))
    assert caught.value.message.startswith(str(write_yaml()))
    assert message in caught.value.message
    assert hint is None or hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no section 'distiller'"),
        ("distiller: 3", "there is no section 'distiller'"),
        ("- a\n- b", "there is no section 'distiller'"),
        ("a: [1, 2", "not a readable YAML file"),
        ("\x00\x01", "not a readable YAML file"),
        ("when: 2001-99-99", "not a readable YAML file"),
        ("a: " + "[" * 5000, "not a readable YAML file"),
        ("distiller: !!python/object/apply:os.system ['true']", "not a readable YAML file"),
        ("distiller: !!python/name:os.system", "not a readable YAML file"),
    ],
)
def test_files_that_are_no_configuration(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RdError, match=message):
        read_public_config(tmp_path / "a.yaml")


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xfd")
    for file in (tmp_path / "a.yaml", tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(RdError, match="not a readable YAML file"):
            read_public_config(file)


@pytest.mark.parametrize(
    "where",
    ["model: *i", "model: armhubert\ndistiller: {conv_pos: *i}", "model: armhubert\ndistiller: {extractor_mode: *i}"],
)
def test_aliases_that_stand_for_gigabytes(where: str, tmp_path: Path) -> None:
    """Nine lists of nine: printing one of them would take 9^9 words."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    distiller = "" if "distiller" in where else "distiller: {}\n"
    (tmp_path / "a.yaml").write_text("\n".join(lines) + f"\n{distiller}{where}\n")
    with pytest.raises(RdError) as caught:
        read_public_config(tmp_path / "a.yaml")
    assert len(caught.value.message) < 1000


def test_unknown_model(write_yaml) -> None:
    with pytest.raises(RdError, match="model 'armhubrt' is unknown") as caught:
        read_public_config(write_yaml("armhubrt"))
    assert "armhubert" in caught.value.hint


@pytest.mark.parametrize(("kernel", "lookahead"), [(128, 63), (16, 7), (7, 3), (1, 0)])
def test_lookahead_of_the_public_convolution(kernel: int, lookahead: int, write_yaml) -> None:
    """Padding K // 2 on both sides, the last frame dropped where K is even."""
    assert read_public_config(write_yaml(conv_pos=kernel)).lookahead_frames == lookahead


def test_families(write_yaml) -> None:
    arm, mask = read_public_config(write_yaml()), read_public_config(write_yaml("maskhubert", reuse_pattern=None))
    star = read_public_config(write_yaml("starhubert", reuse_pattern=None, pred_head_final_dim=None))
    assert (arm.reuse_layers, arm.reuse_mode) == ((2, 4), "renormalised")
    assert mask == dataclasses.replace(arm, reuse_layers=())
    assert star == dataclasses.replace(mask, head_width=None, mask_embedding=False)


def test_fithubert_is_read_with_its_reduction(tmp_path: Path, write_yaml, randomised, small_config) -> None:
    """The public list of layers begins with the reduction; the published model has an upsampler that it never uses."""
    changes = {"reuse_layers": (), "time_reduction": 2, "mask_embedding": False, "input_dropout": 0.05}
    reference = randomised(small_config("tiny", **changes), dtype=torch.float32)
    state = {}
    for key, value in reference.state_dict().items():
        parts = key.split(".")
        if key.startswith("encoder.layers."):
            parts[2] = str(int(parts[2]) + 1)
        state["student_model." + ".".join(parts).replace("encoder.reduction.", "encoder.layers.0.")] = value
    state["student_model.upsampler.weight"], state["student_model.upsampler.bias"] = (
        torch.zeros(16, 16, 2),
        torch.zeros(16),
    )
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "fit.ckpt")
    settings = {"enable_tr_layer": True, "tr_layer_type": "conv1d", "tr_layer_index": 0, "tr_reduce_factor": 2}
    path = write_yaml(reuse_pattern=None, **settings, n_mels=0, enable_log_mel=False)
    data = yaml.safe_load(path.read_text())
    del data["model"]  # its files name no family
    path.write_text(yaml.safe_dump(data))
    student = load_public_checkpoint(tmp_path / "fit.ckpt", path)
    wave = 0.1 * torch.randn(1, 7_000)
    for ours, theirs in zip(student(wave).projections, reference.eval()(wave).projections, strict=True):
        assert torch.equal(ours, theirs)
    for key, value in (("tr_layer_index", 1), ("tr_layer_type", "fc1")):
        path.write_text(yaml.safe_dump({"distiller": {**data["distiller"], key: value}}))
        with pytest.raises(RdError, match=f"distiller: {key} is {value!r}, only"):
            read_public_config(path)
