"""The LiteRT backend on a model of one operation, written by the schema's own classes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import Bundle, list_files, write_manifest
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest, Tensor
from reuse_distill.runtime.engines import litert_backend
from reuse_distill.runtime.engines.engine_choice import check_ports, check_runnable, open_backend
from reuse_distill.runtime.engines.litert_backend import LitertBackend, load_litert
from reuse_distill.runtime.errors import RdError

schema: Any = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="the extra litert is not installed")
FLOAT, SAMPLES, FRAMES, WIDTH = 0, 720, 2, 3


def tensor(name: str, shape: list[int], buffer: int = 0) -> Any:
    one = schema.TensorT()
    one.name, one.shape, one.type, one.buffer = name.encode(), shape, FLOAT, buffer
    return one


def port(name: str, index: int) -> Any:
    one = schema.TensorMapT()
    one.name, one.tensorIndex = name.encode(), index
    return one


def write_model(
    file: Path, inputs: dict[str, list[int]], output: list[int], operation: str, *, signatures: int = 1
) -> None:
    """A .tflite with ``operation`` (ADD, MUL, FULLY_CONNECTED) on its two inputs, float32."""
    import flatbuffers

    code, one = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, operation)
    name = {"MUL": "MulOptions", "ADD": "AddOptions"}[operation]
    one.opcodeIndex, one.inputs, one.outputs = 0, [0, 1], [2]
    one.builtinOptionsType, one.builtinOptions = getattr(schema.BuiltinOptions, name), getattr(schema, f"{name}T")()
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors = [*(tensor(n, shape) for n, shape in inputs.items()), tensor("features", output)]
    graph.inputs, graph.outputs, graph.operators = [0, 1], [2], [one]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers, model.signatureDefs = [schema.BufferT()], []
    for number in range(signatures):
        signature = schema.SignatureDefT()
        signature.signatureKey = b"serving_default" if not number else b"other"
        signature.inputs = [port(n, i) for i, n in enumerate(inputs)]
        signature.outputs = [port("features", 2)]
        model.signatureDefs.append(signature)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    file.write_bytes(bytes(builder.Output()))


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "kind": "window",
        "target": "litert",
        "precision": "fp32",
        "status": "built",
        "artifact": "model.tflite",
        "features": "heads",
        "layers": (1,),
        "feature_width": 4,
        "inputs": (Tensor("wave", "float32", (1, 4)), Tensor("frame_valid", "float32", (1, 1))),
        "outputs": (Tensor("features", "float32", (1, 4)),),
        "states": (),
        "geometry": Geometry(1),
        "files": {},
        "source": {},
        "tools": {},
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that multiplies ``wave`` with ``frame_valid``."""
    write_model(tmp_path / "model.tflite", {"wave": [1, 4], "frame_valid": [1, 1]}, [1, 4], "MUL")
    return tmp_path


def test_it_runs_by_the_names_of_its_signature(folder: Path) -> None:
    bundle = Bundle(folder, manifest())
    check_runnable(bundle, "auto")
    backend = open_backend(bundle, provider="auto", threads=1)
    check_ports(bundle, backend)
    assert backend.provider == "cpu"
    assert backend.versions["ai-edge-litert"]
    wave = np.arange(4, dtype=np.float32)[None]
    for factor in (2.0, 3.0):
        found = backend.run({"frame_valid": np.full((1, 1), factor, np.float32), "wave": wave})
        np.testing.assert_array_equal(found["features"], factor * wave)


def test_results_of_one_run_stay_when_the_next_is_made(folder: Path) -> None:
    backend = LitertBackend(Bundle(folder, manifest()), threads=1)
    ones = np.ones((1, 1), np.float32)
    first = backend.run({"wave": np.ones((1, 4), np.float32), "frame_valid": ones})["features"]
    backend.run({"wave": np.zeros((1, 4), np.float32), "frame_valid": ones})
    assert (first == 1).all()


def test_bound_calls_read_and_write_the_arrays_they_were_given(folder: Path) -> None:
    """Two streams of one interpreter take turns."""
    backend = LitertBackend(Bundle(folder, manifest()), threads=1)
    arrays = [
        ({"wave": np.full((1, 4), n, np.float32), "frame_valid": np.ones((1, 1), np.float32)}, np.zeros((1, 4), "f4"))
        for n in (2, 5)
    ]
    calls = [backend.bind(inputs, {"features": out}) for inputs, out in arrays]
    for call in calls:
        call()
    assert [float(out[0, 0]) for _, out in arrays] == [2, 5]
    arrays[0][0]["wave"][:] = 7
    calls[0]()
    assert [float(out[0, 0]) for _, out in arrays] == [7, 5]


