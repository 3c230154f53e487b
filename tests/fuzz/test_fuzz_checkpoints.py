"""Mutated checkpoints, configurations and weights: read or refused with RdError; no hang, no flood of memory.

``RD_FUZZ_N`` files are tried (400 by default).
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import time
import zipfile
from pathlib import Path

import torch
import yaml
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint, preset, save_checkpoint
from reuse_distill.student.checkpoints.public import load_public_checkpoint
from reuse_distill.student.config import conv_stack

COUNT = int(os.environ.get("RD_FUZZ_N", "400"))
LONGEST_S, MOST_BYTES = 5.0, 500 << 20  # of the processor: machines that build are shared
SHAPE = preset(
    "armhubert-s",
    conv_layers=conv_stack(4, 4, 8),
    width=8,
    ffn_width=8,
    heads=2,
    layers=2,
    reuse_layers=(2,),
    reuse_mode="renormalised",
    position_kernel=4,
    position_groups=2,
    lookahead_frames=1,
    head_width=8,
)
CONFIG = {
    "model": "armhubert",
    "distiller": {
        "conv_feature_layers": "[(4, 10, 5), (4, 1, 1)] + [(4, 3, 2)] * 4 + [(8, 1, 1)] + [(8, 2, 2)] * 2",
        "encoder_layers": 2,
        "encoder_embed_dim": 8,
        "encoder_ffn_embed_dim": 8,
        "encoder_attention_heads": 2,
        "conv_pos": 4,
        "conv_pos_groups": 2,
        "pred_head_final_dim": 8,
        "reuse_pattern": "[True, False]",
        "layerwise_proj": True,
    },
}
# Opcodes that build, share, repeat and call, in fragments that are valid by themselves.
FRAGMENTS = [
    b"2", b"\x86", b"\x85", b"\x87", b"(", b"t", b"l", b"d", b"]", b"}", b")", b"a", b"e", b"s", b"u", b"R", b"Q", b"b",
    b"q\x01", b"h\x01", b"\x94", b"\x8f", b"\x90", b"\x91", b"0", b"1", b"N", b"K\x05", b"J\xff\xff\xff\x7f", b"\x81",
    b"\x8a\x09" + bytes([255] * 8) + b"\x7f", b"ccollections\nOrderedDict\n", b"ctorch\nSize\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"cfar\naway\n", b"X\x07\x00\x00\x00storage", b"2\x86" * 50, b"\x93", b".",
]  # fmt: skip
VALUES = [
    "",
    "0",
    "-1",
    "1000000",
    "true",
    "null",
    "!!int ''",
    "*a",
    "&a [1]",
    "{<<: *a}",
    "[" * 50,
    "9" * 5000,
    "1e400",
]


def checkpoint(folder: Path) -> tuple[bytes, bytes]:
    """A small public checkpoint and its configuration."""
    torch.manual_seed(0)
    state = {f"student_model.{name}": value for name, value in Student(SHAPE).state_dict().items()}
    stream = io.BytesIO()
    torch.save({"state_dict": state, "optimizer_states": [{"state": {0: torch.zeros(3)}}]}, stream)
    return stream.getvalue(), yaml.safe_dump(CONFIG).encode()


def rebuilt(data: bytes, change: object) -> bytes:
    """The archive with its pickle changed, so that the checksums of the records are right."""
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        for name in source.namelist():
            record = source.read(name)
            made.writestr(name, change(record) if name.endswith("data.pkl") else record)  # type: ignore[operator]
    return target.getvalue()


def with_fragments(record: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        at, cut = rng.randrange(len(record)), rng.choice([0, 0, 1, 2, 30])
        record = record[:at] + rng.choice(FRAGMENTS) * rng.choice([1, 1, 2, 60]) + record[at + cut :]
    return record


def with_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.2 else changed)


def with_values(text: bytes, rng: random.Random) -> bytes:
    lines = text.decode().splitlines()
    at = rng.randrange(len(lines))
    lines[at] = f"{lines[at].split(':')[0]}: {rng.choice(VALUES)}"
    return "\n".join(lines).encode()


def test_any_checkpoint_is_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(f"checkpoints {COUNT}")
    data, config = checkpoint(tmp_path)
    files = tmp_path / "a.ckpt", tmp_path / "a.yaml"
    folder = save_checkpoint(tmp_path / "folder", Student(SHAPE))
    plain = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    read = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(COUNT):
        began = time.process_time()
        try:
            if number % 4 == 3:  # a folder
                for name, content in plain.items():
                    (folder / name).write_bytes(with_bytes(content, rng) if rng.random() < 0.5 else content)
                load_checkpoint(folder)
            else:
                archive = (
                    rebuilt(data, lambda record: with_fragments(record, rng)) if number % 4 else with_bytes(data, rng)
                )
                files[0].write_bytes(archive if rng.random() < 0.8 else data)
                files[1].write_bytes(with_values(config, rng) if rng.random() < 0.3 else config)
                load_public_checkpoint(*files)
            read += 1
        except RdError as error:
            assert len(error.message) < 5000, error.message[:500]
        assert time.process_time() - began < LONGEST_S, number
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MOST_BYTES
    assert 0 < read < COUNT


def test_the_base_is_read(tmp_path: Path) -> None:
    data, config = checkpoint(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(data)
    (tmp_path / "a.yaml").write_bytes(config)
    student = load_public_checkpoint(tmp_path / "a.ckpt", tmp_path / "a.yaml")
    assert json.loads(json.dumps(student.config.layers)) == 2
