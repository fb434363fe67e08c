"""Readers of SemEval, TACRED and FewRel as released, and the function that joins tokens to a sentence.

SemEval-2010 Task 8 (Hendrickx et al. 2010) is text in blocks: a numbered sentence with ``<e1>`` and ``<e2>``, its label, and a
comment.  The head is always e1 and the tail e2, so the label gives the direction.  ``TEST_FILE_FULL.TXT`` is the test set with
labels.

TACRED (Zhang et al. 2017) is one JSON array of objects ``id, token, subj_start, subj_end, obj_start, obj_end, subj_type, obj_type,
relation`` with inclusive ends; the head is the subject, the tail the object.  Re-TACRED (Stoica et al. 2021) and TACREV (Alt et al.
2020) have the same form once their own scripts have put the new labels in.

FewRel (Han et al. 2018) is a JSON object, relation -> list of instances with ``tokens`` and, for head ``h`` and tail ``t``,
``[name, id, [[positions of a mention], …]]``.  Only the first mention of each is used, as in FewRel's own code.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from divray.datasets.own import Source
from divray.relations import Example, Span, touch
from divray.textfiles import read_json, read_text

_SENTENCE = re.compile(r"(\d+)\t(.*)")
_TAG = re.compile(r"</?e[12]>")
_TAGS = ["<e1>", "</e1>", "<e2>", "</e2>"]

_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"', "\\/": "/"}
_OPENING = frozenset("([{“‘«¡¿")
_CLOSING = frozenset(".,;:!?%)]}”»…°।॥؟،؛۔։")
_CURRENCY = frozenset({"$", "£", "€", "#", "US$", "C$", "A$"})
_CLITICS = frozenset({"s", "re", "m", "ll", "ve", "d"})
_POSITIONS = "Positions count from 0; ends are inclusive and not before the start."
_MENTIONS = "Give [name, id, [[token positions], …]] with positions from 0 in ascending order."


def read_semeval(source: Source) -> Iterator[Example]:
    """Yield the sentences in the order of the file.

    Raises:
        InputError: A line is not a sentence, a label or a comment; a label is missing or unknown; or a tag is missing.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(source.path).split("\n"), start=1) if line.strip()]
    texts = [line for _, line in lines]
    for (number, line), before, following in zip(lines, ["", *texts], [*texts[1:], ""], strict=False):
        sentence = _SENTENCE.fullmatch(line)
        if sentence is None:
            if not line.startswith("Comment:") and not _SENTENCE.fullmatch(before):
                mend = 'A block is `number<TAB>"sentence"`, a label line and a `Comment:` line.'
                raise source.error(f"line {number}", "neither a sentence, nor a label, nor a comment", mend)
            continue
        row = f"line {number} (sentence {sentence[1]})"
        if not source.unlabelled and (not following or following.startswith("Comment:") or _SENTENCE.fullmatch(following)):
            raise source.error(f"{row}, relation", "no label", "Give a file with labels (TEST_FILE_FULL.TXT); this one may be cut short.")
        label = source.label(row, following)
        identity = source.identity(row, sentence[1], "")
        marked = re.sub(r'^"(.*)"$', r"\1", sentence[2].strip()).strip()
        tags = _TAG.findall(marked)
        if missing := [tag for tag in _TAGS if tag not in tags]:
            raise source.error(f"{row}, sentence", f"{missing[0]} is missing", "Mark both entities; the file may be cut short.")
        if tags not in (_TAGS, _TAGS[2:] + _TAGS[:2]):
            source.left_out["discontinuous_entity" if len(tags) > len(_TAGS) else "overlapping_entities"] += 1
            continue
        pieces = _TAG.split(marked)
        place = {tag: len("".join(pieces[: number + 1])) for number, tag in enumerate(tags)}
        head, tail = (place["<e1>"], place["</e1>"]), (place["<e2>"], place["</e2>"])
        yield from source.usable(Example("".join(pieces), head, tail, label, example_id=identity))


