"""The shape of a completion, as a regular expression that the engine decodes under.

A completion is one sentence after a blank, with the head in ``[ ]`` and the tail in ``{ }`` in
either order, ended by ``.``, ``!`` or ``?`` and a newline.  The words before and between the entities are
bounded (:class:`Shape`), so that a model comes to its second entity; no repetition is bounded by a character
count and nothing after the second entity is bounded by words, so that no sentence is ended in mid-word or
mid-phrase: one that runs on is cut by ``max_tokens`` and rejected as such.

A full stop may also stand inside, between digits and after a capital letter (``3.5``, ``J. Smith``, ``U.S.
ships``).  Not after a small letter (``page.com``): a small model that ends a sentence before it has marked both
entities would run on from there.  Nor after words such as ``Dr``: where the character after a stop decides what
the stop is, the tokens that hold one must be tried one by one, and the grammar takes up to 20 times as long
(up to 1.4 ms a token with xgrammar 0.2, against 0.06 ms).  Only constructs that structured-decoding back ends
share are used (no look-around, no back-references).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from divray.relations import Example, render_marked
from divray.sampling.parsing import MAX_ENTITY_WORDS

_BLANKS = r"\n\r\t\x0b\x0c\x85\xa0\u2000-\u200b\u2028\u2029"
_PLAIN = rf"[^\[\]{{}}<>|{_BLANKS}.!?]*"
_UNBROKEN = rf"[^ \[\]{{}}<>|{_BLANKS}.!?]*"
INNER_STOPS = 3
"""Full stops after the second entity, and capital letters with one (``U.S.A.``) in a word before it, which may have
two between digits; without a bound a small model runs on in lists of numbers."""

_FREE = rf"{_PLAIN}(([0-9]\.[0-9]|[A-Z]\.){_PLAIN}){{0,{INNER_STOPS}}}"
_FREE_WORD = rf"{_UNBROKEN}(([A-Z]\.){{1,{INNER_STOPS}}}{_UNBROKEN}|([0-9]\.[0-9]{_UNBROKEN}){{1,2}})?"
_OPEN = r"([ (\"'-]|[A-Z]\. )"
_LETTERS = rf"[^ \[\]{{}}<>|{_BLANKS}.,;:!?()\"]+"
_WORD = rf"({_LETTERS}|\"{_LETTERS}\")"
_ENTITY = rf"{_WORD}(,? {_WORD}){{0,{MAX_ENTITY_WORDS - 1}}}"
_AFTER = rf"([ ,;:'’)\"-]{_FREE})?"
_END = r"[.!?][\"')]?\n"


@dataclass(frozen=True, slots=True)
class Shape:
    """Where a sentence has its entities: the most words before the first, and between the two."""

    before: int = 30
    between: int = 30


LEAST_WORDS, SLACK = 10, 1.5


def shape_of(seeds: Iterable[Example]) -> Shape:
    """Room for every seed's shape: half as many words again as the longest has, and no less than ``LEAST_WORDS``.

    Without it a small model often marks one entity and never comes to the other: a quarter of its completions.
    """
    before = between = 0
    for seed in seeds:
        first, second = sorted((seed.head, seed.tail))
        before = max(before, len(seed.text[: first[0]].split()))
        between = max(between, len(seed.text[first[1] : second[0]].split()))
    return Shape(*(max(LEAST_WORDS, ceil(SLACK * words)) for words in (before, between)))


def _head(entity: str) -> str:
    return rf"\[{entity}\]"


def _tail(entity: str) -> str:
    return rf"\{{{entity}\}}"


def _words(most: int) -> str:
    return rf"{_FREE_WORD}( {_FREE_WORD}){{0,{most - 1}}}"


def _before(shape: Shape) -> str:
    return rf"({_words(shape.before)}{_OPEN})?"


def sentence_pattern(shape: Shape) -> str:
    """Any one sentence of that shape with one head and one tail, in either order."""
    head, tail = _head(_ENTITY), _tail(_ENTITY)
    between = rf"( |-|[ ,;:'’)\"-]{_words(shape.between)}{_OPEN})"
    return rf" {_before(shape)}({head}{between}{tail}|{tail}{between}{head}){_AFTER}{_END}"


def list_pattern(sentence: str, first: int, count: int) -> str:
    """``count`` sentences of pattern ``sentence`` as lines of a list whose first number, ``first``, stands in the prompt already."""
    return sentence + "".join(rf"{number}\.{sentence}" for number in range(first + 1, first + count))


def completion_of(example: Example) -> str:
    """The completion that the engine would have to return to say ``example``."""
    return f" {render_marked(example)}\n"


def anchored_pattern(example: Example, shape: Shape) -> str:
    """The sentence of ``example`` with its connective kept and everything else free.

    The connective is the text between the two entities.  Where that says nothing (less than two words and
    none of four letters, as in ``In {1990}, [Ada] was born``), all the text around the entities is kept, and the
    sentence may go on.
    """
    (first, second) = sorted((example.head, example.tail))
    entity = {example.head: _head(_ENTITY), example.tail: _tail(_ENTITY)}
    connective = example.text[first[1] : second[0]]
    core = f"{entity[first]}{_literal(connective)}{entity[second]}"
    words = re.findall(r"\w+", connective)
    if len(words) >= 2 or any(len(word) >= 4 for word in words):
        return f" {_before(shape)}{core}{_AFTER}{_END}"
    before, after = example.text[: first[0]], re.sub(r"[.!?][\"')]?$", "", example.text[second[1] :])
    return rf" {_literal(before)}{core}{_literal(after)}{_AFTER}{_END}"


def _literal(text: str) -> str:
    """``text`` as itself; ``re.escape`` also escapes blanks, which structured decoding warns about."""
    return re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", text)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def accepts(pattern: str, example: Example) -> bool:
    """Whether the engine could write ``example`` under ``pattern``."""
    return _compiled(pattern).fullmatch(completion_of(example)) is not None


def acceptance(examples: Iterable[Example], pattern: str) -> float:
    """Share of ``examples`` that ``pattern`` lets through, in [0, 1]; 1.0 for none."""
    verdicts = [accepts(pattern, example) for example in examples]
    return sum(verdicts) / len(verdicts) if verdicts else 1.0
