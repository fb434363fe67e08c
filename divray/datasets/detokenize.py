"""From tokens back to a sentence, with the characters of every token.

The rules are those of English typography, and for other scripts their own signs and their want of blanks.
Nothing is guessed that would move a span: each token keeps its own characters, only the blanks between tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from divray.relations import Span, touch

_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"', "\\/": "/"}
_OPENING = frozenset("([{“‘«¡¿")
_CLOSING = frozenset(".,;:!?%)]}”»…°।॥؟،؛۔։")
_CURRENCY = frozenset({"$", "£", "€", "#", "US$", "C$", "A$"})
_CLITICS = frozenset({"s", "re", "m", "ll", "ve", "d"})
_APOSTROPHES = frozenset("'’")


def detokenize(tokens: Sequence[str], join_infixes: bool = False) -> tuple[str, list[Span]]:
    """Join tokens into a sentence.

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
