"""Two different entities in a sentence, as a logits processor of vLLM's on a CPU.

No regular expression can say that the second entity differs from the first, and a small model repeats it in one of
ten sentences, all of which are dropped.  Here the second entity may not end while it equals the first, and the token
by which it would begin to repeat the first is made less likely, which is about the distribution of the model's own
sentences in which the two differ.  Articles may begin both.

Requests ask for it by :data:`~divray.sampling.arguments.ENTITIES_KEY` among their ``extra_args``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from divray.sampling.arguments import ENTITIES_KEY

REPEATS = 1 / 50
"""How often an entity that begins like the first one goes on to be a different one, about; the token's odds are multiplied by it."""

ARTICLES = frozenset({"the", "a", "an"})
_BLANKS = " \u0120\u2581"
"""A blank as byte-level BPE and SentencePiece write it, too."""


class Marks:
    """Which tokens open and close an entity, and which are articles.

    Args:
        tokens: The vocabulary by id, as the tokenizer's own strings; a leading blank may be any sign.
    """

    def __init__(self, tokens: Sequence[str | None]) -> None:
        known = [(number, token) for number, token in enumerate(tokens) if token]
        self.opening = frozenset(number for number, token in known if "[" in token or "{" in token)
        self.closing = frozenset(number for number, token in known if "]" in token or "}" in token)
        self.articles = frozenset(number for number, token in known if token.lstrip(_BLANKS).casefold() in ARTICLES)


@dataclass(slots=True)
class Writing:
    """How far one request's sentence is.

    Attributes:
        written: Its tokens so far; vLLM's own list, which grows.
        read: How many of those are accounted for below.
        entities: The tokens of the first and, once it is opened, of the second entity.
        inside: Whether the last of them is still open.
    """

    written: list[int]
    read: int = 0
    entities: list[list[int]] = field(default_factory=list)
    inside: bool = False

    def follow(self, marks: Marks) -> None:
        """Account for what was written since; a third entity begins another sentence (of a list)."""
        for token in self.written[self.read :]:
            if token in marks.opening:
                self.entities = [*self.entities, []] if len(self.entities) < 2 else [[]]
                self.inside = True
            elif token in marks.closing:
                self.inside = False
            elif self.inside:
                self.entities[-1].append(token)
        self.read = len(self.written)

    def repeated(self, marks: Marks) -> tuple[int | None, bool]:
        """The token by which the second entity would begin to repeat the first, and whether it equals it now."""
        if not self.inside or len(self.entities) < 2 or not self.entities[0]:
            return None, False
        first, second = self.entities
        telling = next((place for place, token in enumerate(first) if token not in marks.articles), len(first) - 1)
        begins = len(second) == telling and second == first[:telling]
        return (first[telling] if begins else None), second == first


class DistinctEntities(LogitsProcessor):
    """Keeps the second entity of each sentence from being the first one again."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool, marks: Marks | None = None) -> None:
        self.marks = marks or _marks_of(vllm_config.model_config)
        self.closing = torch.tensor(sorted(self.marks.closing))
        self.requests: dict[int, Writing] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.requests, batch_update, _state)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for row, writing in self.requests.items():
            writing.follow(self.marks)
            begins, equal = writing.repeated(self.marks)
            if begins is not None:
                logits[row, begins] += math.log(REPEATS)
            if equal:
                logits[row, self.closing] = -math.inf
        return logits


def _marks_of(model_config: Any) -> Marks:
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer: Any = cached_tokenizer_from_config(model_config)
    return Marks(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))


def _state(parameters: SamplingParams, prompt: list[int] | None, written: list[int]) -> Writing | None:
    return Writing(written) if (parameters.extra_args or {}).get(ENTITIES_KEY) else None
