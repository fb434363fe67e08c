"""From a completion to a sample with character spans, or to a rejection with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from divray.relations import Span, parse_marked, span_problem

_SENTENCE_END = re.compile(r"[.!?][\"')\]]?$")
_INNER_END = re.compile(r"(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St|vs|No))(?<!\b(?:Mrs|etc|Inc|Ltd))(?<!\bProf)[.!?][\"')]? +[A-Z0-9]")
_LIST_NUMBER = re.compile(r"\n\s*\d+[.)](?=\s)")
_STRAY_STOP = re.compile(r"[a-z]\.[A-Z0-9]|[A-Z0-9]\.[0-9]+\.[A-Z0-9]")
"""As in ``noise.4.1.1``: a small model that runs on in numbers."""
_WORD = re.compile(r"\w+")
_PLACEHOLDERS = frozenset(
    {
        "head",
        "tail",
        "the head",
        "the tail",
        "relation",
        "entity",
        "head entity",
        "tail entity",
        "thing",
        "person",
        "organization",
        "object",
        "place",
        "event",
    }
)

MIN_WORDS, MAX_ENTITY_WORDS = 4, 8


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed completion.

    Attributes:
        text: The sentence, ``""`` where rejected.
        head: Span of the head in ``text``; ``(0, 0)`` where rejected.
        tail: Span of the tail.
        rejection: ``""`` for a valid sample, else one of the reasons of :func:`parse_completion`.
    """

    text: str = ""
    head: Span = (0, 0)
    tail: Span = (0, 0)
    rejection: str = ""


def parse_completion(completion: str, error: str = "", truncated: bool = False) -> Parsed:
    """Judge the form of one completion; whether it is *true* to its relation is not asked here.

    Args:
        completion: What the engine returned.
        error: Why the engine gave nothing (a reason of :mod:`divray.sampling.ledger`), else ``""``.
        truncated: Whether the token limit cut the completion.

    Returns:
        A sample, or one of the rejections ``error`` itself, ``empty``, ``truncated``, ``no_head``,
        ``no_tail``, ``many_heads``, ``many_tails``, ``nested_marks``, ``empty_entity``,
        ``placeholder_entity``, ``long_entity``, ``same_entities``, ``bad_span``, ``too_short``,
        ``no_sentence_start``, ``no_sentence_end``, ``several_sentences``, ``stray_full_stop``, ``repetition``.
    """
    if error:
        return Parsed(rejection=error)
    marked = " ".join(completion.split())
    if not marked:
        return Parsed(rejection="empty")
    if truncated:
        return Parsed(rejection="truncated")
    parsed = parse_marked(marked)
    if isinstance(parsed, str):
        return Parsed(rejection=parsed)
    text, head, tail = parsed
    problem = _form_problem(text, head, tail)
    return Parsed(rejection=problem) if problem else Parsed(text, head, tail)


def split_completion(completion: str) -> list[str]:
    """The sentences of a completion that is a numbered list from its first item's text on."""
    return [part for part in _LIST_NUMBER.split(completion) if part.strip()]


def _form_problem(text: str, head: Span, tail: Span) -> str:
    entities = [text[slice(*head)], text[slice(*tail)]]
    folded = [entity.casefold() for entity in entities]
    if any(entity in _PLACEHOLDERS or not _WORD.search(entity) for entity in folded):
        return "placeholder_entity"
    if any(len(entity.split()) > MAX_ENTITY_WORDS for entity in entities):
        return "long_entity"
    if folded[0] == folded[1]:
        return "same_entities"
    if span_problem(text, head, tail) or _cuts_word(text, head) or _cuts_word(text, tail):
        return "bad_span"
    words = _WORD.findall(text)
    if len(words) < MIN_WORDS:
        return "too_short"
    if not re.match(r"[\"'(]?[A-Z0-9$]", text):
        return "no_sentence_start"
    if not _SENTENCE_END.search(text):
        return "no_sentence_end"
    if _INNER_END.search(text):
        return "several_sentences"
    if _STRAY_STOP.search(text):
        return "stray_full_stop"
    lowered = [word.casefold() for word in words]
    trigrams = list(zip(lowered, lowered[1:], lowered[2:], strict=False))
    if len(trigrams) >= 4 and len(set(trigrams)) < 0.75 * len(trigrams):
        return "repetition"
    return ""


def _cuts_word(text: str, span: Span) -> bool:
    before, after = text[: span[0]][-1:], text[span[1] :][:1]
    return before.isalnum() or after.isalnum()
