"""No module imports another that imports it, in whatever way round: each can be read, and tested, on its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Folder -> name under which it is imported.
ROOMS = {room: f"reuse_distill.{room}" for room in ("runtime", "devices", "student", "distill", "export", "report")}
FOLDERS = {**ROOMS, "demo": "demo", "benchmarks": "benchmarks", "src/reuse_distill": "reuse_distill"}


def modules(root: Path, folders: dict[str, str]) -> dict[str, Path]:
    """Module -> its file; a package is its __init__.py."""
    names = {}
    for folder, prefix in folders.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            names[".".join((prefix, *(part for part in parts if part != "__init__")))] = file
    return names


def run_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run on import or in functions: all but the blocks of ``if TYPE_CHECKING``."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            left += node.orelse
        else:  # imports are statements: no expression is looked into
            left += [child for child in ast.iter_child_nodes(node) if isinstance(child, (ast.stmt, ast.excepthandler))]


def targets(node: ast.AST) -> Iterator[str]:
    """Names that an import statement may stand for; ``from package import module`` runs the package too."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(files: dict[str, Path]) -> dict[str, list[str]]:
    """Module -> modules that it imports, inside functions too."""
    graph = {}
    for name, file in files.items():
        named = {to for node in run_nodes(ast.parse(file.read_text(encoding="utf-8"))) for to in targets(node)}
        graph[name] = sorted((named & files.keys()) - {name})
    return graph


def circles(graph: dict[str, list[str]]) -> set[frozenset[str]]:
    """Strongly connected sets of more than one module (Tarjan's algorithm, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    sets = set()
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
                        sets.add(frozenset(stack[at:]))
                    del stack[at:]
    return sets


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": ["b"], "b": ["c"], "c": []}, set()),
        ({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}, {frozenset("abc")}),
        ({"a": ["b"], "b": ["a", "c"], "c": ["d"], "d": ["c"]}, {frozenset("ab"), frozenset("cd")}),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, set()),
    ],
)
def test_circles_are_listed(graph: dict[str, list[str]], expected: set[frozenset[str]]) -> None:
    assert circles(graph) == expected


def test_a_package_that_imports_a_module_that_imports_it_back_is_a_circle(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/__init__.py").write_text("from p.a import A")
    (tmp_path / "p/a.py").write_text("from p import b\nif TYPE_CHECKING:\n    import p.c")
    (tmp_path / "p/b.py").write_text("")
    (tmp_path / "p/c.py").write_text("def later():\n    import p.a")
    graph = imports(modules(tmp_path, {"p": "p"}))
    assert graph == {"p": ["p.a"], "p.a": ["p", "p.b"], "p.b": [], "p.c": ["p.a"]}
    assert circles(graph) == {frozenset({"p", "p.a"})}


def test_there_are_no_import_circles() -> None:
    graph = imports(modules(ROOT, FOLDERS))
    assert len(graph) > 250
    assert circles(graph) == set()
