"""rd-stream --placement and --provider-option, as a user meets them."""

import json

import onnxruntime
import pytest
from reuse_distill.runtime.bundle_format.bundle import list_files, read_bundle, write_bundle, write_manifest
from reuse_distill.runtime.rd_stream import main

TELLS = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")


@pytest.mark.skipif(not TELLS, reason="ONNX Runtime tells it from 1.24 on")
def test_every_node_is_a_line(toys, capsys):
    assert main(["--placement", str(toys.streaming)]) == 0
    told = capsys.readouterr()
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert {row["provider"] for row in rows} == {"cpu"}
    assert {"Conv", "Softmax", "MatMul"} <= {row["op"] for row in rows}
    assert told.err.startswith(f"cpu: {len(rows)} nodes: ")


def test_what_is_not_told_is_an_error(toys, tmp_path, capsys):
    """An .ort file: ONNX Runtime does not say who runs its nodes."""
    from dataclasses import replace

    manifest = read_bundle(toys.offline).manifest
    with write_bundle(tmp_path / "mobile") as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / "model.ort")
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(str(toys.offline / "model.onnx"), options, providers=["CPUExecutionProvider"])
        files = list_files(folder)
        write_manifest(folder, replace(manifest, target="ort", artifact="model.ort", files=files))
    assert main(["--placement", str(tmp_path / "mobile")]) == 2
    assert "does not report which provider runs which node of this ort file" in capsys.readouterr().err


def test_options_that_are_none(toys, capsys):
    assert main(["--placement", str(toys.offline), "--provider-option", "fast"]) == 2
    assert "--provider-option 'fast' is not KEY=VALUE" in capsys.readouterr().err
