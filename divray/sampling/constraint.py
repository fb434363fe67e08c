"""The shape of a completion, as a regular expression that the engine decodes under.

A completion is one sentence after a blank, with the head in ``[ ]`` and the tail in ``{ }`` in
either order, ended by ``.``, ``!`` or ``?`` and a newline.  No repetition is bounded by a character
count, so that no sentence is ended in mid-word: a sentence that runs on is cut by ``max_tokens``
and rejected as such.

A full stop may also stand inside, at most :data:`INNER_STOPS` times around an entity, between digits and
after a capital letter (``3.5``, ``J. Smith``, ``U.S. ships``).  Not after a small letter (``page.com``): a
small model that ends a sentence before it has marked both entities would run on from there.  Nor after words
such as ``Dr``: where the character after a stop decides what the stop is, the tokens that hold one must be
tried one by one, and the grammar takes 3 to 80 times as long (0.03 to 1.4 ms a token with xgrammar 0.2,
against 0.01 ms).  Only constructs that structured-decoding back ends share are used (no look-around, no
back-references).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from divray.relations import Example, render_marked
from divray.sampling.parsing import MAX_ENTITY_WORDS

_BLANKS = r"\n\r\t\x0b\x0c\x85\xa0\u2000-\u200b\u2028\u2029"
_PLAIN = rf"[^\[\]{{}}<>|{_BLANKS}.!?]*"
INNER_STOPS = 3
"""Full stops inside each of the three parts before, between and after the entities; without a bound a small
model that has not marked its second entity yet runs on in lists of numbers."""

_FREE = rf"{_PLAIN}(([0-9]\.[0-9]|[A-Z]\.){_PLAIN}){{0,{INNER_STOPS}}}"
_OPEN = r"([ (\"'-]|[A-Z]\. )"
_WORD = rf"[^ \[\]{{}}<>|{_BLANKS}.,;:!?()\"]+"
_ENTITY = rf"{_WORD}(,? {_WORD}){{0,{MAX_ENTITY_WORDS - 1}}}"
_BEFORE = rf"({_FREE}{_OPEN})?"
_AFTER = rf"([ ,;:'’)\"-]{_FREE})?"
_BETWEEN = rf"( |-|[ ,;:'’)\"-]{_FREE}{_OPEN})"
_END = r"[.!?][\"')]?\n"


def _head(entity: str) -> str:
    return rf"\[{entity}\]"


def _tail(entity: str) -> str:
    return rf"\{{{entity}\}}"


SENTENCE = rf" {_BEFORE}({_head(_ENTITY)}{_BETWEEN}{_tail(_ENTITY)}|{_tail(_ENTITY)}{_BETWEEN}{_head(_ENTITY)}){_AFTER}{_END}"
"""Any one sentence with one head and one tail."""


def list_pattern(first: int, count: int) -> str:
    """``count`` sentences as the lines of a list whose first number, ``first``, stands in the prompt already."""
    return SENTENCE + "".join(rf"{number}\.{SENTENCE}" for number in range(first + 1, first + count))


def completion_of(example: Example) -> str:
    """The completion that the engine would have to return to say ``example``."""
    return f" {render_marked(example)}\n"


def anchored_pattern(example: Example) -> str:
    """The sentence of ``example`` with its connective kept and everything else free.

    The connective is the text between the two entities.  Where that is less than two words (as in
    ``In {1990}, [Ada] was born``) it carries too little, and all the text around the entities is kept.
    """
    (first, second) = sorted((example.head, example.tail))
    entity = {example.head: _head(_ENTITY), example.tail: _tail(_ENTITY)}
    connective = example.text[first[1] : second[0]]
    core = f"{entity[first]}{_literal(connective)}{entity[second]}"
    if len(re.findall(r"\w+", connective)) >= 2:
        return f" {_BEFORE}{core}{_AFTER}{_END}"
    before, after = example.text[: first[0]], example.text[second[1] :]
    return rf" {_literal(before)}{core}{_literal(after)}\n"


def _literal(text: str) -> str:
    """``text`` as itself; ``re.escape`` also escapes blanks, which structured decoding warns about."""
    return re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", text)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def accepts(pattern: str, example: Example) -> bool:
    """Whether the engine could write ``example`` under ``pattern``."""
    return _compiled(pattern).fullmatch(completion_of(example)) is not None


def acceptance(examples: Iterable[Example], pattern: str = SENTENCE) -> float:
    """Share of ``examples`` that ``pattern`` lets through, in [0, 1]; 1.0 for none."""
    verdicts = [accepts(pattern, example) for example in examples]
    return sum(verdicts) / len(verdicts) if verdicts else 1.0
