"""From tokens back to a sentence, with the characters of every token.

The rules are those of English typography, and for other scripts their own signs and their want of blanks.
Nothing is guessed that would move a span: each token keeps its own characters, only the blanks between tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        join_infixes: ``-`` and ``/`` between two words were cut off by the tokenizer (spaCy, as in
            FewRel) and go back without blanks; the Stanford tokenizer of TACRED leaves them in the word.

    Returns:
        ``(text, spans)``, one span a token, in order and disjoint; a vanished token's is empty.
    """
    words = [_ESCAPES.get(token.strip(), " ".join(token.split())) for token in tokens]
    glued = _glue(tokens, words, join_infixes)
    text, spans = "", []
    after = True
    for word, (left, right) in zip(words, glued, strict=True):
        if not word:
            spans.append((len(text), len(text)))
            continue
        if text and not left and not after:
            text += " "
        spans.append((len(text), len(text) + len(word)))
        text += word
        after = right
    return text, spans


def _glue(tokens: Sequence[str], words: list[str], join_infixes: bool) -> list[tuple[bool, bool]]:
    """For each word: does it stick to the one before it, and to the one after it?"""
    full = [index for index, word in enumerate(words) if word]
    around = {
        index: (full[place - 1] if place else None, full[place + 1] if place + 1 < len(full) else None) for place, index in enumerate(full)
    }
    glue: list[tuple[bool, bool]] = []
    open_double = open_single = False
    for index, word in enumerate(words):
        if not word:
            glue.append((False, False))
            continue
        before, behind = around[index]
        previous = words[before] if before is not None else ""
        following = words[behind] if behind is not None else ""
        if word == '"':
            closes = tokens[index].strip() == "''" or (open_double and tokens[index].strip() != "``")
            open_double = not closes
            glue.append((closes, not closes))
        elif word == "'":
            opens = not open_single and not previous.endswith("s") and "'" in words[index + 1 :]
            open_single = opens
            glue.append((not opens, opens))
        elif word.lower() == "n't" or (word[0] in _APOSTROPHES and word[1:].lower() in _CLITICS) or word == "’":
            glue.append((True, False))
        elif join_infixes and word in ("-", "/"):
            joined = previous[-1:].isalnum() and following[:1].isalnum()
            glue.append((joined, joined))
        elif word in _CURRENCY:
            glue.append((False, following[:1].isdigit()))
        else:
            closing = all(character in _CLOSING for character in word)
            before, after = touch(previous[-1:], word[0]), touch(word[-1], following[:1])
            glue.append((closing or (bool(previous) and before), word[-1] in _OPENING or (bool(following) and after)))
    return glue
