"""The recorded devices (``recorder``) and the deferred bundles that the tests of this folder share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from reuse_distill.runtime.engines.tensorrt.cuda_runtime import Cuda


def load_package(name: str, folder: Path) -> ModuleType:
    """The package in ``folder``; tests are no package that it could be imported from."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recorder = load_package("tensorrt_recorder", Path(__file__).parent / "recorder")


@dataclass
class Device:
    """One recorded device: its TensorRT and its CUDA."""

    trt: Any
    cudart: Any
    sabotage: Any = field(init=False)

    def __post_init__(self) -> None:
        self.sabotage = self.trt._sabotage


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Device]]:
    """``device(era)``: from then on ``import tensorrt`` and CUDA are the recorded ones of that release."""

    def install(era: str) -> Device:
        cudart = recorder.FakeCudart()
        made = Device(recorder.RecordedTensorrt(era, cudart), cudart)
        monkeypatch.setitem(sys.modules, "tensorrt", made.trt)
        monkeypatch.setattr(Cuda, "open", classmethod(lambda cls: cls(cudart)))
        return made

    return install


@pytest.fixture(scope="session")
def eras() -> tuple[str, ...]:
    return recorder.ERAS


@pytest.fixture(scope="session", name="surfaces")
def _surfaces() -> dict[str, Any]:
    return recorder.SURFACES


@dataclass
class Prepared:
    """Deferred bundles, each made once by the command line; ``fresh`` gives a copy that a test may finish."""

    workshop: Any
    run_export: Callable[..., Any]
    folder: Path
    made: dict[tuple[str, ...], Path] = field(default_factory=dict)
    runs: dict[Path, Any] = field(default_factory=dict)

    def bundle(self, name: str, mode: str, precision: str, *options: str) -> Path:
        key = (name, mode, precision, *options)
        if key not in self.made:
            output = self.folder / f"{len(self.made)}-{name}-{precision}"
            words = ["--layers", "all", "--mode", mode, "--precision", precision, *options]
            words += ["--left", "12", "--chunk", "4"] if mode == "streaming" else []
            words += ["--calibration", str(self.workshop.speech)] if precision.startswith("int8") else []
            checkpoint = self.workshop.checkpoint(name)
            run = self.run_export(checkpoint, "--target", "tensorrt", *words, "--output", output)
            assert run.status == 5, run.err
            self.made[key], self.runs[output] = output, run
        return self.made[key]


@pytest.fixture(scope="session")
def prepared(workshop: Any, run_export: Any, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    if "tensorrt" in sys.modules:
        pytest.fail("a TensorRT is there: these tests are for machines without")
    return Prepared(workshop, run_export, tmp_path_factory.mktemp("prepared"))
