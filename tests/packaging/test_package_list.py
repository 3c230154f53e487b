"""pyproject.toml: one import name, and every package folder is in the wheel."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_folder_is_listed():
    tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    expected = {"reuse_distill"}
    for name, folder in setuptools["package-dir"].items():
        parts = [path.parent.relative_to(ROOT / folder).parts for path in (ROOT / folder).rglob("__init__.py")]
        expected |= {".".join((name, *rest)) for rest in parts}
    assert set(setuptools["packages"]) == expected


def test_type_checking_sees_the_folders_under_their_import_names():
    links = {link.name: link.resolve() for link in (ROOT / ".types" / "reuse_distill").iterdir()}
    assert links == {name: ROOT / name for name in links}
    assert set(links) >= {"student", "distill", "export", "runtime", "devices"}