def test_another_shape_than_the_files_is_refused(folder: Path) -> None:
    backend = LitertBackend(Bundle(folder, manifest()), threads=1)
    with pytest.raises(RdError, match=r"wave has shape \[1, 5\], the file has \[1, 4\]"):
        backend.run({"wave": np.ones((1, 5), np.float32), "frame_valid": np.ones((1, 1), np.float32)})


def utterances(tmp_path: Path) -> Path:
    """A bundle of whole utterances of up to 720 samples, whose features are how many samples there are."""
    write_model(tmp_path / "model.tflite", {"wave": [1, SAMPLES], "length": [1, 1]}, [1, SAMPLES], "ADD")
    whole = manifest(
        kind="offline",
        geometry=Geometry(),
        inputs=(Tensor("wave", "float32", (1, SAMPLES)), Tensor("length", "float32", (1, 1))),
        outputs=(Tensor("features", "float32", (1, SAMPLES)),),
    )
    write_manifest(tmp_path, Manifest(**{**vars(whole), "files": list_files(tmp_path)}))
    return tmp_path


def test_a_shorter_utterance_is_filled_up_and_its_length_told(tmp_path: Path) -> None:
    backend = Encoder.load(utterances(tmp_path)).backend
    found = backend.run({"wave": np.full((1, 500), 0.5, np.float32)})["features"]
    assert (found[0, :500] == 500.5).all()
    assert (found[0, 500:] == 500).all()
    with pytest.raises(RdError, match=r"0\.1 s at once: model\.tflite was exported for up to 0\.0 s") as caught:
        backend.run({"wave": np.zeros((1, 1_600), np.float32)})
    assert "--max-seconds" in str(caught.value.hint)


def test_an_encoder_refuses_what_its_file_has_no_room_for(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="at once"):
        Encoder.load(utterances(tmp_path)).extract(np.zeros(16_000, np.float32))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not begin as a .tflite does"),
        (b"no model at all", "does not begin as a .tflite does"),
        (b"\x00\x00\x00\x00TFL3", "cannot load it"),
    ],
)
def test_what_is_no_model_is_refused(folder: Path, content: bytes, reason: str) -> None:
    (folder / "model.tflite").write_bytes(content)
    with pytest.raises(RdError, match=reason):
        LitertBackend(Bundle(folder, manifest()), threads=1)


def test_half_a_file_is_refused(folder: Path) -> None:
    data = (folder / "model.tflite").read_bytes()
    (folder / "model.tflite").write_bytes(data[: len(data) // 2])
    with pytest.raises(RdError, match=r"LiteRT \S+ cannot load it"):
        LitertBackend(Bundle(folder, manifest()), threads=1)


def test_a_bundle_has_one_signature_of_the_name_that_it_states(folder: Path) -> None:
    with pytest.raises(RdError, match="no signature 'step', it has serving_default"):
        LitertBackend(Bundle(folder, manifest(device={"signature": "step"})), threads=1)
    write_model(folder / "model.tflite", {"wave": [1, 4], "frame_valid": [1, 1]}, [1, 4], "MUL", signatures=2)
    with pytest.raises(RdError, match="2 signatures, a bundle has one"):
        LitertBackend(Bundle(folder, manifest()), threads=1)


def test_other_ports_than_the_manifests_are_refused(folder: Path) -> None:
    other = manifest(inputs=(Tensor("wave", "float32", (1, 4)), Tensor("mask", "float32", (1, 1))))
    with pytest.raises(RdError, match="inputs frame_valid, wave; the manifest says mask, wave"):
        open_backend(Bundle(folder, other), provider="auto", threads=1)


def test_providers_and_options_that_are_not_litert(folder: Path) -> None:
    bundle = Bundle(folder, manifest())
    for provider in ("cpu", "xnnpack"):
        check_runnable(bundle, provider)
    with pytest.raises(RdError, match="runs on provider cpu here, 'cuda' was requested"):
        check_runnable(bundle, "cuda")
    with pytest.raises(RdError, match="provider options are for ONNX Runtime and OpenVINO"):
        open_backend(bundle, provider="auto", threads=1, options={"x": "1"})


def test_a_package_that_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert_backend, "litert_version", lambda: "1.4.0")
    with pytest.raises(RdError, match=r"ai-edge-litert 1\.4\.0 is installed, 2\.0 or later is needed"):
        load_litert()
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)  # type: ignore[arg-type]
    with pytest.raises(RdError, match="LiteRT cannot be imported") as caught:
        load_litert()
    assert "[litert]" in str(caught.value.hint)
