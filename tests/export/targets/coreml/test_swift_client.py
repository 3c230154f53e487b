"""The Swift client reads names out of the manifest: they must be there. (It is not compiled here.)"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).resolve().parents[4] / "clients" / "swift" / "Sources" / "ReuseDistill"


def _keys(text: str, name: str) -> set[str]:
    """JSON keys that the Swift type ``name`` decodes."""
    body = re.search(rf"public struct {name}: Decodable {{(.*?)^}}", text, re.DOTALL | re.MULTILINE)
    assert body is not None, name
    renamed = dict(re.findall(r'case (\w+) = "(\w+)"', body[1]))
    fields = re.findall(r"public let (\w+):", body[1])
    assert fields
    return {renamed.get(field, field) for field in fields}


@pytest.mark.parametrize("states", ["tensors", "engine"])
def test_the_client_finds_what_it_decodes(export_one: Callable[..., Any], states: str) -> None:
    done = export_one("streaming", "fp32" if states == "tensors" else "fp16", states=states)
    manifest = json.loads((done.folder / "manifest.json").read_text())
    text = (SOURCES / "Manifest.swift").read_text()
    assert _keys(text, "Manifest") <= set(manifest)
    assert _keys(text, "Geometry") <= set(manifest["geometry"])
    assert all(_keys(text, "StateDescription") <= set(state) for state in manifest["states"])
    assert all(_keys(text, "TensorDescription") <= set(port) for port in manifest["inputs"] + manifest["outputs"])


def test_the_client_knows_the_updates_and_ports() -> None:
    text = (SOURCES / "Manifest.swift").read_text()
    assert "enum Update: String, Decodable { case replace, append }" in text
    client = (SOURCES / "StreamingClient.swift").read_text()
    assert all(f'"{name}"' in client for name in ("samples", "fresh", "features"))
