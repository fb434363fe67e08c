"""Write docs/configuration.md: every setting with its type, default and meaning, from the code.

python docs/configuration.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from divray.config import HOW_SECTIONS, Config

PAGE = Path(__file__).with_suffix(".md")
HEAD = f"""# Settings

One YAML file. `section.key=value` on the command line stands over it. Unknown keys are errors. `{"` and `".join(HOW_SECTIONS)}`
say *how* a run is made and may change between two calls; all others say *what* is made and identify the run. `divray plan CONFIG`
prints every key with its value. `python docs/configuration.py` writes this page.
"""


WORDS = {"string": "text", "null": "null", "boolean": "true or false"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page() -> str:
    parts = [HEAD, _table("", Config)]
    parts += [_part(name, field.annotation) for name, field in Config.model_fields.items() if _section(field.annotation)]
    return "\n".join(parts)


def _part(name: str, section: Any) -> str:
    doc = " ".join((section.__doc__ or "").split())
    inner = [(key, field) for key, field in section.model_fields.items() if _section(field.annotation)]
    below = [_part(f"{name}.{key}", field.annotation) for key, field in inner]
    return "\n".join([f"## `{name}`\n\n{doc}\n", _table(f"{name}.", section), *below])


def _table(prefix: str, section: Any) -> str:
    kinds = section.model_json_schema()["properties"]
    rows = [
        f"| `{prefix}{key}` | {_cell(_kind(kinds[key]))} | {_default(field)} | {_cell(field.description or '')} |"
        for key, field in section.model_fields.items()
        if not _section(field.annotation)
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kind(schema: dict[str, Any]) -> str:
    """The type in words, with its bounds."""
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if parts := schema.get("anyOf"):
        return " or ".join(_kind(part) for part in parts)
    kind = schema.get("type", "object")
    if kind == "array":
        of = schema.get("prefixItems", [schema.get("items", {})])
        return f"list of {' and '.join(_kind(part) for part in of)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {_kind(values)}" if isinstance(values, dict) and values else "mapping"
    bounds = [f"{sign} {schema[name]}" for name, sign in BOUNDS.items() if name in schema]
    return " ".join([WORDS.get(kind, kind), ", ".join(bounds)]).strip()


def _default(field: Any) -> str:
    return "required" if field.is_required() else _cell(f"`{field.get_default(call_default_factory=True)!r}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
