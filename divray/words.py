"""Where words begin and end, in any script: a word has its combining marks, and not every script puts blanks between words."""

from __future__ import annotations

import unicodedata

from divray.relations import Span

_NO_BLANKS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts without blanks between words, by their Unicode names."""
_TOUCHING = (*_NO_BLANKS, "HANGUL")
"""Scripts in which a name may touch the next word."""
_JOINERS = "\u00ad\u200c\u200d"
"""Soft hyphen, zero-width non-joiner and joiner."""


def as_letters(text: str) -> str:
    """``text`` with a letter for each mark that belongs to the letter before it, so that ``\\w+`` takes a word whole; no place moves."""
    letters: list[str] = []
    for character in text:
        belongs = (_is_mark(character) or character in _JOINERS) and letters and (letters[-1].isalnum() or letters[-1] == "_")
        letters.append("a" if belongs else character)
    return "".join(letters)


def mentions(text: str, entity: str) -> list[Span]:
    """The spans of ``entity`` in ``text`` as a word or words of its own; the case of its first letter may differ."""
    first, rest, found = entity[:1].casefold(), entity[1:], []
    for start in range(len(text) - len(entity) + 1) if entity else ():
        end = start + len(entity)
        if text[start].casefold() == first and text.startswith(rest, start + 1) and not (_cuts_word(text, start) or _cuts_word(text, end)):
            found.append((start, end))
    return found


def touch(before: str, after: str) -> bool:
    """Whether no blank stands between two words that end and begin with these characters, in a script that has none."""
    return (_is_of(before, _NO_BLANKS) and _is_of(after, _NO_BLANKS)) or _is_wide_sign(before) or _is_wide_sign(after)


def _cuts_word(text: str, place: int) -> bool:
    """Whether ``place`` lies inside a word: between letters, digits or marks of a script that puts blanks between words."""
    before, after = text[place - 1 : place], text[place : place + 1]
    if not before or not after:
        return False
    return _is_mark(after) or (_in_word(before) and _in_word(after))


def _in_word(character: str) -> bool:
    return (character.isalnum() or _is_mark(character)) and not _is_of(character, _TOUCHING)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _is_of(character: str, scripts: tuple[str, ...]) -> bool:
    return bool(character) and unicodedata.name(character, "").startswith(scripts)


def _is_wide_sign(character: str) -> bool:
    """A sign as wide as a Chinese character, which has its own blank in it."""
    return bool(character) and unicodedata.east_asian_width(character) in "WF" and unicodedata.category(character).startswith("P")
