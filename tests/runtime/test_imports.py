"""The runtime runs where torch does not exist."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
for room in ("runtime", "devices"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, room + "."):
        importlib.import_module(module.name)
heavy = {"torch", "onnx", "transformers", "lightning", "scipy", "matplotlib", "student", "distill", "export"}
print(sorted(heavy & set(sys.modules)))
print(sorted(set(sys.modules) & {"runtime.cli", "runtime.certify", "runtime.steps"}))
"""


def test_nothing_heavy_is_imported():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['runtime.certify', 'runtime.cli', 'runtime.steps']"]


def test_the_public_names():
    import runtime

    for name in ("Encoder", "Stream", "Frames", "RdError"):
        assert isinstance(getattr(runtime, name), type)
    assert set(runtime.__all__) == {"Encoder", "Stream", "Frames", "RdError", "__version__"}
    assert runtime.__version__[0].isdigit()
