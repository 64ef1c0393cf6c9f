"""The floors of the package hold: imports go only downward, and heavy libraries stay in their homes.

Imports inside functions count for the layering too; only those under ``if TYPE_CHECKING`` do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "lorasmith"
MODULES = {
    ".".join(("lorasmith", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A module may import modules of its own part and of parts on lower floors. The longest name that fits counts.
FLOORS = {
    "lorasmith": 0,
    "lorasmith.errors": 0,
    "lorasmith.events": 0,
    "lorasmith.starter.paths": 0,
    "lorasmith.files": 1,
    "lorasmith.cache": 2,
    "lorasmith.recipe": 2,
    "lorasmith.run_lock": 2,
    "lorasmith.run_log": 2,
    "lorasmith.run_manifest": 2,
    "lorasmith.run_record": 2,
    "lorasmith.run": 3,
    "lorasmith.run_status": 3,
    "lorasmith.dataset": 3,
    "lorasmith.model": 4,
    "lorasmith.generate": 5,
    "lorasmith.train": 6,  # above generate: a training draws samples
    "lorasmith.evaluate": 6,
    "lorasmith.export": 7,
    "lorasmith.bench": 7,
    "lorasmith.starter": 8,
    "lorasmith.cli": 9,
    "lorasmith.__main__": 10,
}
STANDARD_ONLY = (
    "lorasmith", "lorasmith.errors", "lorasmith.events", "lorasmith.files", "lorasmith.cache", "lorasmith.starter.paths"
)  # fmt: skip
HOMES = {
    "diffusers": (
        "lorasmith.model",
        "lorasmith.generate.samplers",
        "lorasmith.starter.build",
        "lorasmith.bench.reference",
    ),
    "transformers": ("lorasmith.model", "lorasmith.starter.build"),
    "peft": ("lorasmith.model", "lorasmith.bench.reference"),
    "gradio": (),
    "kornia_rs": ("lorasmith.dataset.png",),
    "click": ("lorasmith.cli",),
    "rich": ("lorasmith.cli",),
}
LINES, LINES_AT_MOST = 300, 350


def part(module: str) -> str:
    """Return the entry of FLOORS that a module belongs to."""
    names = module.split(".")
    return next(p for n in range(len(names), 0, -1) if (p := ".".join(names[:n])) in FLOORS)


def within(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in homes)


@cache
def imports(module: str, *, top_only: bool = False) -> frozenset[str]:
    """Return what a module imports, as dotted names; with ``top_only`` what importing it imports."""
    return frozenset(_imports(module, ast.parse(MODULES[module].read_text(encoding="utf-8")), top_only))


def _imports(module: str, node: ast.AST, top_only: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module}:{child.lineno}: imports are absolute"
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                yield name if name in MODULES else str(child.module)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif not (top_only and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            yield from _imports(module, child, top_only)


def own(module: str) -> list[str]:
    return [name for name in imports(module) if name in MODULES]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward(module: str) -> None:
    here = part(module)
    upward = [name for name in own(module) if part(name) != here and FLOORS[part(name)] >= FLOORS[here]]
    assert upward == []


def test_there_are_no_circles() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for name in own(module):
                visit(name, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_in_their_homes(library: str) -> None:
    users = {m for m in MODULES if any(name.split(".")[0] == library for name in imports(m))}
    assert {m for m in users if not within(m, HOMES[library])} == set()


def test_the_ground_floor_is_standard_library_only() -> None:
    import sys

    for module in STANDARD_ONLY:
        foreign = {name.split(".")[0] for name in imports(module)} - set(sys.stdlib_module_names) - {"lorasmith"}
        assert foreign == set(), module


def test_torch_is_never_in_the_data_and_not_at_the_top_of_the_command_line() -> None:
    def users(parts: tuple[str, ...], top_only: bool) -> set[str]:
        return {m for m in MODULES if within(m, parts) and "torch" in {n.split(".")[0] for n in reach(m, top_only)}}

    def reach(module: str, top_only: bool) -> set[str]:
        """What a module imports itself and through lorasmith's other modules."""
        found: set[str] = set()
        stack = [module]
        while stack:
            for name in imports(stack.pop(), top_only=top_only) - found:
                found.add(name)
                stack += [name] if name in MODULES else []
        return found

    assert users(("lorasmith.dataset", "lorasmith.recipe", "lorasmith.run"), top_only=False) == set()
    assert users(("lorasmith.cli",), top_only=True) == set()


@pytest.mark.parametrize("module", [m for m, path in MODULES.items() if path.name == "__init__.py"])
def test_packages_import_nothing_by_themselves(module: str) -> None:
    assert imports(module) == set()


def test_printing_is_the_command_lines_work() -> None:
    printers = [
        f"{module}:{node.lineno}"
        for module, path in MODULES.items()
        if not within(module, ("lorasmith.cli", "lorasmith.starter.build"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printers == []


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module: str) -> None:
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= LINES_AT_MOST, f"{lines} lines; aim for {LINES}"
