"""Preference pairs as DPO reads them: gathered over rounds, checked, and turned into token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from divray.errors import InputError
from divray.layout import Round
from divray.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ["pair_id", "prompt", "chosen", "rejected"]


def pair_tables(run: RunFolder, round: int) -> list[str]:
    """Names of the pair tables of all rounds before ``round`` that there are."""
    names = (Round.of(earlier).pairs for earlier in range(round))
    return [name for name in names if run.files(name, ".parquet")]


def read_pairs(run: RunFolder, round: int) -> pa.Table:
    """The pairs that train the policy of ``round``: columns :data:`COLUMNS`, sorted by ``pair_id``.

    The order doesn't depend on how the tables were partitioned.

    Raises:
        InputError: There is no pair, a column is missing, a text is empty, or both sides are equal.
    """
    tables = []
    for name in pair_tables(run, round):
        where = run.full_uri(name)
        try:
            table = run.read_table(name, COLUMNS)
        except (pa.ArrowInvalid, KeyError) as error:
            raise InputError(where, "", f"not a table of pairs ({str(error).splitlines()[0]})", f"It needs {', '.join(COLUMNS)}.") from None
        missing = [column for column in COLUMNS if column not in table.column_names]
        if missing:
            raise InputError(where, missing[0], "column is missing", f"A table of pairs has {', '.join(COLUMNS)}.")
        for column in COLUMNS[1:]:
            empty = pc.fill_null(pc.equal(pc.utf8_length(table[column]), 0), True)
            if pc.any(empty).as_py():
                raise InputError(where, f"{_first(table, empty)}, {column}", "the text is empty", "Remove the pair or fill it in.")
        equal = pc.equal(table["chosen"], table["rejected"])
        if pc.any(equal).as_py():
            raise InputError(where, _first(table, equal), "chosen and rejected are the same text", "Remove the pair.")
        tables.append(table)
    pairs = pa.concat_tables(tables) if tables else pa.table({column: pa.array([], pa.string()) for column in COLUMNS})
    if not pairs.num_rows:
        raise InputError(
            run.full_uri(Round.of(round - 1).pairs),
            "",
            f"there is no preference pair to train round {round} on",
            "Sample more candidates, or lower `correctness.threshold`.",
        )
    return pairs.sort_by([(column, "ascending") for column in COLUMNS])


def _first(table: pa.Table, wrong: pa.ChunkedArray) -> str:
    return f"pair {table.filter(wrong)['pair_id'][0].as_py()}"


def tokenize_pairs(
    pairs: pa.Table, tokenizer: PreTrainedTokenizerBase, max_length: int, end: str = ""
) -> tuple[dict[str, list[list[int]]], int]:
    """``({"prompt_ids", "chosen_ids", "rejected_ids"}, pairs left out)``, one list of token ids a pair.

    Lines need no end-of-text token: the pairs have the newlines at which sampling stops.  JSON does: ``end``.  Where
    tokens merge across the end of the prompt, the completion starts at the first token that differs.
    A pair of which a side is longer than ``max_length`` tokens with its prompt is left out, since a
    cut sentence would teach to end in the middle.
    """
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
