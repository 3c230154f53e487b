"""An environment with a planted fault, to see that ``rd-latency rehearse`` finds it.

    python -m benchmarks.planted_upgrade ENVIRONMENT float NEW_FOLDER
    rd-latency rehearse BUNDLE --from ENVIRONMENT --to NEW_FOLDER --report page.html

NEW_FOLDER is an environment with the packages of ENVIRONMENT and a ``sitecustomize.py`` that changes ONNX Runtime as an
upgrade might: ``float`` runs int8 graphs in float, ``features`` moves features by 3 %, ``wrong`` gives other features
altogether, ``slow`` takes a third longer, ``refuse`` does not load the file.
"""

from __future__ import annotations

import argparse
import subprocess
import venv
from pathlib import Path

HEAD = """
import onnxruntime
_Session = onnxruntime.InferenceSession
"""
NOISE = """
class Session(_Session):
    def run(self, names, feed, options=None):
        results = super().run(names, feed, options)
        return [value * {factor} if value.dtype.kind == "f" and value.ndim == 4 else value for value in results]

    def run_with_iobinding(self, binding, options=None):
        super().run_with_iobinding(binding, options)
        for value in binding.get_outputs():
            array = value.numpy()
            if array.dtype.kind == "f" and array.ndim == 4:
                array *= {factor}


onnxruntime.InferenceSession = Session
"""
FAULTS = {
    "float": """
def session(path, options=None, **more):
    options = options or onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return _Session(path, options, **more)


onnxruntime.InferenceSession = session
""",
    "features": NOISE.format(factor=1.03),
    "wrong": NOISE.format(factor=-1.0),
    "slow": """
import time


class Session(_Session):
    def run_with_iobinding(self, binding, options=None):
        began = time.thread_time()
        super().run_with_iobinding(binding, options)
        end = time.thread_time() + (time.thread_time() - began) / 3
        while time.thread_time() < end:
            pass


onnxruntime.InferenceSession = Session
""",
    "refuse": """
def session(path, *rest, **more):
    raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Gelu(20)")


onnxruntime.InferenceSession = session
""",
}


def plant(environment: Path, fault: str, folder: Path) -> Path:
    """A virtual environment at ``folder`` with the packages of ``environment`` and the fault."""
    venv.create(folder, with_pip=False, symlinks=True)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    old, new = (
        subprocess.run([one / "bin" / "python", "-c", where], capture_output=True, text=True, check=True).stdout.strip()
        for one in (environment, folder)
    )
    Path(new, "packages.pth").write_text(f"import site; site.addsitedir({old!r})\n", encoding="utf-8")
    Path(new, "sitecustomize.py").write_text(HEAD + FAULTS[fault], encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    parser.add_argument("fault", choices=sorted(FAULTS))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(plant(given.environment, given.fault, given.folder))


if __name__ == "__main__":
    main()
