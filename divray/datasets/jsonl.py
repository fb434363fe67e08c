"""Plain JSONL: one object a line, in the row form of :mod:`divray.datasets.rows`."""

from __future__ import annotations

from collections.abc import Iterator

from divray.datasets.rows import example_from_row
from divray.datasets.source import Source
from divray.relations import Example
from divray.textfiles import json_lines, read_bytes


def read_jsonl(source: Source) -> Iterator[Example]:
    """Yield the examples in the order of the file; a row without id is called after its line.

    Raises:
        InputError: A line is no JSON object, or a field of it is wrong.
    """
    for number, row in json_lines(read_bytes(source.path).split(b"\n"), str(source.path)):
        yield from example_from_row(source, f"line {number}", row, f"line-{number}")
