"""The runtime runs where torch does not exist."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
for room in ("reuse_distill.runtime", "reuse_distill.devices"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        importlib.import_module(module.name)
heavy = {"torch", "onnx", "transformers", "lightning_fabric", "scipy", "matplotlib"}
heavy |= {f"reuse_distill.{room}" for room in ("student", "distill", "export")}
print(sorted(heavy & set(sys.modules)))
parts = {f"reuse_distill.runtime.{part}" for part in ("rd_stream", "equivalence.certify", "streaming.steps")}
print(sorted(part.rpartition(".")[2] for part in parts & set(sys.modules)))
"""


def test_nothing_heavy_is_imported():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['certify', 'rd_stream', 'steps']"]


def test_the_public_names():
    from reuse_distill import runtime

    for name in ("Encoder", "Stream", "Frames", "RdError"):
        assert isinstance(getattr(runtime, name), type)
    assert {"Encoder", "Stream", "Frames", "RdError", "__version__", "extract", "load"} < set(runtime.__all__)
    assert all(getattr(runtime, name) is not None for name in runtime.__all__)
    assert runtime.__version__[0].isdigit()
