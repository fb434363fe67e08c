"""``divray.dedup`` is a library of its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import divray.dedup

FOLDER = Path(divray.dedup.__file__).parent


def test_it_imports_nothing_of_divray_but_errors() -> None:
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in getattr(node, "names", ())]
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert isinstance(node, ast.Import) or not node.level, f"{file.name}: relative import"
                own = [name for name in names if name.split(".")[0] == "divray"]
                assert all(name == "divray.errors" or name.startswith("divray.dedup") for name in own), f"{file.name}: {own}"


def test_it_loads_neither_ray_nor_torch() -> None:
    code = "import divray.dedup.files, sys; print(sorted({'ray', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
