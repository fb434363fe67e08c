"""The laws of the house: imports go down only, own modules are imported at the top, other packages by their public names."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import divray

FOLDER = Path(divray.__file__).parent

LEVELS = (
    ("errors", "relations", "schemas", "quickstart"),
    ("console", "dedup", "layout", "sections", "spans", "textfiles"),
    ("run_folder",),
    ("config", "locks", "scan", "texts"),
    ("stages", "models", "measures", "review"),
    ("datasets", "embeddings", "resources"),
    ("cluster", "engines", "alignment"),
    ("prompts", "report"),
    ("preferences", "sampling", "scoring", "extraction"),
    ("selection",),
    ("pipeline", "explain", "export"),
    ("commands",),
    ("cli",),
)
"""Modules and packages, the lowest level first; the longest name counts.  A module imports of lower levels and of its own package."""

PRIVATE = {"alignment.private": "what TRL and DeepSpeed have no public name for"}
"""Modules that may use other packages' private names, and why."""

NAMED_TUPLE = {"_fields", "_replace", "_asdict", "_make"}
PUBLIC_ALL_THE_SAME = {"os._exit"}
"""Documented names that begin with an underscore."""

MODULES = {".".join(file.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__"): file for file in FOLDER.rglob("*.py")}
MODULES.pop("__init__")
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


def unit_of(module: str) -> str:
    """The longest entry of :data:`LEVELS` that ``module`` belongs to."""
    parts = module.split(".")
    found = next((name for size in range(len(parts), 0, -1) if (name := ".".join(parts[:size])) in LEVEL), None)
    assert found, f"divray/{module}: give it a level in LEVELS"
    return found


def own_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of each import of divray's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name.removeprefix("divray.")) for one in node.names if one.name.startswith("divray."))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            package = (node.module or "").removeprefix("divray").lstrip(".")
            if (node.module or "").split(".")[0] == "divray":
                for one in node.names:
                    inner = f"{package}.{one.name}".lstrip(".")
                    yield node.lineno, inner if inner in MODULES else package


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in MODULES.items()}


def test_imports_go_down_only(trees: dict[str, ast.Module]) -> None:
    up = []
    for module, tree in trees.items():
        unit = unit_of(module)
        for line, other in own_imports(tree):
            if unit_of(other).split(".")[0] != unit.split(".")[0] and LEVEL[unit_of(other)] >= LEVEL[unit]:
                up.append(f"{module}, line {line}: {other} is no level below")
    assert not up


def test_own_modules_are_imported_at_the_top(trees: dict[str, ast.Module]) -> None:
    found = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [f"{module}, line {line}: {other}" for line, other in own_imports(node)]
    assert not found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def test_other_packages_are_used_by_their_public_names(trees: dict[str, ast.Module]) -> None:
    found = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [one.name for one in node.names] + [getattr(node, "module", None) or ""]
                found += [f"{module}: {name}" for name in names if module not in PRIVATE and any(map(is_private, name.split(".")))]
            elif isinstance(node, ast.Attribute) and is_private(node.attr) and module not in PRIVATE:
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if not own and node.attr not in NAMED_TUPLE and ast.unparse(node) not in PUBLIC_ALL_THE_SAME:
                    found.append(f"{module}: {ast.unparse(node)}")
    assert not found


def test_the_exceptions_are_still_needed() -> None:
    from trl import DPOTrainer
    from trl.kernels import chunked_logprob

    assert "prompt_ids" not in inspect.getsource(DPOTrainer._prepare_dataset).partition("Tokenize the dataset")[0]
    assert '("cuda", "xpu")' in inspect.getsource(chunked_logprob._use_triton)
