"""No module imports another that imports it, in whatever way round: each can be read, and tested, on its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("runtime", "devices", "student", "distill", "export", "report")
CODE = """
import json, sys
import grimp
rooms = [f"reuse_distill.{room}" for room in sys.argv[1:]]
# What is imported for annotations only is never run.
graph = grimp.build_graph(*rooms, exclude_type_checking_imports=True, cache_dir=None)
print(json.dumps({module: sorted(graph.find_modules_directly_imported_by(module)) for module in graph.modules}))
"""


def imports(*rooms: str) -> dict[str, list[str]]:
    """Module -> modules that it imports, inside functions too."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".types")}
    run = [sys.executable, "-c", CODE, *rooms]
    done = subprocess.run(run, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    graph: dict[str, list[str]] = json.loads(done.stdout)
    return graph


def circles(graph: dict[str, list[str]]) -> set[frozenset[str]]:
    """Strongly connected sets of more than one module (Tarjan's algorithm, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = set()
    for root in graph:
        work = [(root, iter(graph[root]))] if root not in index else []
        while work:
            node, targets = work[-1]
            if node not in index:
                index[node] = low[node] = len(index)
                stack.append(node)
            for target in targets:
                if target not in index:
                    work.append((target, iter(graph.get(target, ()))))
                    break
                if target in stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    at = stack.index(node)
                    if len(stack) - at > 1:
                        found.add(frozenset(stack[at:]))
                    del stack[at:]
    return found


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, set()),
        ({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}, {frozenset("abc")}),
        ({"a": ["b"], "b": ["a", "c"], "c": ["d"], "d": ["c"]}, {frozenset("ab"), frozenset("cd")}),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, set()),
    ],
)
def test_circles_are_found(graph: dict[str, list[str]], expected: set[frozenset[str]]) -> None:
    assert circles(graph) == expected


def test_there_are_no_import_circles() -> None:
    pytest.importorskip("grimp")
    rooms = [room for room in ROOMS if (ROOT / room / "__init__.py").is_file()]
    graph = imports(*rooms)
    assert len(graph) > 100
    assert circles(graph) == set()
