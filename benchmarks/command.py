"""What the commands of the benchmarks share: options, the folder of artifacts, the table of times, the JSON."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.timing import shown


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every timing has; ``doc``: the module's docstring."""
    found = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    found.add_argument("--json", type=Path, help="write every figure here")
    found.add_argument("--repeats", type=int, default=12)
    found.add_argument("--work", type=Path, help="keep the artifacts here and use them again")
    return found


def workplace(args: argparse.Namespace) -> Path:
    """The folder for artifacts: the one that was requested, or a temporary one."""
    work: Path = args.work or Path(tempfile.mkdtemp(prefix="rd-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    return work


def write_json(result: Any, file: Path | None) -> None:
    """Every figure, where a file was requested."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def print_times(title: str, rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """One row per contender: its ``rtf``, then for every key of ``columns`` the ratio (or the text) under its head."""
    width = 2 + max(len(name) for name in (title, *rows))
    print(f"\n{title:{width}}{'RTF':>9}   {''.join(f'{head:28}' for head in columns.values()).rstrip()}")
    for name, row in rows.items():
        cells = (row[key] if isinstance(row[key], str) else shown(row[key]) for key in columns)
        print(f"{name:{width}}{row['rtf']['median']:9.4f}   {''.join(f'{cell:28}' for cell in cells)}".rstrip())
