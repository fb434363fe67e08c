"""Typed entity markers: how a sentence with its head and tail becomes the encoder's input.

The punctuation variant of Zhou and Chen 2022 (arXiv 2102.01373): ``@ * person * Ada @`` around the
head, ``# ^ city ^ Rome #`` around the tail.  It needs no new tokens, so that a few examples suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from divray.relations import Example, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEAD_MARKER, HEAD_TYPE_MARKER = "@", "*"
TAIL_MARKER, TAIL_TYPE_MARKER = "#", "^"


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A sentence with entity markers.

    Attributes:
        text: The sentence with the markers in it.
        head: Character position of the marker that opens the head in ``text``.
        tail: The same of the tail.
    """

    text: str
    head: int
    tail: int


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids of a marked sentence, special tokens included, and the indices of the two opening markers in them."""

    ids: list[int]
    head: int
    tail: int


def mark_entities(example: Example, typed: bool = True) -> MarkedText:
    """Set the markers around head and tail; the type part is left out where a type is ``""`` or ``typed`` is off."""
    opened: list[tuple[Span, str, str, str]] = [
        (example.head, HEAD_MARKER, HEAD_TYPE_MARKER, example.head_type if typed else ""),
        (example.tail, TAIL_MARKER, TAIL_TYPE_MARKER, example.tail_type if typed else ""),
    ]
    built, done = "", 0
    positions: dict[str, int] = {}
    for (start, end), marker, type_marker, kind in sorted(opened):
        built += example.text[done:start]
        built += "" if not built or built[-1].isspace() else " "
        positions[marker] = len(built)
        words = f"{type_marker} {plain_type(kind)} {type_marker} " if kind else ""
        built += f"{marker} {words}{example.text[start:end]} {marker}"
        built += "" if example.text[end : end + 1].isspace() or end == len(example.text) else " "
        done = end
    return MarkedText(built + example.text[done:], positions[HEAD_MARKER], positions[TAIL_MARKER])


def encode_marked(tokenizer: PreTrainedTokenizerBase, marked: Sequence[MarkedText], max_length: int) -> list[EncodedText]:
    """Tokenize marked sentences; what is longer than ``max_length`` tokens loses those farthest from both markers.

    Special tokens and the two opening markers are never lost.

    Raises:
        ValueError: The tokenizer gives no character offsets, or no token for a marker.
    """
    if not marked:
        return []
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} gives no character offsets; use an encoder with a fast tokenizer")
    batch = tokenizer([m.text for m in marked], return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    rows = zip(marked, batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True)
    return [_window(m, ids, offsets, special, max_length) for m, ids, offsets, special in rows]


def _window(marked: MarkedText, ids: list[int], offsets: list[Span], special: list[int], max_length: int) -> EncodedText:
    head, tail = (_token_at(position, offsets, special) for position in (marked.head, marked.tail))
    if len(ids) <= max_length:
        return EncodedText(list(ids), head, tail)

    def distance(index: int) -> int:
        return -1 if special[index] else min(abs(index - head), abs(index - tail))

    kept = sorted(sorted(range(len(ids)), key=distance)[:max_length])
    return EncodedText([ids[i] for i in kept], kept.index(head), kept.index(tail))


def _token_at(position: int, offsets: list[Span], special: list[int]) -> int:
    for index, (start, end) in enumerate(offsets):
        if start <= position < end and not special[index]:
            return index
    raise ValueError(f"the tokenizer gives no token for the marker at character {position}")


def plain_type(kind: str) -> str:
    """``PERSON`` and ``CAUSE_OF_DEATH`` as the words an encoder knows."""
    return kind.replace("_", " ").lower()
