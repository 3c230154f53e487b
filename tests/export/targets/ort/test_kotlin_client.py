"""The Kotlin client reads names out of the manifest: they must be there. Where there is a Kotlin compiler it is run.

``KOTLINC=path/to/kotlinc pytest -m slow tests/export/targets/ort/test_kotlin_client.py`` compiles it, runs its own
tests, and streams a recording through it, the steps computed by ONNX Runtime in this process.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format import manifest
from reuse_distill.runtime.engines.litert_backend import SIGNATURE

CLIENT = Path(__file__).resolve().parents[4] / "clients" / "kotlin"
SOURCES = CLIENT / "src" / "main" / "kotlin" / "reusedistill"
TESTS = "reusedistill.StreamingClientTestKt"


def keys(text: str) -> set[str]:
    return set(re.findall(r'\.(?:int|string|list|fields|boolean|fieldsOrNull)\("(\w+)"\)', text))


def names(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def test_the_client_reads_what_the_manifest_has() -> None:
    text = (SOURCES / "Manifest.kt").read_text()
    of_states = text[text.index("private fun state") : text.index("private fun sizes")]
    of_geometry = keys(next(line for line in text.splitlines() if "val geometry =" in line)) - {"geometry"}
    of_manifest = keys(text) - keys(of_states) - of_geometry
    assert keys(of_states) >= {"input", "output", "shape", "dtype", "update", "axis", "ordered"}
    assert keys(of_states) <= names(manifest.State)
    assert of_geometry == {"chunk_frames", "lookahead_frames"} <= names(manifest.Geometry)
    assert {"states", "layers", "feature_width", "schema_version", "device"} <= of_manifest <= names(manifest.Manifest)
    assert f'stringOrNull("{SIGNATURE}")' in text


def test_the_client_knows_versions_updates_types_and_ports() -> None:
    text, client, tensor = ((SOURCES / name).read_text() for name in ("Manifest.kt", "StreamingClient.kt", "Tensor.kt"))
    assert f"schemaVersion != {manifest.SCHEMA_VERSION}" in text
    assert 'listOf("replace", "append")' in text
    assert set(manifest.UPDATES) == {"replace", "append"}
    assert all(f'"{name}"' in client for name in ("samples", "fresh", "features"))
    assert all(f'"{name}" ->' in tensor for name in ("float32", "float16"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The class path of the compiled client and its tests."""
    kotlinc, javac = os.environ.get("KOTLINC") or shutil.which("kotlinc"), shutil.which("javac")
    if kotlinc is None or javac is None:
        pytest.skip("no Kotlin compiler (KOTLINC, or kotlinc on the path) or no javac")
    folder = tmp_path_factory.mktemp("kotlin")
    stubs = [str(file) for file in (CLIENT / "src" / "test" / "stubs").rglob("*.java")]
    subprocess.run([javac, "-d", str(folder / "stubs"), *stubs], check=True)
    places = [str(CLIENT / "src" / part / "kotlin") for part in ("main", "test")]
    words = ["-cp", str(folder / "stubs"), "-include-runtime", "-d", str(folder / "client.jar"), "-Werror", *places]
    subprocess.run([kotlinc, *words], check=True)
    return f"{folder / 'client.jar'}:{folder / 'stubs'}"


@pytest.mark.slow
def test_its_own_tests(classes: str) -> None:
    done = subprocess.run(["java", "-cp", classes, TESTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = re.findall(
        r"^fun (\w+)\(\) \{$", (CLIENT / "src/test/kotlin/reusedistill/StreamingClientTest.kt").read_text(), re.M
    )
    assert done.stdout.splitlines() == [f"ok {name}" for name in wanted]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_it_streams_what_the_runtime_streams(target, precision, classes, workshop, noise, tmp_path: Path) -> None:
    """Rings and replaced states, in both precisions, to the last bit: the same steps get the same inputs."""
    encoder = Encoder.load(workshop.bundle("stream", "streaming", precision, "--target", target), provider="cpu")
    wave, file = noise(320 * 61 + 155), tmp_path / "wave"
    file.write_bytes(wave.tobytes())
    words = ["java", "-cp", classes, TESTS, str(encoder.bundle.path), str(file)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        answer(client.stdout, client.stdin, encoder)
    assert client.returncode == 0
    wanted = encoder.extract(wave).reshape(len(encoder.manifest.layers), -1, encoder.manifest.feature_width)
    found = np.frombuffer(file.read_bytes(), np.float32).reshape(wanted.shape[1], wanted.shape[0], -1)
    assert np.abs(found.transpose(1, 0, 2) - wanted).max() < 1e-5


def answer(requests: IO[bytes], answers: IO[bytes], encoder: Encoder) -> None:
    """Compute steps until the client closes its side."""
    ports = encoder.backend.inputs
    while header := requests.read(4):
        inputs = {}
        for _ in range(struct.unpack(">i", header)[0]):
            name = requests.read(*struct.unpack(">H", requests.read(2))).decode()
            data = requests.read(*struct.unpack(">i", requests.read(4)))
            shape = [1, *ports[name].shape[1:]]
            inputs[name] = np.frombuffer(data, ports[name].dtype).reshape(shape)
        outputs: dict[str, Any] = encoder.backend.run(inputs)
        answers.write(struct.pack(">i", len(outputs)))
        for name, array in outputs.items():
            for text in (name, array.dtype.name):
                answers.write(struct.pack(">H", len(text)) + text.encode())
            answers.write(struct.pack(f">{1 + array.ndim}i", array.ndim, *array.shape) + array.tobytes())
        answers.flush()