def read_tacred(source: Source) -> Iterator[Example]:
    """Yield the examples in the order of the file.

    Raises:
        InputError: A field is missing or of the wrong kind, or a position lies outside.
    """
    rows = read_json(source.path)
    if not isinstance(rows, list):
        raise source.error("", "no JSON array", "Give a TACRED JSON file: one array of objects.")
    for number, row in enumerate(rows, start=1):
        place = f"row {number}"
        text, spans = detokenize(_tokens(source, place, "token", row))
        identity = source.identity(place, row.get("id"), str(number))
        label = source.label(place, row.get("relation"))
        head, tail = (
            _entity(source, f"{place}, {side}_start, {side}_end", spans, [row.get(f"{side}_start"), row.get(f"{side}_end")], _POSITIONS)
            for side in ("subj", "obj")
        )
        types = [source.string(place, name, row.get(name), required=False) for name in ("subj_type", "obj_type")]
        yield from source.usable(Example(text, head, tail, label, types[0], types[1], identity))


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
            text, spans = detokenize(_tokens(source, place, "tokens", row), join_infixes=True)
            head, tail = (_mention(source, f"{place}, {key}", spans, row.get(key)) for key in ("h", "t"))
            if head and tail:
                yield from source.usable(Example(text, head, tail, label, example_id=f"{name}/{number}"))
            else:
                source.left_out["discontinuous_entity"] += 1


def _mention(source: Source, place: str, spans: list[Span], value: Any) -> Span | None:
    """Characters of an entity's first mention; ``None`` if its tokens are not contiguous."""
    match value:
        case [_, _, [[*tokens], *_], *_] if tokens:
            span = _entity(source, place, spans, tokens, _MENTIONS)
            return span if tokens[-1] - tokens[0] == len(tokens) - 1 else None
    raise source.error(place, "missing" if value is None else "no entity with mentions", _MENTIONS)


def _tokens(source: Source, place: str, name: str, row: Any) -> list[str]:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, list) or not value or not all(isinstance(token, str) for token in value):
        raise source.error(f"{place}, {name}", "no list of tokens", "Give the sentence as a list of strings.")
    return value


def _entity(source: Source, place: str, spans: list[Span], tokens: list[Any], mend: str) -> Span:
    """Characters from the first to the last of ``tokens`` (positions in ``spans``); an empty span if all those tokens are blank."""
    if wrong := [token for token in tokens if type(token) is not int or not 0 <= token < len(spans)]:
        problem = "missing" if wrong[0] is None else f"{wrong[0]!r} is no position among {len(spans)} tokens"
        raise source.error(place, problem, mend)
    if tokens != sorted(tokens):
        raise source.error(place, f"{tokens} are not in order", mend)
    full = [span for span in spans[tokens[0] : tokens[-1] + 1] if span[0] < span[1]]
    return (full[0][0], full[-1][1]) if full else (0, 0)


def detokenize(tokens: Sequence[str], join_infixes: bool = False) -> tuple[str, list[Span]]:
    """Join tokens into a sentence by the rules of English typography; in other scripts, by their punctuation and lack of blanks.

    Apart from undone escapes, the tokens keep their characters.  The function only chooses the blanks between them.

    Args:
        tokens: Penn Treebank escapes (``-LRB-``, two back-quotes) are undone; blank tokens are dropped.
        join_infixes: Whether ``-`` and ``/`` between words are tokens of their own (spaCy's, as in FewRel).

    Returns:
        ``(text, spans)``, one span a token, in order and disjoint; a dropped token's is empty.
    """
    kept = [token.strip() for token in tokens if token.strip()]
    words = [_ESCAPES.get(token, " ".join(token.split())) for token in kept]
    glued = zip(words, _glue(kept, words, join_infixes), strict=True)
    text, spans, sticks = "", [], True
    for token in tokens:
        word, (before, after) = next(glued) if token.strip() else ("", (True, sticks))
        text += word if before or sticks else f" {word}"
        spans.append((len(text) - len(word), len(text)))
        sticks = after
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
        elif word.lower() == "n't" or (word[0] in "'’" and word[1:].lower() in _CLITICS) or word == "’":
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
