"""A file name and a class name stand once in the whole house: what a search or a traceback names is unambiguous."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("runtime", "devices", "student", "distill", "export", "report", "demo", "src")


def duplicates(places: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The names with more than one place."""
    return {name: sorted(where) for name, where in places.items() if len(where) > 1}


def classes(source: str) -> list[str]:
    """Public classes of a module, those inside functions too."""
    return re.findall(r"(?m)^\s*class ([A-Za-z]\w*)[:(]", source)


def modules() -> list[Path]:
    return [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class A: ...\nclass _B: ...", ["A"]),
        ("def make():\n    class Logger: ...\n    return Logger", ["Logger"]),
        ("A = int", []),
    ],
)
def test_classes_are_listed(source: str, expected: list[str]) -> None:
    assert classes(source) == expected


def test_names_in_two_places_are_duplicates() -> None:
    assert duplicates({"run.py": ["demo", "distill"], "model.py": ["student"]}) == {"run.py": ["demo", "distill"]}


def test_file_names_are_unique() -> None:
    places = defaultdict(list)
    for file in modules():
        if file.name not in ("__init__.py", "__main__.py"):
            places[file.name].append(str(file.relative_to(ROOT)))
    assert len(places) > 200
    assert duplicates(places) == {}


def test_class_names_are_unique() -> None:
    places = defaultdict(list)
    for file in modules():
        for name in classes(file.read_text(encoding="utf-8")):
            places[name].append(str(file.relative_to(ROOT)))
    assert len(places) > 200
    assert duplicates(places) == {}
