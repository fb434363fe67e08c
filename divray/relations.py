"""Relations, their examples, the one notation for a marked sentence, and the places of an entity in a text.

In memory a sentence is plain text with two spans of characters.  Marked, it has the head in ``[ ]`` and the tail in ``{ }``.
"""

import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote

import regex

Span = tuple[int, int]

MARKERS = "[]{}"

_MARK = re.compile(r"[\[\]{}]")
_NO_BLANKS = r"\p{Han}\p{Hiragana}\p{Katakana}ー〆\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\uff01-\uff9f"
"""Scripts without blanks between words."""
_LETTER = rf"(?![{_NO_BLANKS}\p{{Hangul}}])[\p{{L}}\p{{N}}\p{{M}}]"
"""A letter of a word that must not touch another word.  Hangul is not among them: there a name may touch the next word."""
_IN_WORD = regex.compile(rf"\p{{M}}|(?<={_LETTER}){_LETTER}")
_TOUCHING = regex.compile(rf"[{_NO_BLANKS}]{{2}}|(?=\p{{P}})[\p{{ea=W}}\p{{ea=F}}]")
"""Two letters of the scripts without blanks, or a full-width punctuation mark, which brings its own blank."""


@dataclass(frozen=True, slots=True)
class Example:
    """An unmarked sentence, its head and tail, and the name of the relation that holds from head to tail.

    The spans are ``(start, end)`` in characters and never overlap.  Types are ``""`` where the data has none.  The id is stable
    across reads.  ``weight`` is how much the example counts in training, where a human one counts 1."""

    text: str
    head: Span
    tail: Span
    relation: str
    head_type: str = ""
    tail_type: str = ""
    example_id: str = ""
    weight: float = 1.0

    @property
    def head_text(self) -> str:
        return self.text[slice(*self.head)]

    @property
    def tail_text(self) -> str:
        return self.text[slice(*self.tail)]


@dataclass(frozen=True, slots=True)
class Relation:
    """What the user says of one relation.

    Attributes:
        name: The label, as it stands in the data.
        description: One sentence that says when the relation holds from head to tail.
        inverse: Name of the relation that holds from tail to head whenever this one holds; its own name if it is symmetric.
        examples: The user's own, given in the relations file.
    """

    name: str
    description: str
    head_type: str = ""
    tail_type: str = ""
    inverse: str = ""
    examples: tuple[Example, ...] = ()


def overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def as_name(text: str) -> str:
    """A relation's name or a label in the form for comparisons: blanks folded, characters composed (Unicode's NFC)."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def metric_tag(name: str) -> str:
    """A relation's name as a tag of Ray's metrics, which accept only ASCII: other characters are percent-encoded."""
    return quote(name, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")


def render_marked(example: Example) -> str:
    """``text`` with the head in ``[ ]`` and the tail in ``{ }``."""
    return replaced(example.text, example.head, f"[{example.head_text}]", example.tail, f"{{{example.tail_text}}}")[0]


def mask_entities(text: str, head: Span, tail: Span) -> str:
    """``text`` with the entities replaced by ``HEAD`` and ``TAIL`` and each number by ``0``: its structure without names and numbers."""
    return re.sub(r"\d+", "0", replaced(text, head, "HEAD", tail, "TAIL")[0])


def replaced(text: str, head: Span, head_by: str, tail: Span, tail_by: str) -> tuple[str, Span, Span]:
    """``text`` with head and tail replaced by ``head_by`` and ``tail_by``, and the spans of these two."""
    if tail < head:
        text, tail, head = replaced(text, tail, tail_by, head, head_by)
        return text, head, tail
    begun = f"{text[: head[0]]}{head_by}{text[head[1] : tail[0]]}"
    spans = (head[0], head[0] + len(head_by)), (len(begun), len(begun) + len(tail_by))
    return f"{begun}{tail_by}{text[tail[1] :]}", *spans


def parse_marked(marked: str) -> tuple[str, Span, Span] | None:
    """Turn a marked sentence into ``(text, head, tail)``, spans without blanks at their ends; ``None`` unless it marks one head and one
    tail, neither of them blank."""
    marks = "".join(_MARK.findall(marked))
    if marks not in ("[]{}", "{}[]"):
        return None
    text = _MARK.sub("", marked)
    places = [mark.start() - before for before, mark in enumerate(_MARK.finditer(marked))]
    first, second = tightened(text, (places[0], places[1])), tightened(text, (places[2], places[3]))
    if not first or not second:
        return None
    return (text, first, second) if marks[0] == "[" else (text, second, first)


def tightened(text: str, span: Span) -> Span | None:
    """``span`` without the blanks at its ends; ``None`` where it holds nothing else."""
    inner = text[slice(*span)]
    start = span[0] + len(inner) - len(inner.lstrip())
    return (start, start + len(inner.strip())) if inner.strip() else None


# Where words begin and end, in any script: a word has its combining marks, and not every script puts blanks between words.


def mentions(text: str, entity: str) -> list[Span]:
    """The spans of ``entity`` in ``text`` as a word or words of its own; the case of its first letter may differ."""
    first, rest, found = entity[:1].casefold(), entity[1:], []
    for start in range(len(text) - len(entity) + 1) if entity else ():
        end = start + len(entity)
        alike = text[start].casefold() == first and text.startswith(rest, start + 1)
        if alike and not (_IN_WORD.match(text, start) or _IN_WORD.match(text, end)):
            found.append((start, end))
    return found


def touch(before: str, after: str) -> bool:
    """Whether a word that ends with ``before`` and a next one that begins with ``after`` have no blank between them."""
    return _TOUCHING.search(before + after) is not None
