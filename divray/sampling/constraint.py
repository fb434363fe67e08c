"""The shape of a completion, as a regular expression that the engine decodes under.

A completion is one sentence after a blank, with the head in ``[ ]`` and the tail in ``{ }`` in
either order, ended by ``.``, ``!`` or ``?`` and a newline.  The words before and between the entities are
bounded (:class:`Shape`), so that a model comes to its second entity; no repetition is bounded by a character
count and nothing after the second entity is bounded by words, so that no sentence is ended in mid-word or
mid-phrase: one that runs on is cut by ``max_tokens`` and rejected as such.

A full stop may also stand inside, in a short number and after a capital letter (``3.5``, ``J. Smith``, ``U.S.
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
_NEVER = rf"\[\]{{}}<>|{_BLANKS} .!?"
INNER_STOPS = 3
"""Capital letters with a full stop in a word (``U.S.A.``); of numbers with one it has two at most.  Without a bound, and with
stops in longer numbers, a small model ends a sentence after a year and runs on in digits."""
_NUMBER = r"[0-9]{1,3}\.[0-9]{1,3}"
_OPEN = r"( ?[(\"'-]| )"
_NO_FIRST = r"'’‘/&%+@…–—\-"
_AFTER_ENTITY = r"[,;:'’)\"-]"
_END = r"[.!?][\"')]?\n"

RARE_SIGNS = "\\_*#=~^`"
"""Signs that few sentences have, and that a small model puts into one of ten; they are let through where a seed has them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a sentence may look like.

    Attributes:
        before, between: The most words before the first entity, and between the two.
        signs: Those of :data:`RARE_SIGNS` that it may have.
    """

    before: int = 30
    between: int = 30
    signs: str = ""


LEAST_WORDS, SLACK = 10, 1.5

FREE_WORDS = 3
"""Words at least that follow an anchor which ended its own sentence, and words at most that one has before it more than in its own."""


def shape_of(seeds: Iterable[Example]) -> Shape:
    """Room for every seed's shape: half as many words again as the longest has, and no less than ``LEAST_WORDS``.

    Without it a small model often marks one entity and never comes to the other: a quarter of its completions.
    """
    before = between = 0
    found: set[str] = set()
    for seed in seeds:
        first, second = sorted((seed.head, seed.tail))
        before = max(before, len(seed.text[: first[0]].split()))
        between = max(between, len(seed.text[first[1] : second[0]].split()))
        found.update(seed.text)
    before, between = (max(LEAST_WORDS, ceil(SLACK * words)) for words in (before, between))
    return Shape(before, between, "".join(sign for sign in RARE_SIGNS if sign in found))


def _character(shape: Shape, but: str = "") -> str:
    """One character of a sentence, no blank and none of ``but``."""
    barred = "".join(sign for sign in RARE_SIGNS if sign not in shape.signs).replace("\\", r"\\")
    return rf"[^{_NEVER}{barred}{but}]"


def _entity(shape: Shape) -> str:
    inside = ',;:()"'
    letters = f"{_character(shape, inside)}+"
    first = f"{_character(shape, inside + _NO_FIRST)}({letters})?"
    word, first_word = (rf"({one}|\"{one}\")" for one in (letters, first))
    return rf"{first_word}(,? {word}){{0,{MAX_ENTITY_WORDS - 1}}}"


def _head(entity: str) -> str:
    return rf"\[{entity}\]"


def _tail(entity: str) -> str:
    return rf"\{{{entity}\}}"


def _word(shape: Shape) -> str:
    any_, last = _character(shape), _character(shape, "0-9")
    initials = rf"([A-Z]\.){{1,{INNER_STOPS}}}"
    number = rf"(({any_}*{last})?{_NUMBER}){{1,2}}({last}{any_}*)?"
    return rf"({any_}+({initials}{any_}*)?|{initials}{any_}*|{number})"


def _before(shape: Shape, most: int) -> str:
    word = _word(shape)
    return rf"({word}?( {word}){{0,{most - 1}}}{_OPEN})?"


def _continuation(shape: Shape, most: int | None = None, least: int = 0) -> str:
    """How a sentence goes on after an entity: maybe a sign, then words with one blank before each, so many at least and at most."""
    word = _word(shape)
    return rf"({_AFTER_ENTITY}{word}?)?( {word}){{{least},{'' if most is None else most}}}"


def _other_continuation(shape: Shape, after: str) -> str:
    """A continuation that begins otherwise than ``after``; the sentence may end there, unless ``after`` is empty."""
    begins = re.match(rf"{_AFTER_ENTITY}? (\S+)", after)
    if begins:
        return rf"({_AFTER_ENTITY}? {_other_word(shape, begins[1])}( {_word(shape)})*)?"
    return _continuation(shape, least=0 if after else FREE_WORDS)


def _other_word(shape: Shape, word: str) -> str:
    """Any word but this one."""
    letters = f"{_character(shape)}+"
    others = letters  # of those that begin with ``word``: longer ones
    for place in reversed(range(len(word))):
        others = f"{_literal(word[place])}{others}|{_character(shape, re.escape(word[place]))}({letters})?"
        others = f"({others})?" if place else f"({others})"  # one that ends in mid-word is another, too
    return others


def sentence_pattern(shape: Shape) -> str:
    """Any one sentence of that shape with one head and one tail, in either order."""
    head, tail = _head(_entity(shape)), _tail(_entity(shape))
    between = rf"{_continuation(shape, shape.between)}{_OPEN}"
    return rf" {_before(shape, shape.before)}({head}{between}{tail}|{tail}{between}{head}){_continuation(shape)}{_END}"


def list_pattern(sentence: str, first: int, count: int) -> str:
    """``count`` sentences of pattern ``sentence`` as lines of a list whose first number, ``first``, stands in the prompt already."""
    return sentence + "".join(rf"{number}\.{sentence}" for number in range(first + 1, first + count))


def completion_of(example: Example) -> str:
    """The completion that the engine would have to return to say ``example``."""
    return f" {render_marked(example)}\n"


def anchored_pattern(example: Example, shape: Shape) -> str:
    """The sentence of ``example`` with its connective kept and everything else free.

    The connective is the text between the two entities.  Where it says nothing (less than two words and none of four letters,
    as in ``In {1990}, [Ada] was born``), all the text around the entities is kept.  Behind the second entity, or the text
    kept, the sentence goes on otherwise than ``example``: it would be a copy with other names.
    """
    first, second = sorted((example.head, example.tail))
    entity = {example.head: _head(_entity(shape)), example.tail: _tail(_entity(shape))}
    before, connective, after = example.text[: first[0]], example.text[first[1] : second[0]], _ending(example.text[second[1] :])
    core = f"{entity[first]}{_literal(connective)}{entity[second]}"
    words = re.findall(r"\w+", connective)
    if len(words) >= 2 or any(len(word) >= 4 for word in words):
        return f" {_before(shape, min(shape.before, len(before.split()) + FREE_WORDS))}{core}{_other_continuation(shape, after)}{_END}"
    return rf" {_literal(before)}{core}{_literal(after)}{_continuation(shape, least=FREE_WORDS)}{_END}"


def _ending(text: str) -> str:
    """``text`` without the stop that ends its sentence."""
    return re.sub(r"[.!?][\"')]?$", "", text)


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
