"""Reading ``torch.save`` files: hostile ones do nothing, damaged ones are errors, honest ones come out right."""

from __future__ import annotations

import argparse
import copyreg
import pickle
import random
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.checkpoints import unpickle
from reuse_distill.student.checkpoints.unpickle import Inert, read_torch_file

HOSTILE_MODULE = """
from pathlib import Path

Path({marker!r}).touch()  # importing is already an execution

class Thing:
    def __new__(cls, path=None):
        if path is not None:
            Path(path).touch()
        return super().__new__(cls)

    def __setstate__(self, path):
        Path(path).touch()
"""
EXTENSION = 0x7D


def archive(path: Path, record: bytes, *, compression: int = zipfile.ZIP_STORED, **others: bytes) -> Path:
    """A file laid out as torch.save does, around a pickle of our own."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", record)
        for name, data in others.items():
            file.writestr(f"archive/{name}", data)
    return path


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + len(data).to_bytes(4, "little") + data


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def payloads(marker: Path) -> dict[str, bytes]:
    """Pickles that make ``marker`` when an ordinary unpickler reads them."""
    touch, make = text(f"touch {marker}"), text(f"__import__('pathlib').Path({str(marker)!r}).touch()")
    where = text(str(marker))
    imported = call("builtins", "__import__", text("os"))
    return {
        "os.system": b"\x80\x02" + call("os", "system", touch) + b".",
        "eval": b"\x80\x02" + call("builtins", "eval", make) + b".",
        "exec, old name": b"\x80\x02" + call("__builtin__", "exec", make) + b".",
        "nested": b"\x80\x02}" + text("state_dict") + b"]}" + text("w") + call("os", "system", touch) + b"sas.",
        "as a key": b"\x80\x02}" + call("os", "system", touch) + b"Ns.",
        "getattr": b"\x80\x02" + call("builtins", "getattr", imported, text("system")) + touch + b"\x85R.",
        "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + touch + b"\x85R.",
        "inst": b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + touch + b"o.",
        "extension": b"\x80\x02\x82" + bytes([EXTENSION]) + touch + b"\x85R.",
        "import": b"\x80\x02chostile_for_test\nThing\n.",
        "newobj": b"\x80\x02chostile_for_test\nThing\n" + where + b"\x85\x81.",
        "newobj_ex": b"\x80\x04chostile_for_test\nThing\n)}" + text("path") + where + b"s\x92.",
        "build": b"\x80\x02chostile_for_test\nThing\n)\x81" + where + b"b.",
    }


@pytest.fixture
def marker(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A file that appears as soon as anything of a payload runs."""
    marker = tmp_path / "executed"
    (tmp_path / "hostile_for_test.py").write_text(HOSTILE_MODULE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    copyreg.add_extension("os", "system", EXTENSION)
    yield marker
    copyreg.remove_extension("os", "system", EXTENSION)
    copyreg._extension_cache.pop(EXTENSION, None)  # type: ignore[attr-defined]
    sys.modules.pop("hostile_for_test", None)


@pytest.mark.parametrize("name", payloads(Path("x")))
def test_a_payload_is_not_executed(name: str, marker: Path, tmp_path: Path) -> None:
    record = payloads(marker)[name]
    pickle.loads(record)
    assert marker.exists(), "the payload is a working one: an ordinary unpickler executes it"
    marker.unlink()
    sys.modules.pop("hostile_for_test", None)
    read_torch_file(archive(tmp_path / "harmless.ckpt", b"\x80\x02N."))  # zipfile imports codecs of its own
    modules = set(sys.modules)
    try:
        read_torch_file(archive(tmp_path / "hostile.ckpt", record))
    except RdError as error:
        assert "damaged checkpoint" in error.message
    assert not marker.exists()
    assert set(sys.modules) == modules, "and nothing was imported"


def test_names_become_inert_records(tmp_path: Path) -> None:
    record = b"\x80\x02}" + text("optimizer") + call("os", "system", text("true")) + b"s."
    data = read_torch_file(archive(tmp_path / "a.ckpt", record))
    assert repr(data["optimizer"]) == "<inert os.system>"
    assert data["optimizer"].args == ("true",)


class Reduced:
    """Pickles as whatever it is given: (function, arguments[, state])."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def rebuilt(count: int, offset: int, size: Any, stride: Any, *state: Any) -> Reduced:
    """A tensor of ``count`` stored values whose size, stride and offset may lie."""
    storage = torch.arange(float(count))._typed_storage()
    return Reduced(torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, OrderedDict()), *state)


def saved(path: Path, data: Any) -> Path:
    torch.save(data, path)
    return path


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (9,), (1,)),
        (5, (4,), (1,)),
        (0, (3, 3), (3, 2)),
        (-1, (2,), (1,)),
        (7, (4,), (-1,)),
        (0, (-4,), (1,)),
        (0, (2**62,), (1,)),
        (0, (2**40, 2**40), (1, 1)),
        (0, (4,), (1, 1)),
    ],
)
def test_a_tensor_beyond_its_storage(offset, size, stride, tmp_path: Path) -> None:
    with pytest.raises(RdError, match=r"does not fit its storage"):
        read_torch_file(saved(tmp_path / "a.ckpt", rebuilt(8, offset, size, stride)))


@pytest.mark.parametrize("size", [(2**70,), ("4",), (None,), 4, None])
def test_sizes_that_are_no_sizes(size, tmp_path: Path) -> None:
    with pytest.raises(RdError):
        read_torch_file(saved(tmp_path / "a.ckpt", rebuilt(8, 0, size, (1,))))


def test_an_expanded_tensor_reserves_no_memory(tmp_path: Path) -> None:
    """A few bytes of pickle can claim a terabyte, which would be taken by whoever copies it."""
    tensor = read_torch_file(saved(tmp_path / "a.ckpt", rebuilt(8, 0, (2**16,), (0,))))
    assert tensor.untyped_storage().nbytes() == 32
    with pytest.raises(RdError, match="does not fit its storage of 8 values"):
        read_torch_file(saved(tmp_path / "b.ckpt", rebuilt(8, 0, (2**38,), (0,))))


def test_attributes_of_tensors_are_not_set(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="it sets attributes of Tensor"):
        read_torch_file(saved(tmp_path / "a.ckpt", rebuilt(8, 0, (8,), (1,), {"requires_grad": True})))


@pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_parameter"])
def test_the_reader_cannot_be_changed_by_a_file(name: str, tmp_path: Path) -> None:
    change = b"\x80\x02ctorch._utils\n" + name.encode() + b"\nN}" + text("__defaults__") + b"Ns\x86b."
    with pytest.raises(RdError, match="it sets attributes of function"):
        read_torch_file(archive(tmp_path / "a.ckpt", change))
    record = b"\x80\x02cos\nsystem\nN}" + text("args") + b"K\x01s\x86b."
    with pytest.raises(RdError, match="it sets attributes of type"):
        read_torch_file(archive(tmp_path / "b.ckpt", record))
    assert unpickle._tensor.__defaults__ is None


def test_missing_and_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(RdError, match=r"nowhere\.ckpt: no such checkpoint file"):
        read_torch_file(tmp_path / "nowhere.ckpt")
    with pytest.raises(RdError, match="no such checkpoint file"):
        read_torch_file(tmp_path)
    (tmp_path / "a.ckpt").write_text("this is text")
    with pytest.raises(RdError, match=r"not a torch checkpoint archive, or cut short \(12 bytes\)"):
        read_torch_file(tmp_path / "a.ckpt")


def test_the_format_before_torch_1_6(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(RdError, match="not a torch checkpoint archive") as caught:
        read_torch_file(tmp_path / "a.pt")
    assert "older than torch 1.6" in caught.value.hint


def test_truncated_anywhere(tmp_path: Path) -> None:
    data = saved(tmp_path / "a.ckpt", {"state_dict": {"w": torch.arange(100.0)}}).read_bytes()
    for length in range(0, len(data), 37):
        (tmp_path / "a.ckpt").write_bytes(data[:length])
        with pytest.raises(RdError):
            read_torch_file(tmp_path / "a.ckpt")


def test_a_flipped_bit_in_the_weights(tmp_path: Path) -> None:
    data = bytearray(saved(tmp_path / "a.ckpt", {"w": torch.full((100,), 7.0)}).read_bytes())
    data[data.index(torch.full((100,), 7.0).numpy().tobytes()) + 50] ^= 1
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(RdError):
        read_torch_file(tmp_path / "a.ckpt")


def record_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as file:
        (name,) = [name for name in file.namelist() if name.endswith("data.pkl")]
        return file.read(name)


def test_a_record_cut_or_changed_anywhere(tmp_path: Path) -> None:
    """Every prefix, and 600 single-byte changes: an error of ours or a result, nothing else."""
    honest = {"state_dict": OrderedDict(a=torch.zeros(3), b=torch.ones(2, 2)), "epoch": 3, "names": ["x", (1.5, None)]}
    record = record_of(saved(tmp_path / "a.ckpt", honest))
    storages = {"data/0": bytes(12), "data/1": bytes(16)}
    for length in range(len(record)):
        with pytest.raises(RdError):
            read_torch_file(archive(tmp_path / "b.ckpt", record[:length], **storages))
    generator, outcomes = random.Random(0), set()
    for _ in range(600):
        changed = bytearray(record)
        changed[generator.randrange(len(record))] = generator.randrange(256)
        try:
            read_torch_file(archive(tmp_path / "b.ckpt", bytes(changed), **storages))
            outcomes.add("read")
        except RdError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_storage_of_another_size(tmp_path: Path) -> None:
    record = record_of(saved(tmp_path / "a.ckpt", torch.zeros(3)))
    for data in (b"", bytes(8), bytes(16)):
        with pytest.raises(RdError, match=rf"storage 0 has {len(data)} bytes, 3 values of torch.float32 need 12"):
            read_torch_file(archive(tmp_path / "b.ckpt", record, **{"data/0": data}))
    with pytest.raises(RdError, match="damaged checkpoint"):
        read_torch_file(archive(tmp_path / "b.ckpt", record))


def test_strange_archives(tmp_path: Path) -> None:
    record = record_of(saved(tmp_path / "a.ckpt", {"a": 1}))
    with pytest.raises(RdError, match=r"2 data\.pkl records in the archive, a torch checkpoint has 1"):
        read_torch_file(archive(tmp_path / "b.ckpt", record, **{"inner/data.pkl": record}))
    with pytest.raises(RdError, match="big-endian"):
        read_torch_file(archive(tmp_path / "b.ckpt", record, byteorder=b"big"))
    with pytest.raises(RdError, match="compressed"):
        read_torch_file(archive(tmp_path / "b.ckpt", record + bytes(10**7), compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "b.ckpt", "w") as file:
        file.writestr("word/document.xml", "<xml/>")
    with pytest.raises(RdError, match=r"0 data\.pkl records"):
        read_torch_file(tmp_path / "b.ckpt")


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_number(dtype: torch.dtype, tmp_path: Path) -> None:
    values = (torch.arange(12).reshape(3, 4) % 5).to(dtype)
    ours = read_torch_file(saved(tmp_path / "a.ckpt", values))
    assert ours.dtype == dtype
    assert torch.equal(ours, values)


def test_a_kind_of_number_that_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="unknown storage"):
        read_torch_file(saved(tmp_path / "a.ckpt", torch.zeros(2, dtype=torch.complex64)))


def test_views_parameters_and_empty_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    honest = {
        "slice": base[1:3, 2:5],
        "transposed": base.t(),
        "row": base[2],
        "every second": base[:, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(base.clone()),
        "frozen": torch.nn.Parameter(base.clone(), requires_grad=False),
    }
    ours = read_torch_file(saved(tmp_path / "a.ckpt", honest))
    assert set(ours) == set(honest)
    for key, value in honest.items():
        assert torch.equal(ours[key], value.detach()), key
        assert ours[key].shape == value.shape


def test_shared_storages_stay_shared(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    ours = read_torch_file(saved(tmp_path / "a.ckpt", {"whole": base, "tail": base[3:], "other": base.clone()}))
    ours["whole"][4] = 100
    assert ours["tail"].tolist() == [3, 100, 5]
    assert ours["other"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_training_checkpoint_with_classes_that_nobody_has(tmp_path: Path, monkeypatch) -> None:
    """As public speech checkpoints are: optimiser, schedule of a foreign library, namespace, containers."""
    library = types.ModuleType("foreign_schedules")
    exec("class Warmup:\n    def __init__(self): self.steps = [1, 2]\n    def step(self): pass", library.__dict__)
    monkeypatch.setitem(sys.modules, "foreign_schedules", library)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    honest = {
        "state_dict": module.state_dict(),
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [library.Warmup()],
        "args": argparse.Namespace(lr=0.1, names={"a", "b"}),
        "shape": torch.Size([2, 3]),
        "epoch": 7,
        "callbacks": {("early", 1): None, "best": float("inf")},
    }
    path = saved(tmp_path / "a.ckpt", honest)
    monkeypatch.delitem(sys.modules, "foreign_schedules")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    ours = read_torch_file(path)
    for key, value in module.state_dict().items():
        assert torch.equal(ours["state_dict"][key], value)
    assert torch.equal(ours["optimizer_states"][0]["state"][0]["exp_avg"], optimiser.state[module[0].weight]["exp_avg"])
    assert ours["optimizer_states"][0]["param_groups"][0]["betas"] == (0.9, 0.999)
    (schedule,) = ours["lr_schedulers"]
    assert isinstance(schedule, Inert)
    assert (repr(schedule), schedule.state) == ("<inert foreign_schedules.Warmup>", {"steps": [1, 2]})
    assert repr(ours["args"]) == "<inert argparse.Namespace>"
    assert ours["args"].state["lr"] == 0.1
    assert tuple(ours["shape"]) == (2, 3)
    assert (ours["epoch"], ours["callbacks"]) == (7, honest["callbacks"])
    assert "foreign_schedules" not in sys.modules
