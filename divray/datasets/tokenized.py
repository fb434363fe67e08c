"""TACRED and FewRel, JSON files of tokenized sentences, and the way from tokens back to a sentence.

TACRED (Zhang et al. 2017) is one array of objects ``id, token, subj_start, subj_end, obj_start, obj_end, subj_type, obj_type,
relation`` with inclusive ends; the head is the subject, the tail the object.  Two kinds of patch, told apart by their form:

* Re-TACRED (Stoica et al. 2021): ``{id: label}``, the whole split relabelled.  An example whose id no such
  patch has is dropped and counted (``not_in_patch``), as Re-TACRED itself does.
* TACREV (Alt et al. 2020): ``[{"id": …, "relation": …}, …]``, the corrected labels only.  All others stay.

A patch that holds no id of any file that is read is an error: it belongs to another split.

FewRel (Han et al. 2018) is an object, relation -> list of instances with ``tokens`` and, for head ``h`` and tail ``t``,
``[name, id, [[positions of a mention], …]]``.  The first pair of mentions that are contiguous and disjoint stands for the instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from divray.datasets.source import Source
from divray.errors import InputError
from divray.relations import Example, Span, overlap, touch
from divray.textfiles import read_json

_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"', "\\/": "/"}
_OPENING = frozenset("([{“‘«¡¿")
_CLOSING = frozenset(".,;:!?%)]}”»…°।॥؟،؛۔։")
_CURRENCY = frozenset({"$", "£", "€", "#", "US$", "C$", "A$"})
_CLITICS = frozenset({"s", "re", "m", "ll", "ve", "d"})
_APOSTROPHES = frozenset("'’")
_POSITIONS = "Positions count from 0; ends are inclusive and not before the start."
_MENTIONS = "Give [name, id, [[token positions], …]] with positions from 0."


class Patches:
    """The labels of the JSON files ``paths``; a later one stands over those before it.

    Attributes:
        used: For each patch, how many of the examples read so far it holds.

    Raises:
        InputError: A file is no patch.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.used: dict[Path, int] = dict.fromkeys(paths, 0)
        self._whole: dict[Path, dict[str, str]] = {}
        self._corrected: dict[Path, dict[str, str]] = {}
        for path in paths:
            patch = read_json(path)
            if isinstance(patch, dict):
                self._whole[path] = _checked_patch(path, patch.items())
            elif isinstance(patch, list) and all(isinstance(row, dict) for row in patch):
                self._corrected[path] = _checked_patch(path, [(row.get("id"), row.get("relation")) for row in patch])
            else:
                raise InputError(str(path), "", "no patch", "Give {id: label} (Re-TACRED) or [{id, relation}, …] (TACREV).")

    def drops(self, identity: str) -> bool:
        """Whether the example is to be left out."""
        return bool(self._whole) and not any(identity in labels for labels in self._whole.values())

    def label(self, source: Source, row: str, identity: str, own: Any) -> str:
        """The label of an example, ``own`` where no patch has one, if it is one of the labels."""
        for path, labels in (self._whole | self._corrected).items():
            if identity in labels:
                self.used[path] += 1
                own, source, row = labels[identity], Source(path, source.labels), f"id {identity}"
        return source.label(row, own)

    def check_used(self) -> None:
        """Raise :class:`InputError` for a patch of which no file that was read has an id."""
        for path, used in self.used.items():
            if not used:
                raise InputError(str(path), "id", "holds no id of the files that are read", "Give the patch of this split, or drop it.")


def _checked_patch(path: Path, pairs: Any) -> dict[str, str]:
    labels: dict[str, str] = {}
    for number, (identity, label) in enumerate(pairs, start=1):
        if not isinstance(identity, str) or not isinstance(label, str) or not label:
            raise InputError(str(path), f"entry {number}", f"{identity!r}: {label!r} is no id and label", "Both are strings.")
        if labels.setdefault(identity, label) != label:
            raise InputError(str(path), f"entry {number}", f"id {identity!r} stands there with two labels", "Drop one of them.")
    return labels


def read_tacred(source: Source, patches: Patches | None = None) -> Iterator[Example]:
    """Yield the examples in the order of the file, with the patches' labels.

    Raises:
        InputError: A field is missing or of the wrong kind, a position lies outside, or no id is patched.
    """
    rows = read_json(source.path)
    if not isinstance(rows, list):
        raise source.error("", "no JSON array", "Give a TACRED JSON file: one array of objects.")
    patches, kept = patches or Patches(()), 0
    for number, row in enumerate(rows, start=1):
        place = f"row {number}"
        if not isinstance(row, dict):
            raise source.error(place, "no JSON object", "Every row is an object with `token`, `subj_start`, …")
        identity = source.identity(place, row.get("id"), str(number))
        if patches.drops(identity):
            source.skip("not_in_patch", str(row.get("relation")))
            continue
        kept += 1
        label = patches.label(source, place, identity, row.get("relation"))
        tokens = source.tokens(place, "token", row.get("token"))
        text, spans = detokenize(tokens)
        head, tail = (_entity(spans, *_ends(source, place, row, name, len(tokens))) for name in ("subj", "obj"))
        types = [source.string(place, name, row.get(name), required=False) for name in ("subj_type", "obj_type")]
        yield from source.usable(Example(text, head, tail, label, types[0], types[1], identity))
    if rows and not kept:
        names = ", ".join(str(path) for path in patches.used)
        raise source.error("id", f"no patch holds an id of this file ({names})", "Give the patch of this split too.")


