"""Plain JSONL: one object a line, in the row form of :mod:`divray.datasets.rows`."""

from __future__ import annotations

from collections.abc import Iterator

from divray.datasets.rows import example_from_row
from divray.datasets.source import Source, parse_json, read_text
from divray.relations import Example


def read_jsonl(source: Source) -> Iterator[Example]:
    """Yield the examples in the order of the file; a row without id is called after its line.

    Raises:
        InputError: A line is no JSON object, or a field of it is wrong.
    """
    # Only line feeds end a line: str.splitlines would cut at characters that JSON strings may hold.
    for number, line in enumerate(read_text(source.path).split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, str(source.path), number)
        if not isinstance(row, dict):
            raise source.error(f"line {number}", "no JSON object", "JSONL has one object {...} a line.")
        yield example_from_row(source, f"line {number}", row, f"line-{number}")
