"""ONNX files that make ONNX Runtime open other files: refused by us, whatever the version of ONNX Runtime does.

1.20 and 1.23 read any path that such a file names, every version read unhashed files beside it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from reuse_distill.runtime.bundle_format.bundle import SHIPPED
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.engines.external_data import check_self_contained
from reuse_distill.runtime.errors import RdError

WEIGHT, COUNT = "student.layer_norm.weight", 256


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "secret.bin"
    path.write_bytes(np.random.default_rng(0).standard_normal(COUNT).astype("<f4").tobytes())
    return path


def bundle(tmp_path: Path, location: str, *, change: Callable[[Path], None] = lambda _: None, listed: str = "") -> Path:
    """The shipped bundle with one weight taken from ``location``; all hashes are right."""
    folder = tmp_path / "bundle"
    shutil.copytree(SHIPPED, folder)
    model = onnx.load(str(folder / "model.onnx"))
    tensor = next(one for one in model.graph.initializer if one.name.endswith(WEIGHT))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(4 * COUNT))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    change(folder)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    for name in ("model.onnx", *([listed] if listed else [])):
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def run(folder: Path) -> None:
    Encoder.load(folder).stream().push(np.zeros(16000, np.float32))


@pytest.mark.parametrize("where", ["{weights}", "../secret.bin", "/etc/passwd", "", "./../secret.bin"])
def test_files_outside_of_the_bundle(where: str, tmp_path: Path, weights: Path) -> None:
    with pytest.raises(RdError, match="which the manifest does not list"):
        run(bundle(tmp_path, where.format(weights=weights)))


def test_links_and_files_that_nobody_has_hashed(tmp_path: Path, weights: Path) -> None:
    links = {
        "w.bin": lambda folder: (folder / "w.bin").symlink_to(weights),
        "sub/secret.bin": lambda folder: (folder / "sub").symlink_to(tmp_path),
        "copy.bin": lambda folder: shutil.copy(weights, folder / "copy.bin"),
    }
    for number, (location, change) in enumerate(links.items()):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(RdError, match="which the manifest does not list"):
            run(bundle(tmp_path / str(number), location, change=change))


def test_a_file_that_the_manifest_lists_is_verified_and_read(tmp_path: Path, weights: Path) -> None:
    folder = bundle(tmp_path, "w.bin", change=lambda folder: shutil.copy(weights, folder / "w.bin"), listed="w.bin")
    run(folder)
    (folder / "w.bin").write_bytes(bytes(4 * COUNT))
    with pytest.raises(RdError, match="sha256"):
        run(folder)


def external(name: str = "w") -> TensorProto:
    tensor = helper.make_tensor(name, TensorProto.FLOAT, [1], [0.0])
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "elsewhere.bin"
    return tensor


def hidden() -> dict[str, onnx.ModelProto]:
    """External tensors in every place that a model has for tensors."""
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    plain = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("c", TensorProto.FLOAT, [1], [0.0]))
    constant = helper.make_node("Constant", [], ["y"], value=external())
    inner = helper.make_graph([constant], "inner", [], [out])
    sparse = helper.make_sparse_tensor(external(), helper.make_tensor("i", TensorProto.INT64, [1], [0]), [1])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    many = helper.make_node("Constant", [], ["y"])
    many.attribute.append(helper.make_attribute("values", [external()]))
    deep = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=helper.make_graph([branch], "g", [], [out]))], "d", [], [out]
    )
    models = {
        "initializer": helper.make_graph([plain], "g", [], [out], [external()]),
        "sparse initializer": helper.make_graph([plain], "g", [], [out], sparse_initializer=[sparse]),
        "constant": helper.make_graph([constant], "g", [], [out]),
        "attribute of several": helper.make_graph([many], "g", [], [out]),
        "branch": helper.make_graph([branch], "g", [], [out]),
        "branch of a branch": deep,
    }
    made = {name: helper.make_model(graph) for name, graph in models.items()}
    function = helper.make_function("f", "F", [], ["y"], [constant], [helper.make_opsetid("", 17)])
    made["function"] = helper.make_model(helper.make_graph([plain], "g", [], [out]), functions=[function])
    trained = helper.make_model(helper.make_graph([plain], "g", [], [out]))
    trained.training_info.add().initialization.CopyFrom(models["initializer"])
    made["training"] = trained
    return made


@pytest.mark.parametrize("name", hidden())
def test_external_data_is_found_wherever_it_stands(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(hidden()[name].SerializeToString())
    with pytest.raises(RdError, match=r"'elsewhere\.bin'"):
        check_self_contained(path, set())
    check_self_contained(path, {"elsewhere.bin"})


def test_a_context_of_a_compiled_engine_is_refused(tmp_path: Path) -> None:
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="/etc/passwd"
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString())
    with pytest.raises(RdError, match="context"):
        check_self_contained(path, set())


def test_a_word_in_a_name_is_no_reference(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("location", TensorProto.FLOAT, [1])
    node = helper.make_node(
        "Constant", [], ["location"], value=helper.make_tensor("EPContext", TensorProto.FLOAT, [1], [0.0])
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([node], "g", [], [out])).SerializeToString())
    check_self_contained(path, set())


@pytest.mark.parametrize("tail", [b"\xff" * 20, b"\x3a\xff\xff\xff\xff\x7f", b"\x3b", b"\x3a"])
def test_a_damaged_file_is_refused(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x0a\x08location" + tail)
    with pytest.raises(RdError, match="is not an ONNX file"):
        check_self_contained(path, set())