def _ends(source: Source, place: str, row: dict[str, Any], name: str, count: int) -> Span:
    start, end = (source.position(f"{place}, {key}", row.get(key), count, _POSITIONS) for key in (f"{name}_start", f"{name}_end"))
    if start > end:
        raise source.error(f"{place}, {name}_end", "lies before the start", _POSITIONS)
    return start, end


def read_fewrel(source: Source) -> Iterator[Example]:
    """Yield the instances relation by relation; the id is ``relation/position in its list``.

    Raises:
        InputError: A field is missing or of the wrong kind, or a position lies outside.
    """
    relations = read_json(source.path)
    if not isinstance(relations, dict):
        raise source.error("", "no JSON object", "Give a FewRel JSON file: relation -> list of instances.")
    for name, rows in relations.items():
        label = source.label(name, name)
        if not isinstance(rows, list):
            raise source.error(name, "no list of instances", "Every relation has a list.")
        for number, row in enumerate(rows, start=1):
            place = f"{name}, row {number}"
            if not isinstance(row, dict):
                raise source.error(place, "no JSON object", "Every instance is an object with `tokens`, `h` and `t`.")
            tokens = source.tokens(place, "tokens", row.get("tokens"))
            mentions = [_mentions(source, f"{place}, {key}", row.get(key), len(tokens)) for key in ("h", "t")]
            if not all(mentions):
                source.skip("discontinuous_entity", label)
                continue
            text, spans = detokenize(tokens, join_infixes=True)
            pairs = [(_entity(spans, *head), _entity(spans, *tail)) for head, tail in product(*mentions)]
            apart = (pair for pair in pairs if all(start < end for start, end in pair) and not overlap(*pair))
            identity = source.identity(place, None, f"{name}/{number}")
            yield from source.usable(Example(text, *next(apart, pairs[0]), label, example_id=identity))


def _mentions(source: Source, place: str, value: Any, count: int) -> list[Span]:
    """First and last token of each mention that leaves none out."""
    if not isinstance(value, list) or len(value) < 3 or not isinstance(value[2], list) or not value[2]:
        raise source.error(place, "missing" if value is None else "no entity with mentions", _MENTIONS)
    if not all(isinstance(mention, list) and mention for mention in value[2]):
        raise source.error(place, "an empty mention", _MENTIONS)
    found = [sorted(source.position(place, position, count, _MENTIONS) for position in mention) for mention in value[2]]
    return [(places[0], places[-1]) for places in found if places[-1] - places[0] == len(places) - 1]


def _entity(spans: list[Span], first: int, last: int) -> Span:
    """Characters of tokens ``first`` to ``last`` (inclusive); an empty span where they are all blank."""
    full = [span for span in spans[first : last + 1] if span[0] < span[1]]
    return (full[0][0], full[-1][1]) if full else (0, 0)


def detokenize(tokens: Sequence[str], join_infixes: bool = False) -> tuple[str, list[Span]]:
    """Join tokens into a sentence by the rules of English typography, and for other scripts their own signs and their want of blanks.

    Each token keeps its own characters; only the blanks between tokens are chosen.

    Args:
        tokens: Penn Treebank escapes (``-LRB-``, two back-quotes) are undone; blank tokens vanish.
        join_infixes: ``-`` and ``/`` between two words were tokens of their own (spaCy's, as in FewRel).

    Returns:
        ``(text, spans)``, one span a token, in order and disjoint; a vanished token's is empty.
    """
    kept = [token.strip() for token in tokens if token.strip()]
    words = [_ESCAPES.get(token, " ".join(token.split())) for token in kept]
    glued = zip(words, _glue(kept, words, join_infixes), strict=True)
    text, spans = "", []
    after = True
    for token in tokens:
        if token.strip():
            word, (left, right) = next(glued)
            text += word if not text or left or after else f" {word}"
            spans.append((len(text) - len(word), len(text)))
            after = right
        else:
            spans.append((len(text), len(text)))
    return text, spans


def _glue(tokens: list[str], words: list[str], join_infixes: bool) -> Iterator[tuple[bool, bool]]:
    """For each word: does it stick to the one before it, and to the one after it?"""
    open_double = open_single = False
    for index, (token, previous, word, following) in enumerate(zip(tokens, ["", *words], words, [*words[1:], ""], strict=False)):
        if word == '"':
            closes = token == "''" or (open_double and token != "``")
            open_double = not closes
            yield closes, not closes
        elif word == "'":
            open_single = not open_single and not previous.endswith("s") and "'" in words[index + 1 :]
            yield not open_single, open_single
        elif word.lower() == "n't" or (word[0] in _APOSTROPHES and word[1:].lower() in _CLITICS) or word == "’":
            yield True, False
        elif join_infixes and word in ("-", "/"):
            joined = previous[-1:].isalnum() and following[:1].isalnum()
            yield joined, joined
        elif word in _CURRENCY:
            yield False, following[:1].isdigit()
        else:
            closing = all(character in _CLOSING for character in word)
            before, after = touch(previous[-1:], word[0]), touch(word[-1], following[:1])
            yield closing or (bool(previous) and before), word[-1] in _OPENING or (bool(following) and after)
