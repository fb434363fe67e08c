"""The accepted samples of a run, as examples for the next prompts."""

from __future__ import annotations

from collections.abc import Iterable

from divray.relations import Example
from divray.run_folder import Round, RunFolder
from divray.schemas import NAIVE


def accepted_samples(run: RunFolder, rounds: Iterable[int]) -> dict[str, list[Example]]:
    """Relation -> unique and correct samples of ``rounds``, without the naive baseline, in order of their ids."""
    import pyarrow.dataset as pads

    files = run.table_files(*(Round.of(number).scores for number in rounds))
    found: dict[str, list[Example]] = {}
    if not files:
        return found
    columns = ["candidate_id", "relation", "text", "head_start", "head_end", "tail_start", "tail_end"]
    own = pads.field("unique") & pads.field("correct") & (pads.field("strategy") != NAIVE)
    for row in pads.dataset(files, filesystem=run.fs).to_table(columns, filter=own).sort_by("candidate_id").to_pylist():
        head, tail = (row["head_start"], row["head_end"]), (row["tail_start"], row["tail_end"])
        found.setdefault(row["relation"], []).append(Example(row["text"], head, tail, row["relation"], example_id=row["candidate_id"]))
    return found
