"""Small files whose reading took hours or gigabytes: work and memory of a reader are bounded by its input's size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, preset
from reuse_distill.student.checkpoints.public import build_strictly, read_public_config
from reuse_distill.student.checkpoints.unpickle import read_torch_file

SHARED = b"]" + b"".join(b"q%c]h%cah%ca" % (i, i, i) for i in range(60)) + b"q\xf0"  # a list in a list, each twice


def archive(folder: Path, record: bytes, data: bytes = b"", *, storages: int = 1) -> Path:
    file = folder / "checkpoint.ckpt"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a/data.pkl", record)
        for number in range(storages):
            made.writestr(f"a/data/{number}", data)
    return file


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a\x09" + v.to_bytes(9, "little", signed=True) for v in values) + b"t"


def tensor(size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers(*size) + numbers(*stride)
    return call + b"\x89ccollections\nOrderedDict\n)RtR"


HOSTILE = {
    "a storage's name that is shared lists": SHARED + b"0(h\xf0h\xf0h\xf0h\xf0h\xf0tQ.",
    "a key of tuples of tuples": b"})" + b"2\x86" * 60 + b"K\x01s.",
    "items of tuples of tuples": b"(}" + b")" + b"2\x86" * 60 + b"K\x01u.",
    "a dictionary of tuples of tuples": b"()" + b"2\x86" * 60 + b"K\x01d.",
    "a frozen set of tuples of tuples": b"\x80\x04()" + b"2\x86" * 60 + b"\x91.",
    "a set of tuples of tuples": b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90.",
    "an ordered dictionary made of pairs": b"ccollections\nOrderedDict\n(]" + b")" + b"2\x86" * 60 + b"K\x01\x86atR.",
    "sizes that are shared lists": SHARED + b"0ctorch\nSize\n(h\xf0tR.",
    "a tensor of repeated values": b"\x80\x02" + tensor((1 << 20, 1 << 20), (0, 0)) + b".",
    "sizes that no machine has": b"\x80\x02" + tensor((1 << 62, 1 << 62), (0, 0)) + b".",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_pickle_is_refused_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(RdError):
        read_torch_file(archive(tmp_path, HOSTILE[name], bytes(16)))


def test_calls_keep_no_copies_of_a_long_list(tmp_path: Path) -> None:
    """2,000 calls with the same 5,000 arguments: 80 MB of copies from 20 kB."""
    record = b"\x80\x02(" + b"N" * 5000 + b"tq\x01cfar\naway\nq\x02]" + b"h\x02h\x01Ra" * 2000 + b"."
    data = read_torch_file(archive(tmp_path, record))
    assert len(data) == 2000
    assert {record.args for record in data} == {()}


def test_classes_are_counted(tmp_path: Path) -> None:
    record = b"]" + b"".join(b"cm\n%d\na" % number for number in range(10_000)) + b"."
    with pytest.raises(RdError, match="more than 4096 classes"):
        read_torch_file(archive(tmp_path, record))


def test_many_views_of_one_storage(tmp_path: Path) -> None:
    record = b"\x80\x02]" + (tensor((1 << 16,), (0,)) + b"a") * 20 + b"."
    with pytest.raises(RdError, match="tensors of 1310720 values in all are made of 4 stored values"):
        read_torch_file(archive(tmp_path, record, bytes(16)))


def test_weights_that_share_values_are_not_copied_a_hundred_times() -> None:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Student(preset("armhubert-s")).state_dict().items()}
    one = torch.zeros(1)
    with pytest.raises(RdError, match="are made of 4 stored bytes"):
        build_strictly(preset("armhubert-s"), {name: one.expand(shape) for name, shape in shapes.items()}, where="here")


def test_more_layers_than_parameters_are_not_built() -> None:
    with pytest.raises(RdError, match="90000 layers, the checkpoint has 1 parameters in all"):
        build_strictly(preset("tiny", layers=90_000), {"x": torch.zeros(1)}, where="here")


YAML = {
    "merged keys": "a: &a {k: v}\n"
    + "".join(
        f"{c}: &{c} {{<<: [{','.join(['*' + p] * 9)}]}}\n" for p, c in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    + "distiller: *k\n",
    "no number": "distiller: !!int ''\n",
    "no truth value": "distiller: !!bool zz\n",
    "no date": "distiller: 2001-99-99\n",
    "a long file": "distiller: {}\n" + "#" * 100_000,
    "nested": "distiller: " + "[" * 5000,
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_no_plain_configuration(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(YAML[name], encoding="utf-8")
    with pytest.raises(RdError, match="not a readable YAML file"):
        read_public_config(file)


def test_plain_checkpoints_are_read_as_before(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    data = {"state_dict": {"a": weight, "tied": weight, "view": weight.T}, "sizes": {(1, 2): [3]}, 3: None}
    torch.save(data, tmp_path / "plain.ckpt")
    ours = read_torch_file(tmp_path / "plain.ckpt")
    assert torch.equal(ours["state_dict"]["view"], weight.T)
    assert ours["state_dict"]["a"].data_ptr() == ours["state_dict"]["tied"].data_ptr()
    assert ours["sizes"] == {(1, 2): [3]}
    assert ours[3] is None
