"""Imports point downwards only: user API -> balancers -> fork -> sources -> ops -> backends."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastmtl

PACKAGE = Path(fastmtl.__file__).parent
# From top to bottom. A module may import its own layer and lower ones.
LAYERS = ["fastmtl", "fastmtl.balancers", "fastmtl.fork", "fastmtl.sources", "fastmtl.ops", "fastmtl.backends"]
SHARED = "fastmtl.backends.contract"  # what every layer may know of the backends
# Algorithms written once, on primitives that the backend hands in: backends and ops know them, they know no backend.
ALGORITHMS = "fastmtl.backends.layer_moments"
COMPILED = "fastmtl.backends.compiled"  # what the backends of compiled libraries share


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["fastmtl", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
# What knows nothing, or is used by nobody below.
APART = {"fastmtl.version", "fastmtl.__main__"} | {name for name in MODULES if name.startswith("fastmtl.testing")}


def imports_of(name: str) -> set[str]:
    """Modules of the package that ``name`` imports, anywhere in its text."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            # `from fastmtl import ops` imports a module, `from fastmtl.sources.base import sums` a name of one
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return {module for module in found if module.split(".")[0] == "fastmtl"}


def layer_of(name: str) -> int:
    for level in range(len(LAYERS) - 1, 0, -1):
        if name == LAYERS[level] or name.startswith(LAYERS[level] + "."):
            return level
    assert name == "fastmtl", f"{name} belongs to no layer: add it to LAYERS"
    return 0


INNER = [name for name in MODULES if name not in APART]


@pytest.mark.parametrize("name", INNER)
def test_imports_point_downwards(name: str) -> None:
    upwards = {module for module in imports_of(name) - APART if layer_of(module) < layer_of(name)}
    assert not upwards, f"{name} imports from above: {upwards}"


@pytest.mark.parametrize("name", [name for name in INNER if 0 < layer_of(name) < LAYERS.index("fastmtl.ops")])
def test_only_ops_know_the_backends(name: str) -> None:
    known = {module for module in imports_of(name) if layer_of(module) == LAYERS.index("fastmtl.backends")}
    assert known <= {SHARED}, f"{name} imports {known - {SHARED}}"


@pytest.mark.parametrize("name", INNER)
def test_nothing_below_imports_what_stands_apart(name: str) -> None:
    assert imports_of(name) & APART <= ({"fastmtl.version"} if name == "fastmtl" else set())


def backend_of(name: str) -> str:
    """The backend that a module belongs to: a module or a package of `fastmtl.backends`."""
    return ".".join(name.split(".")[:3])


def test_backends_do_not_know_each_other() -> None:
    names = [name for name in MODULES if name.startswith("fastmtl.backends.") and name != SHARED]
    backends = {f"fastmtl.backends.{name}" for name in ("reference", "cpp", "triton", "cuda")}
    assert backends | {ALGORITHMS, COMPILED} == {backend_of(name) for name in names}
    for name in names:
        known = {backend_of(module) for module in imports_of(name) & set(names)}
        shared = {ALGORITHMS, COMPILED} if backend_of(name) in backends else set()
        assert known <= {backend_of(name)} | shared, name


def test_the_imports_are_seen() -> None:
    """The reader of imports finds what is known to be there."""
    assert "fastmtl.fork" in imports_of("fastmtl.balancers.base")
    assert "fastmtl.ops" in imports_of("fastmtl.fork")
    assert "fastmtl.backends.reference" in imports_of("fastmtl.ops.selection")
