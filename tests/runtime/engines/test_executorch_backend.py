"""The ExecuTorch backend, against bindings of our own making: order, threads, lengths, refusals."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reuse_distill.runtime.engines.executorch_backend as et
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest, State, Tensor
from reuse_distill.runtime.engines.engine_choice import RUNNABLE_TARGETS, check_ports, check_runnable
from reuse_distill.runtime.engines.executorch_backend import Bridge, described
from reuse_distill.runtime.errors import RdError

FLOAT = 6  # ExecuTorch's number of float32


class Info:
    """What the bindings tell of a tensor."""

    def __init__(self, sizes: tuple[int, ...], kind: int = FLOAT) -> None:
        self.shape, self.kind = sizes, kind

    def sizes(self) -> tuple[int, ...]:
        return self.shape

    def dtype(self) -> int:
        return self.kind


class Meta:
    """What the bindings tell of a method."""

    def __init__(self, inputs: Sequence[Info], outputs: Sequence[Info]) -> None:
        self.inputs, self.outputs = inputs, outputs

    def num_inputs(self) -> int:
        return len(self.inputs)

    def num_outputs(self) -> int:
        return len(self.outputs)

    def input_tensor_meta(self, index: int) -> Info:
        return self.inputs[index]

    def output_tensor_meta(self, index: int) -> Info:
        return self.outputs[index]


class Recorder:
    """A bridge whose program gives twice its first input and the sum of its second, in every place."""

    meta = Meta([Info((1, 8)), Info((1, 4))], [Info((1, 8)), Info((1, 4))])
    pool = 2

    def __init__(self) -> None:
        self.versions = {"executorch": "1.5.1"}
        self.delegates = ["XnnpackBackend"]
        self.seen: list[list[Any]] = []

    @property
    def threads(self) -> int:
        return type(self).pool

    def set_threads(self, count: int) -> None:
        type(self).pool = count

    def open(self, file: Path) -> Any:
        return object(), SimpleNamespace(method_meta=lambda: self.meta)

    def tensors(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(arrays)

    def call(self, method: Any, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.seen.append(list(tensors))
        return [2 * tensors[0], np.full((1, 4), tensors[1].sum(), np.float32)]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorder]]:
    fresh = type("Recorder", (Recorder,), {})
    monkeypatch.setattr(et, "Bridge", fresh)
    et._OPEN.clear()
    yield fresh
    et._OPEN.clear()


def bundle(**changes: Any) -> Bundle:
    values: dict[str, Any] = {
        "kind": "offline",
        "target": "executorch",
        "precision": "fp32",
        "status": "built",
        "artifact": "model.pte",
        "features": "heads",
        "layers": (1,),
        "feature_width": 4,
        "inputs": (Tensor("wave", "float32", (1, "T")),),
        "outputs": (Tensor("features", "float32", (1, 8)),),
        "states": (State("s", "s", "s_new", "float32", (1, 4), "replace", 1, True, "position"),),
        "geometry": Geometry(),
        "files": {},
        "source": {},
        "tools": {},
        "device": {"delegate": "xnnpack", "longest_samples": 8, "placement": {"xnnpack": 5, "portable": 1}},
    }
    return Bundle(Path("a bundle"), Manifest(**{**values, **changes}))


def test_tensors_go_by_the_manifests_order_and_come_back_by_name(recorder: type[Recorder]) -> None:
    backend = et.ExecutorchBackend(bundle(), threads=2)
    check_ports(bundle(), backend)
    wave, state = np.arange(8, dtype=np.float32)[None], np.ones((1, 4), np.float32)
    found = backend.run({"s": state, "wave": wave})
    np.testing.assert_array_equal(found["features"], 2 * wave)
    assert found["s_new"].tolist() == [[4] * 4]
    assert backend.provider == "xnnpack"
    assert backend.placement == {"xnnpack": 5, "portable": 1}
    assert backend.inputs["wave"].shape == (1, "T")


def test_a_bound_call_reads_and_writes_the_arrays_it_was_given(recorder: type[Recorder]) -> None:
    backend = et.ExecutorchBackend(bundle(), threads=2)
    inputs = {"wave": np.ones((1, 8), np.float32), "s": np.ones((1, 4), np.float32)}
    outputs = {"features": np.zeros((1, 8), np.float32), "s_new": np.zeros((1, 4), np.float32)}
    call = backend.bind(inputs, outputs)
    call()
    inputs["wave"][:] = 3
    call()
    assert (outputs["features"] == 6).all()
    assert outputs["s_new"].tolist() == [[4] * 4]


def test_one_pool_for_the_process(recorder: type[Recorder]) -> None:
    backend = et.ExecutorchBackend(bundle(), threads=1)
    assert recorder.pool == 1
    et.ExecutorchBackend(bundle(), threads=1)
    with pytest.raises(RdError, match=r"threads=3: .* one thread pool for the process, and an open program uses 1"):
        et.ExecutorchBackend(bundle(), threads=3)
    assert recorder.pool == 1
    assert backend.provider == "xnnpack"  # open until here


def test_longer_than_the_program_is_refused_with_both_lengths(recorder: type[Recorder]) -> None:
    backend = et.ExecutorchBackend(bundle(device={"delegate": "xnnpack", "longest_samples": 16_000}), threads=2)
    with pytest.raises(RdError, match=r"1\.5 s at once: model\.pte was exported for up to 1\.0 s") as caught:
        backend.run({"wave": np.zeros((1, 24_000), np.float32), "s": np.zeros((1, 4), np.float32)})
    assert "--max-seconds" in str(caught.value.hint)


def test_another_number_of_tensors_is_refused(recorder: type[Recorder]) -> None:
    with pytest.raises(RdError, match=r"2 inputs, the manifest names 1"):
        et.ExecutorchBackend(bundle(states=()), threads=2)


def test_a_program_that_does_not_load_or_run_is_told_in_its_own_words(recorder: type[Recorder]) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("error 0x23")

    backend = et.ExecutorchBackend(bundle(), threads=2)
    backend._bridge.call = fail  # type: ignore[method-assign]
    with pytest.raises(RdError, match="ExecuTorch failed while running it: error 0x23"):
        backend.run({"wave": np.zeros((1, 8), np.float32), "s": np.zeros((1, 4), np.float32)})
    recorder.open = fail  # type: ignore[method-assign]
    with pytest.raises(RdError, match=r"ExecuTorch 1\.5\.1 cannot load it: error 0x23"):
        et.ExecutorchBackend(bundle(), threads=2)


def test_a_delegate_that_is_not_there_is_refused(recorder: type[Recorder]) -> None:
    with pytest.raises(RdError, match=r"no delegate 'qualcomm'; it has XnnpackBackend"):
        et.ExecutorchBackend(bundle(device={"delegate": "qualcomm"}), threads=2)
    with pytest.raises(RdError, match=r"exported for Core ML's delegate, which ExecuTorch has on Apple's devices only"):
        et.ExecutorchBackend(bundle(device={"delegate": "coreml"}), threads=2)


def test_only_the_delegate_it_was_made_for_is_a_provider() -> None:
    assert "executorch" in RUNNABLE_TARGETS
    check_runnable(bundle(), "auto")
    check_runnable(bundle(), "xnnpack")
    with pytest.raises(RdError, match=r"runs on provider 'xnnpack' only, 'cuda' was requested"):
        check_runnable(bundle(), "cuda")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("executorch", "executorch.extension", "executorch.extension.pybindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RdError, match=r"executorch.* is not installed") as caught:
        Bridge()
    assert "reuse-distill[executorch]" in str(caught.value.hint)


def test_tensors_are_described_by_numpys_names() -> None:
    meta = Meta([Info((1, 2)), Info((3,), 5)], [Info((4,), 99)])
    assert described(meta, "input") == [("float32", (1, 2)), ("float16", (3,))]
    assert described(meta, "output") == [("99", (4,))]
