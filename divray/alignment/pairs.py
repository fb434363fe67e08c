"""Preference pairs as DPO reads them: gathered over rounds and turned into token ids."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from divray.errors import InputError
from divray.layout import Round
from divray.run_folder import RunFolder
from divray.scan import table_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ["pair_id", "prompt", "chosen", "rejected"]


def read_pairs(run: RunFolder, round: int) -> pa.Table:
    """The pairs of all rounds before ``round``, which train its policy: columns :data:`COLUMNS`, sorted by ``pair_id``.

    Raises:
        InputError: There is no pair, or a table is damaged.
    """
    pairs = table_of(run, [Round.of(earlier).pairs for earlier in range(round)], COLUMNS)
    if pairs is None:
        problem = f"there is no preference pair to train round {round} on"
        fix = "Sample more candidates, lower correctness.threshold, or, with preferences.mode: paper, lower prompts.demonstrations."
        raise InputError(run.full_uri(Round.of(round - 1).pairs), "", problem, fix)
    return pairs.sort_by([(column, "ascending") for column in COLUMNS])


def prompts_together(prompts: Sequence[Hashable], seed: int, step: int = 1) -> list[int]:
    """A random order of the pairs, drawn with ``seed``, that puts pairs of one prompt next to each other by twos: a worker that takes two
    at a time computes their prompt once.  The first pairs come again at the end, to fill the last ``step``: workers would fill it so that
    each has as many, which depends on how many they are; and to leave it out would leave nothing of a few pairs."""
    rng = random.Random(seed)
    own: dict[Hashable, list[int]] = defaultdict(list)
    for place in rng.sample(range(len(prompts)), len(prompts)):
        own[prompts[place]].append(place)
    twos = [places[at : at + 2] for places in own.values() for at in range(0, len(places) - 1, 2)]
    alone = [places[-1] for places in own.values() if len(places) % 2]
    twos += [alone[at : at + 2] for at in range(0, len(alone) - 1, 2)]
    rng.shuffle(twos)
    order = [place for two in twos for place in two] + alone[len(alone) // 2 * 2 :]
    return [order[place % len(order)] for place in range(-(-len(order) // step) * step)]


def tokenize_pairs(
    pairs: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int, chat: bool = False
) -> tuple[dict[str, list[list[int]]], int]:
    """``({"prompt_ids", "chosen_ids", "rejected_ids"}, pairs left out)``, one list of token ids a pair.

    With ``chat`` the texts are JSON and get the end of a turn.  Lines need none: they end with the newlines at which sampling stops.
    Where tokens merge across the end of the prompt, the completion starts at the first token that differs from the prompt's.
    A pair is left out if the prompt and one side together exceed ``max_length`` tokens, since a cut sentence would teach the model to
    stop in the middle.
    """
    end = end_of_turn(tokenizer) if chat else ""
    rows: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    left_out = 0
    for prompt, chosen, rejected in zip(*(pairs[column].to_pylist() for column in COLUMNS[1:]), strict=True):
        head, good, bad = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt}{chosen}{end}", f"{prompt}{rejected}{end}"))
        if max(len(good), len(bad)) > max_length:
            left_out += 1
            continue
        start = next((i for i, ids in enumerate(zip(head, good, bad, strict=False)) if len(set(ids)) > 1), len(head))
        start = min(start, len(good) - 1, len(bad) - 1)
        rows["prompt_ids"].append(good[:start])
        rows["chosen_ids"].append(good[start:])
        rows["rejected_ids"].append(bad[start:])
    return rows, left_out


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The first token of the tokenizer's own that its chat template puts behind an answer, such as Llama 3's ``<|eot_id|>``; else EOS."""
    turns, own = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "@@@"}], tokenizer.get_added_vocab()
    rendered = str(tokenizer.apply_chat_template(turns, tokenize=False)) if tokenizer.chat_template else ""
    return next((token for token in tokenizer.tokenize(rendered.partition("@@@")[2]) if token in own), str(tokenizer.eos_token))
