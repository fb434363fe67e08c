"""One data file under a reader: where it is, which labels it may hold, and what had to be left out.

Readers follow one rule.  What is *malformed* raises :class:`InputError` with file, row and field.  What
is well-formed but has no place in ``text`` + two disjoint spans (nested, overlapping, discontinuous or blank
entities of a published corpus) is left out and counted in :attr:`Source.skipped`.  Blanks at the ends of an
entity are no part of it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from divray.errors import InputError
from divray.relations import Example, overlap, tightened


@dataclass
class Source:
    """A file or folder of labelled sentences.

    Attributes:
        path: Where it lies.
        labels: Names that a label may have; ``None`` lets any through.
        unlabelled: Labels are not looked at; every sentence has the label ``""``.
        skipped: Reason -> number of examples left out so far.
        left_out: The same for each label that an example had.
    """

    path: Path
    labels: Collection[str] | None = None
    unlabelled: bool = False
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    _ids: set[str] = field(default_factory=set, repr=False)

    def error(self, row: str, problem: str, mend: str) -> InputError:
        return InputError(str(self.path), row, problem, mend)

    def skip(self, reason: str, label: str) -> None:
        self.skipped[reason] += 1
        self.left_out.setdefault(label, Counter())[reason] += 1

    def label(self, row: str, value: Any) -> str:
        """``value`` if it is one of the labels."""
        if self.unlabelled:
            return ""
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

    def tokens(self, row: str, name: str, value: Any) -> list[str]:
        """``value`` if it is a list of strings with something in it."""
        if not isinstance(value, list) or not value or not all(isinstance(token, str) for token in value):
            raise self.error(f"{row}, {name}", "no list of tokens", "Give the sentence as a list of strings.")
        return value

    def position(self, place: str, value: Any, count: int, mend: str) -> int:
        """``value`` if it is the place of one of ``count`` tokens."""
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            raise self.error(place, "missing" if value is None else f"{value!r} is no position among {count} tokens", mend)
        return value

    def usable(self, example: Example) -> Iterator[Example]:
        """``example`` with tight spans; nothing where an entity is blank or the two overlap, which is counted."""
        head, tail = tightened(example.text, example.head), tightened(example.text, example.tail)
        if head is None or tail is None:
            self.skip("blank_entity", example.relation)
        elif overlap(head, tail):
            self.skip("overlapping_entities", example.relation)
        else:
            yield replace(example, head=head, tail=tail)
