"""What compares an artifact is opened once for all recordings, and again when the artifact is another one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets import Opened
from reuse_distill.runtime import Encoder

from .conftest import MODES


def test_it_is_opened_again_only_for_other_files(tmp_path: Path) -> None:
    calls: list[bytes] = []
    file = tmp_path / "package" / "model.bin"
    file.parent.mkdir()
    kept = Opened[bytes]()

    def read() -> bytes:
        return kept.of(tmp_path, lambda: calls.append(file.read_bytes()) or calls[-1])

    file.write_bytes(b"one")
    assert [read(), read()] == [b"one"] * 2 and len(calls) == 1
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))  # as long as before, at another time
    assert [read(), read()] == [b"two"] * 2 and len(calls) == 2
    (tmp_path / "more").touch()
    assert read() == b"two" and len(calls) == 3


def test_an_export_loads_its_artifact_once_to_compare_it(
    make_student: Callable[..., Any], exported: Any, noise: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Not once a recording: the target that compares many recordings has one encoder."""
    pytest.importorskip("openvino", reason="openvino is not installed (the extra openvino)")
    loaded: list[Any] = []
    load = Encoder.load
    monkeypatch.setattr(Encoder, "load", lambda *words, **more: loaded.append(words) or load(*words, **more))
    spec = ExportSpec("openvino", MODES["window"], "fp32", (1, 2), "heads")  # whose graph other tests convert too
    clips = [noise(n, seed=n) for n in (4000, 3000, 2000)]
    exported(make_student("tiny", lookahead_frames=7), spec, tmp_path / "bundle", clips)
    assert len(loaded) == 1
