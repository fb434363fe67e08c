"""Notes in the head of a relation's prompts, chosen so that the engine's prefix cache serves nearly all of each prompt.

An engine caches whole blocks of tokens, so that of every request the tokens behind the last whole block are computed
anew: half a block on average, where a candidate itself is a block long.  A few harmless lines, the same in all prompts of a
relation, shift where its prompts end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean

NOTES = (
    "Names are invented.",
    "All are whole sentences.",
    "Each states the relation in plain words.",
    "They come from letters, news, novels and manuals.",
    "Places, times and people change from one sentence to the next.",
)
"""In the embedded LLM's tokens 5, 6, 9, 12 and 15: their sums leave 22 different remainders of 32."""


def tokens_outside(length: int, block: int) -> int:
    """Tokens of a prompt that the engine computes although it has seen the prompt before: 1 to ``block``, since it needs one."""
    return (length - 1) % block + 1


def fitting_notes(prompts: Sequence[Callable[[tuple[str, ...]], str]], length: Callable[[str], int | None], block: int) -> tuple[str, ...]:
    """Those of :data:`NOTES` that leave the fewest tokens outside whole blocks, on average over a relation's prompts.

    Args:
        prompts: Each renders one prompt with the notes given.
        length: Counts a prompt's tokens; ``None``: it can't, and there are no notes.
        block: Tokens in a block.
    """
    plain = [length(prompt(())) for prompt in prompts]
    lengths = [count for count in plain if count is not None]
    if not lengths or len(lengths) < len(plain):
        return ()

    def cost(notes: tuple[str, ...]) -> tuple[float, int]:
        added = (length(prompts[0](notes)) or 0) - lengths[0]
        return fmean(tokens_outside(count + added, block) for count in lengths), added

    return min((notes for count in range(len(NOTES) + 1) for notes in combinations(NOTES, count)), key=cost)
