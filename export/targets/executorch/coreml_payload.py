"""The Core ML package that ExecuTorch's delegate packs into a program, read without unpacking its folders.

A payload is the files of a folder one after the other, then the tree of their names as JSON written backwards. Only the
three files that are requested are looked up in it, so no name in it ever becomes a path on this machine.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_distill.export.targets.coreml.mil_program import MODEL, MilProgram, read_program, read_specification
from reuse_distill.runtime.errors import RdError

PACKAGE = "model.mlpackage"
METADATA = ("metadata.json",)
MODEL_FILE = (PACKAGE, *MODEL.parts)
WEIGHT_FILE = (PACKAGE, *MODEL.parent.parts, "weights", "weight.bin")
LONGEST_TREE = 1 << 20  # bytes; ours take about one thousand


@dataclass(frozen=True)
class Package:
    """A payload's program, and the names of its ports in the order of the delegate's arguments."""

    program: MilProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ranges: dict[str, tuple[tuple[int, int], ...]]  # of inputs with a free axis: least and most along every axis


def read_package(blob: bytes) -> Package:
    """Read one payload; raises RdError where it is not a Core ML package with the ports that it names."""
    nodes = _tree(blob)
    inputs, outputs = _ports(_content(blob, nodes, METADATA))
    with tempfile.TemporaryDirectory(prefix="rd-export-") as folder:
        for parts in (MODEL_FILE, WEIGHT_FILE):
            file = Path(folder).joinpath(*parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_content(blob, nodes, parts))
        program = read_program(Path(folder) / PACKAGE)
        ranges = _ranges(read_specification(Path(folder) / PACKAGE))
    if sorted(inputs) != sorted(program.inputs) or sorted(outputs) != sorted(program.outputs) or program.states:
        raise _damaged("the ports that it names are not those of its program")
    return Package(program, inputs, outputs, ranges)


def _ports(text: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the inputs and of the outputs."""
    try:
        ports = json.loads(text)
        return tuple(map(str, ports["inputNames"])), tuple(map(str, ports["outputNames"]))
    except (ValueError, KeyError, TypeError):
        raise _damaged("its metadata does not name its ports") from None


def _ranges(model: Any) -> dict[str, tuple[tuple[int, int], ...]]:
    ranges = {}
    for port in model.description.input:
        kind = port.type.multiArrayType
        if kind.WhichOneof("ShapeFlexibility") == "shapeRange":
            ranges[port.name] = tuple((axis.lowerBound, axis.upperBound) for axis in kind.shapeRange.sizeRanges)
    return ranges


def _tree(blob: bytes) -> list[dict[str, Any]]:
    """Its files and folders, the root last."""
    text = bytes(blob[-LONGEST_TREE:])[::-1].decode("latin-1")
    try:
        nodes = json.JSONDecoder().raw_decode(text)[0]["nodes"]
    except (ValueError, KeyError, TypeError):
        raise _damaged("there is no tree of names at its end") from None
    if not isinstance(nodes, list) or not nodes:
        raise _damaged("its tree of names is empty")
    return nodes


def _content(blob: bytes, nodes: list[dict[str, Any]], parts: tuple[str, ...]) -> bytes:
    """The bytes of the file at ``parts``, from the root."""
    try:
        node = nodes[-1]
        for part in parts:
            node = nodes[node["children"][part]]
        first, size = int(node["dataRegion"]["offset"]), int(node["dataRegion"]["size"])
    except (KeyError, IndexError, TypeError, ValueError):
        raise _damaged(f"there is no {'/'.join(parts)} in it") from None
    if first < 0 or size < 0 or first + size > len(blob):
        raise _damaged(f"{'/'.join(parts)} lies outside of it")
    return bytes(blob[first : first + size])


def _damaged(what: str) -> RdError:
    return RdError(f"the payload of Core ML's delegate cannot be read: {what}", hint="export the bundle again")
