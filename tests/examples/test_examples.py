"""examples/: what a reader copies from works as it stands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
SPEECH = ROOT / "demo" / "speech" / "ada-1.flac"


def python(*words: str | Path) -> str:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_a_folder_of_recordings(tmp_path):
    shutil.copy(SPEECH, tmp_path / "talk.flac")
    printed = python("examples/python/extract_folder.py", tmp_path, tmp_path / "features")
    expected = Encoder.load(SHIPPED).extract(soundfile.read(SPEECH, dtype="float32")[0])
    np.testing.assert_array_equal(np.load(tmp_path / "features" / "talk.npy"), expected)
    assert f"{expected.shape[0]} frames of {expected.shape[1]} values" in printed


def test_features_as_the_audio_arrives():
    lines = python("examples/python/live_features.py", SPEECH).splitlines()
    counts = [int(line.split(": ")[1].split(" ")[0]) for line in lines]
    seconds = soundfile.info(SPEECH).duration
    assert sum(counts) == (int(seconds * 16_000) - 400) // 320 + 1
    heard = float(lines[0].split(" ")[1])
    assert heard < 1.0 < seconds, "the first frames come long before the end"


def onnxruntime_headers() -> Path | None:
    """The folder of onnxruntime_cxx_api.h: ONNXRUNTIME_INCLUDE, or where a system keeps it."""
    places = [os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
    folders = [Path(place) for place in places if place]
    return next((folder for folder in folders if (folder / "onnxruntime_cxx_api.h").is_file()), None)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """examples/cpp/stream.cpp, linked to the ONNX Runtime of this Python."""
    compiler, headers = shutil.which("g++") or shutil.which("clang++"), onnxruntime_headers()
    if compiler is None:
        pytest.skip("no C++ compiler")
    if headers is None:
        pytest.skip("ONNX Runtime's C++ headers are not here; name their folder in ONNXRUNTIME_INCLUDE")
    import onnxruntime

    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not libraries:
        pytest.skip("this ONNX Runtime has no libonnxruntime.so")
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # the name to link with, and the one that it was built as
        (folder / name).symlink_to(libraries[0])
    words = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{headers}", "examples/cpp/stream.cpp"]
    link = ["-o", str(folder / "stream"), f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"]
    done = subprocess.run([*words, *link], capture_output=True, text=True, cwd=ROOT)
    if "nlohmann/json.hpp" in done.stderr:
        pytest.skip("nlohmann/json is not here (Debian: nlohmann-json3-dev)")
    assert done.returncode == 0, done.stderr
    return folder / "stream"


@pytest.mark.parametrize("push", [1, 441, 1600, 1_000_000])
def test_cpp_gives_what_python_gives(push: int, compiled: Path, tmp_path: Path) -> None:
    samples, rate_hz = soundfile.read(SPEECH, dtype="int16")
    soundfile.write(tmp_path / "talk.wav", samples, rate_hz, subtype="PCM_16")
    words = [compiled, SHIPPED, tmp_path / "talk.wav", tmp_path / "features.f32", str(push)]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    expected = Encoder.load(SHIPPED).extract(samples)
    result = np.fromfile(tmp_path / "features.f32", "<f4").reshape(-1, expected.shape[1])
    np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)


def test_cpp_refuses_another_rate_and_a_folder_that_is_no_bundle(compiled: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", np.zeros(800, np.int16), 8_000, subtype="PCM_16")
    for bundle, message in ((SHIPPED, "16000 Hz is needed"), (tmp_path, "is not a bundle")):
        words = [compiled, bundle, tmp_path / "talk.wav", tmp_path / "features.f32"]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr
        assert not (tmp_path / "features.f32").exists()
