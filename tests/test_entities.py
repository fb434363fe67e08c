"""The second entity of a sentence differs from the first, without an engine."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

entities = pytest.importorskip("divray.sampling.entities", reason="vLLM is not installed")

TOKENS = ["<end>", "Ġ[", "]", "Ġ{", "},", "Ada", "ĠLee", "the", "The", "Ġmet", "[", "Rome", "."]
MARKS = entities.Marks(TOKENS)


def token(text: str) -> int:
    return TOKENS.index(text)


def writing(*texts: str) -> Any:
    made = entities.Writing([])
    for text in texts:  # token by token, as an engine writes
        made.written.append(token(text))
        made.follow(MARKS)
    return made


def test_marks_and_articles_are_found_in_the_vocabulary() -> None:
    assert {TOKENS[number] for number in MARKS.opening} == {"Ġ[", "Ġ{", "["}
    assert {TOKENS[number] for number in MARKS.closing} == {"]", "},"}
    assert {TOKENS[number] for number in MARKS.articles} == {"the", "The"}


@pytest.mark.parametrize(
    ("written", "begins", "equal"),
    [
        (["Ġ[", "Ada"], None, False),
        (["Ġ[", "Ada", "]", "Ġmet"], None, False),
        (["Ġ[", "Ada", "]", "Ġmet", "Ġ{"], "Ada", False),
        (["Ġ[", "Ada", "]", "Ġmet", "Ġ{", "Ada"], None, True),
        (["Ġ[", "Ada", "]", "Ġmet", "Ġ{", "Ada", "ĠLee"], None, False),
        (["Ġ[", "Ada", "ĠLee", "]", "Ġmet", "Ġ{", "Ada"], None, False),
        (["Ġ[", "the", "Rome", "]", "Ġmet", "Ġ{"], None, False),
        (["Ġ[", "the", "Rome", "]", "Ġmet", "Ġ{", "the"], "Rome", False),
        (["Ġ[", "the", "]", "Ġmet", "Ġ{"], "the", False),
        (["Ġ[", "Ada", "]", "Ġmet", "Ġ{", "Rome", "},"], None, False),
        (["Ġ[", "Ada", "]", "Ġ{", "Rome", "},", ".", "Ġ[", "Rome"], None, False),
        (["Ġ[", "Ada", "]", "Ġ{", "Rome", "},", ".", "Ġ[", "Rome", "]", "Ġ{"], "Rome", False),
    ],
)
def test_what_would_repeat_the_first_entity(written: list[str], begins: str | None, equal: bool) -> None:
    assert writing(*written).repeated(MARKS) == (None if begins is None else token(begins), equal)


def test_only_requests_that_ask_for_it_are_changed() -> None:
    from vllm.v1.sample.logits_processor import BatchUpdate

    processor = entities.DistinctEntities(None, torch.device("cpu"), False, MARKS)
    wanted, other = (SimpleNamespace(extra_args={entities.ENTITIES_KEY: asked}) for asked in (True, False))
    texts = ["Ġ[", "Ada", "]", "Ġ{"]
    lists = [[token(text) for text in texts] for _ in range(2)]
    added = [(row, parameters, [], lists[row]) for row, parameters in enumerate((wanted, other))]
    processor.update_state(BatchUpdate(2, removed=[], added=added, moved=[]))
    flat = torch.zeros(2, len(TOKENS))
    first = processor.apply(flat.clone())
    assert (first[1] == 0).all()
    assert first[0, token("Ada")].item() == pytest.approx(math.log(entities.REPEATS))
    assert (first[0] != 0).sum() == 1
    lists[0].append(token("Ada"))
    second = processor.apply(flat.clone())
    assert {TOKENS[number] for number in (second[0] == -math.inf).nonzero().flatten().tolist()} == {"]", "},"}
    lists[0].append(token("ĠLee"))
    assert (processor.apply(flat.clone()) == 0).all()
