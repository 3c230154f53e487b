"""runtime/cli/writers.py: exact numbers, and files that are whole or not there."""

import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reuse_distill.runtime.cli.writers import JsonlWriter, open_writer, whole_file
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.framing import Frames

FULL = Path("/dev/full")
EMPTY = np.zeros((0, 3), np.float32)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


@given(hnp.arrays(np.float32, (4, 3), elements=FLOATS), st.integers(0, 1 << 40))
def test_jsonl_gives_back_the_same_floats(features, index):
    file = io.BytesIO()
    JsonlWriter(file).write(Frames(index, features))
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["index"] for line in lines] == list(range(index, index + 4))
    assert [line["start_s"] for line in lines] == pytest.approx([0.02 * (index + i) for i in range(4)])
    assert np.array_equal(np.float32([line["features"] for line in lines]), features)


def test_jsonl_of_several_layers():
    features, file = np.arange(12, dtype=np.float32).reshape(2, 2, 3), io.BytesIO()
    JsonlWriter(file).write(Frames(7, features))
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert np.array_equal(np.float32([line["features"] for line in lines]), features.transpose(1, 0, 2))


def test_npy(tmp_path):
    parts = [Frames(0, np.ones((2, 3), np.float32)), Frames(2, np.full((5, 3), 2.0, np.float32))]
    with open_writer(str(tmp_path / "a.npy"), empty=EMPTY) as writer:
        for part in parts:
            writer.write(part)
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == np.float32
    assert np.array_equal(found, np.concatenate([p.features for p in parts]))


def test_no_frames_are_an_empty_array(tmp_path):
    with open_writer(str(tmp_path / "a.npy"), empty=np.zeros((2, 0, 3), np.float32)):
        pass
    assert np.load(tmp_path / "a.npy").shape == (2, 0, 3)


@pytest.mark.parametrize("name", ["a.npy", "a.jsonl"])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_an_error_leaves_nothing_half_written(tmp_path, name, before):
    path = tmp_path / name
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(RdError, match="broken"), open_writer(str(path), empty=EMPTY) as writer:
        writer.write(Frames(0, np.ones((2, 3), np.float32)))
        raise RdError("broken")
    assert list(tmp_path.iterdir()) == ([path] if before is not None else [])
    assert before is None or path.read_bytes() == before


def test_a_full_disk_is_told(tmp_path):
    with (
        pytest.raises(RdError, match=r"could not be written: No space left"),
        open_writer(str(tmp_path / "a.npy"), empty=EMPTY),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_device_that_is_full_is_told():
    with pytest.raises(RdError, match=r"could not be written: No space left"), whole_file(FULL) as file:
        file.write(b"x" * 100_000)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="this system has no /dev/null")
def test_a_device_is_not_replaced():
    with whole_file(Path("/dev/null")) as file:
        file.write(b"x")
    assert not Path("/dev/null").is_file()


def test_other_errors_pass(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.npy"):
        raise FileNotFoundError("something else")


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(RdError, match=r"there is no folder .*none"), whole_file(tmp_path / "none" / "a.npy"):
        pass


@pytest.mark.parametrize("output", ["features", "features.txt", "a.npz", "npy.gz"])
def test_unclear_formats_are_refused(output):
    text = r"the format is not clear\n\nhint: a name ending in \.npy or \.jsonl"
    with pytest.raises(RdError, match=text), open_writer(output, empty=EMPTY):
        pass


def test_features_that_are_not_finite_are_no_json():
    with pytest.raises(RdError, match="frame 3: the model gave a NaN or an infinity"):
        JsonlWriter(io.BytesIO()).write(Frames(3, np.full((1, 3), np.nan, np.float32)))
