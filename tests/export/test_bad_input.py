"""What every target refuses in the same way: precisions and modes that it has not, packages that are not there."""

from __future__ import annotations

import builtins
import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from reuse_distill.export import rd_export
from reuse_distill.export.targets import REGISTRY, check_possible, find_target
from reuse_distill.runtime.errors import RdError


class Live:
    """A mode that there is not."""

    name = "live"


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_target_names_its_precisions_and_modes(name: str, spec_of) -> None:
    target = find_target(name)
    with pytest.raises(RdError, match=rf"--precision int3 is not possible for {name}\n\nhint: known: fp32, ") as said:
        check_possible(target, spec_of("offline", "int3", target=name))
    assert all(precision in str(said.value.hint) for precision in target.precisions)
    with pytest.raises(RdError, match=rf"--mode live is not possible for {name}\n\nhint: known: offline, window"):
        check_possible(target, dataclasses.replace(spec_of("offline", target=name), mode=Live()))


@pytest.mark.parametrize("seconds", ["-3", "0", "nan", "0.02", "3601"])
def test_a_longest_utterance_that_cannot_be_is_refused(seconds: str, workshop, run_export, tmp_path: Path) -> None:
    words = ("--target", "executorch", "--max-seconds", seconds, "--output", tmp_path / "bundle")
    run = run_export(workshop.checkpoint("shared"), *words)
    assert (run.status, f"error: --max-seconds {seconds} is outside 0.025..3600\n\nhint: " in run.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_packages_are_imported(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """torch takes seconds, and is imported before the export begins."""
    real = builtins.__import__

    def interrupted(name: str, *rest: Any, **more: Any) -> Any:
        if name == "reuse_distill.export.export_command":
            raise KeyboardInterrupt
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert rd_export.main(["student", "--output", "bundle"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
@pytest.mark.parametrize("target", ["onnx", "ort", "tensorrt"])
def test_a_missing_extra_is_named(
    package: str, target: str, workshop, run_export, convert_once, monkeypatch, tmp_path: Path
) -> None:
    """The targets that begin with an ONNX file say which extra brings what is missing."""
    monkeypatch.setattr("reuse_distill.export.targets.onnx.onnx_target.convert", convert_once)
    monkeypatch.setitem(sys.modules, package, None)
    run = run_export(workshop.checkpoint("shared"), "--target", target, "--output", tmp_path / "bundle")
    assert run.status == 2
    assert f'error: {package} is not installed\n\nhint: pip install ".[export]" in the checkout' in run.err
    assert list(tmp_path.iterdir()) == []
