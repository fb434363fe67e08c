"""One data file under a reader: where it is, which labels it may hold, and what had to be left out.

Readers follow one rule.  What is *malformed* raises :class:`InputError` with file, row and field.  What
is well-formed but has no place in ``text`` + two disjoint spans (nested, overlapping or discontinuous
entities of a published corpus) is left out and counted in :attr:`Source.skipped`.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divray.errors import InputError
from divray.relations import Example, Span, span_problem


@dataclass
class Source:
    """A file or folder of labelled sentences.

    Attributes:
        path: Where it lies.
        labels: Names that a label may have; ``None`` lets any through.
        skipped: Reason -> number of examples left out so far.
    """

    path: Path
    labels: Collection[str] | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    _ids: set[str] = field(default_factory=set, repr=False)

    def error(self, row: str, problem: str, mend: str) -> InputError:
        return InputError(str(self.path), row, problem, mend)

    def skip(self, reason: str) -> None:
        self.skipped[reason] += 1

    def label(self, row: str, value: Any) -> str:
        """``value`` if it is one of the labels."""
        if not isinstance(value, str) or not value:
            raise self.error(f"{row}, relation", f"{value!r} is no label", "Give the name of a relation as a string.")
        if self.labels is not None and value not in self.labels:
            close = difflib.get_close_matches(value, list(self.labels), n=1)
            hint = f"Did you mean `{close[0]}`? Else add" if close else "Add"
            raise self.error(f"{row}, relation", f"label {value!r} is not among the relations", f"{hint} it to the relations file.")
        return value

    def identity(self, row: str, value: Any, default: str) -> str:
        """``value`` as an id that no earlier row has; ``default`` where it is ``None``."""
        name = default if value is None else str(value)
        if name in self._ids:
            raise self.error(f"{row}, id", f"id {name!r} stands there twice", "Give every example its own id.")
        self._ids.add(name)
        return name

    def string(self, row: str, name: str, value: Any, required: bool = True) -> str:
        """``value`` if it is a string (with something in it, if required); a missing one is ``""``."""
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value.strip()):
            raise self.error(f"{row}, {name}", "missing" if value is None else f"{value!r} is not a text", "Give a string.")
        return value

    def checked(self, row: str, example: Example) -> Example:
        """``example`` if its spans hold and its strings can be written as UTF-8."""
        try:
            "".join((example.text, example.head_type, example.tail_type, example.example_id)).encode()
        except UnicodeEncodeError:
            raise self.error(row, "half a surrogate pair in a string", "Mend the \\u escape.") from None
        problem = span_problem(example.text, example.head, example.tail)
        if problem:
            raise self.error(row, problem, "Mend the spans: [start, end) in characters of the text, disjoint, without blanks.")
        return example


def read_text(path: Path) -> str:
    """The whole file as text, without a byte order mark.

    Raises:
        InputError: There is no such file, it is empty, or it is not UTF-8 (with the line at fault).
    """
    where = str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise InputError(where, "", reason, "Check the path; data files count from task.data.") from None
    if not data.strip():
        raise InputError(where, "", "the file is empty", "Fetch it again, or give another file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(where, f"line {line}", f"invalid UTF-8 (byte {error.start})", "Save the file as UTF-8.") from None


def parse_json(text: str, where: str, line: int = 0) -> Any:
    """``text`` as JSON; ``line`` is its line in the file, 0 where it is the whole file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}"
        raise InputError(where, place, f"no valid JSON ({error.msg})", "The file may be cut short: fetch it again or mend it.") from None
    except RecursionError:
        raise InputError(where, f"line {line or 1}", "JSON nested too deeply", "Give a plain data file.") from None


def read_json(path: Path) -> Any:
    return parse_json(read_text(path), str(path))


def entity_span(spans: list[Span], first: int, last: int) -> Span | None:
    """Characters of tokens ``first`` to ``last`` (inclusive); ``None`` where they are all blank."""
    full = [span for span in spans[first : last + 1] if span[0] < span[1]]
    return (full[0][0], full[-1][1]) if full else None
