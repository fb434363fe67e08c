"""Write docs/configuration.md: every setting with its type, default and meaning, from the code.

python docs/configuration.py
"""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from divray.config import HOW_SECTIONS, Config

PAGE = Path(__file__).with_suffix(".md")
HEAD = f"""# Settings

One YAML file. `section.key=value` on the command line stands over it. Unknown keys are errors. `{"` and `".join(HOW_SECTIONS)}`
say *how* a run is made and may change between two calls; all others say *what* is made and identify the run. `divray plan CONFIG`
prints every key with its value. `python docs/configuration.py` writes this page.
"""


def page() -> str:
    top = [(name, field) for name, field in Config.model_fields.items() if not _section(field.annotation)]
    parts = [HEAD, _table("", top)]
    parts += [_part(name, field.annotation) for name, field in Config.model_fields.items() if _section(field.annotation)]
    return "\n".join(parts)


def _part(name: str, section: Any) -> str:
    doc = " ".join((section.__doc__ or "").split())
    inner = [(key, field) for key, field in section.model_fields.items() if _section(field.annotation)]
    rows = [(key, field) for key, field in section.model_fields.items() if not _section(field.annotation)]
    below = [_part(f"{name}.{key}", field.annotation) for key, field in inner]
    return "\n".join([f"## `{name}`\n\n{doc}\n", _table(f"{name}.", rows), *below])


def _table(prefix: str, fields: list[tuple[str, Any]]) -> str:
    rows = [
        f"| `{prefix}{key}` | {_kind(field.annotation)} | {_default(field)} | {_cell(field.description or '')} |" for key, field in fields
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kind(annotation: Any) -> str:
    return _cell(f"`{_type(annotation)}`")


def _type(annotation: Any) -> str:
    """A type as one writes it, without the bounds that are annotated to it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin in (Union, UnionType):
        return " | ".join(map(_type, inner))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if annotation is type(None):
        return "None"
    name = getattr(origin or annotation, "__name__", str(annotation))
    return f"{name}[{', '.join(map(_type, inner))}]" if inner else name


def _default(field: Any) -> str:
    return "required" if field.is_required() else _cell(f"`{field.get_default(call_default_factory=True)!r}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
