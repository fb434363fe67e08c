"""SemEval-2010 Task 8 (Hendrickx et al. 2010) in its released TXT form.

A block is a numbered sentence with ``<e1>`` and ``<e2>``, its label, and a comment; the head is always
e1 and the tail e2, so that the direction lives in the label.  A test file without labels is read with
the key beside it (``TEST_FILE.txt`` and ``TEST_FILE_KEY.TXT``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from divray.datasets.source import Source
from divray.errors import InputError
from divray.relations import Example, Span
from divray.textfiles import read_text

_SENTENCE = re.compile(r"(\d+)\t(.*)")
_TAG = re.compile(r"</?e[12]>")
_TAGS = ["<e1>", "</e1>", "<e2>", "</e2>"]


@dataclass
class _Block:
    line: int
    number: str
    sentence: str
    label: str | None = None


def read_semeval(source: Source) -> Iterator[Example]:
    """Yield the sentences in the order of the file.

    Raises:
        InputError: A line that is none of the three kinds, a missing or unknown label, a missing tag.
    """
    blocks = _blocks(source)
    if all(block.label is None for block in blocks):
        key = _key(source)
        for block in blocks:
            block.label = key.get(block.number)
    for block in blocks:
        row = f"line {block.line} (sentence {block.number})"
        if block.label is None:
            raise source.error(f"{row}, relation", "no label", "Give the file with labels, or complete the key; the file may be cut short.")
        label = source.label(row, block.label)
        identity = source.identity(row, block.number, block.number)
        entities = _entities(source, row, label, block.sentence)
        if entities is not None:
            yield from source.usable(Example(*entities, label, example_id=identity))


def _blocks(source: Source) -> list[_Block]:
    blocks: list[_Block] = []
    commented = True
    for number, line in enumerate(read_text(source.path).split("\n"), start=1):
        line = line.strip()
        sentence = _SENTENCE.fullmatch(line)
        if not line:
            continue
        if sentence:
            blocks.append(_Block(number, sentence[1], sentence[2].strip()))
            commented = False
        elif line.startswith("Comment:") and blocks:
            commented = True
        elif blocks and blocks[-1].label is None and not commented:
            blocks[-1].label = line
        else:
            mend = 'A block is `number<TAB>"sentence"`, a label line and a `Comment:` line.'
            raise source.error(f"line {number}", "neither a sentence, nor a label, nor a comment", mend)
    return blocks


def _key(source: Source) -> dict[str, str]:
    wanted = f"{source.path.stem}_key.txt".lower()
    for path in sorted(source.path.parent.iterdir()):
        if path.name.lower() == wanted:
            rows = [line.split("\t") for line in read_text(path).split("\n") if line.strip()]
            numbers = Counter(row[0].strip() for row in rows)
            if twice := [number for number, count in numbers.items() if count > 1]:
                raise InputError(str(path), f"sentence {twice[0]}", "stands there twice", "Give every sentence one label.")
            return {row[0].strip(): row[-1].strip() for row in rows}
    raise source.error("", "holds no labels", f"Give TEST_FILE_FULL.TXT, or lay the key {source.path.stem}_KEY.TXT beside it.")


def _entities(source: Source, row: str, label: str, sentence: str) -> tuple[str, Span, Span] | None:
    """``(text, e1, e2)``, or ``None`` for a sentence that was skipped and counted."""
    if len(sentence) > 1 and sentence[0] == sentence[-1] == '"':
        sentence = sentence[1:-1]
    sentence = sentence.strip()
    tags = _TAG.findall(sentence)
    if missing := [tag for tag in _TAGS if tag not in tags]:
        raise source.error(f"{row}, sentence", f"{missing[0]} is missing", "Mark both entities; the file may be cut short.")
    if tags not in (_TAGS, _TAGS[2:] + _TAGS[:2]):
        source.skip("discontinuous_entity" if len(tags) > len(_TAGS) else "overlapping_entities", label)
        return None
    text, starts = "", {}
    for piece, tag in zip(_TAG.split(sentence), [*tags, ""], strict=True):
        text += piece
        starts[tag] = len(text)
    return text, (starts["<e1>"], starts["</e1>"]), (starts["<e2>"], starts["</e2>"])
