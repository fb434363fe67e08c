"""The ledger of failed requests, and the second try of those whose failure was the engine's own."""

from __future__ import annotations

import contextlib
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from divray.run_folder import Round, RunFolder
from divray.schemas import COMPLETIONS, FAILED, PROMPTS

ENGINE_ERROR, REJECTED, TOO_LONG = "engine_error", "rejected_request", "prompt_too_long"

ROWS_PER_PART = 10_000

_REFUSALS = ("ValueError", "VLLMValidationError", "TypeError", "BadRequestError", "UnprocessableEntityError")
_LENGTH = ("longer than the context", "maximum model length", "maximum context length", "max_model_len", "is too long")


def failure_reason(error: str) -> str:
    """Whose fault an ``error`` of a completion is: the request's (refused for good) or the engine's."""
    if any(words in error for words in _LENGTH):
        return TOO_LONG
    return REJECTED if error.partition(":")[0].strip() in _REFUSALS else ENGINE_ERROR


def write_ledger(run: RunFolder, own: Round) -> dict[str, int]:
    """Write a round's ``failed`` (``schemas.FAILED``) from its ``completions``; returns reason -> rows."""
    blank = pc.equal(pc.utf8_trim_whitespace(pc.field("completion")), "")
    failed = (pc.field("error") != "") | blank | (pc.field("finish_reason") == "length")
    table = _scanned(run, own.completions, [*FAILED.names[:3], "error", "finish_reason"], failed)
    whose = {error: failure_reason(error) for error in table["error"].unique().to_pylist()}
    cut = pc.if_else(pc.equal(table["finish_reason"], "length"), "truncated", "empty")
    named = pa.chunked_array([[whose[error] for error in table["error"].to_pylist()]], pa.string())
    table = table.append_column("reason", pc.if_else(pc.equal(table["error"], ""), cut, named))
    run.write_table(own.failed, table.select(FAILED.names).cast(FAILED).sort_by("candidate_id"), ROWS_PER_PART)
    return dict(sorted(Counter(table["reason"].to_pylist()).items()))


def retry_rows(run: RunFolder, own: Round) -> pa.Table:
    """The request rows (``schemas.PROMPTS``) of a round whose failure was the engine's own."""
    failed = _scanned(run, own.completions, ["candidate_id", "error"], pc.field("error") != "").to_pylist()
    again = pa.array([row["candidate_id"] for row in failed if failure_reason(row["error"]) == ENGINE_ERROR], pa.string())
    return _scanned(run, own.prompts, PROMPTS.names, pc.field("candidate_id").isin(again)).sort_by("candidate_id")


def forget_completions(run: RunFolder, own: Round) -> None:
    """Remove what the engine wrote for a round, and the prompts that followed from it (waves after the first)."""
    for name in (own.completions, f"{own.completions}.checkpoint", f"{own.completions}.engines", own.retry, own.waves, own.quota):
        run.delete(name)
    for file in run.files(own.prompts):
        if file.rpartition("/")[2].startswith("wave-"):
            run.delete(file)


def put_in_place(run: RunFolder, answers: str, completions: str) -> int:
    """Let the successful rows of table ``answers`` take the places of their failed ones; returns how many.

    Only files with failed rows are read, and each is written whole under its own name: a call that was ended half-way
    is made good by another.
    """
    found: list[pa.Table] = []
    for file in run.files(answers, ".parquet"):
        with contextlib.suppress(pa.ArrowInvalid):  # one that a kill cut short
            table = pq.read_table(run.path(file), columns=COMPLETIONS.names, filesystem=run.fs)
            found.append(table.filter(pc.equal(table["error"], "")))
    if not found:
        return 0
    new = pa.concat_tables(found).cast(COMPLETIONS)
    wanted = pc.field("candidate_id").isin(new["candidate_id"].combine_chunks()) & (pc.field("error") != "")
    placed = _scanned(run, completions, ["candidate_id", "__filename"], wanted)
    for path in placed["__filename"].unique().to_pylist():
        table = pq.read_table(path, columns=COMPLETIONS.names, filesystem=run.fs).cast(COMPLETIONS)
        own = placed.filter(pc.equal(placed["__filename"], path))["candidate_id"]
        kept = table.filter(pc.invert(pc.is_in(table["candidate_id"], own.combine_chunks())))
        mended = new.filter(pc.is_in(new["candidate_id"], own.combine_chunks()))
        run.write_parquet(path.removeprefix(f"{run.root.rstrip('/')}/"), pa.concat_tables([kept, mended]))
    return int(placed.num_rows)


def _scanned(run: RunFolder, name: str, columns: list[str], where: pc.Expression) -> pa.Table:
    """The rows of a table that ``where`` keeps, its files read side by side; none where there is no such table."""
    import pyarrow.dataset as pads

    schema = PROMPTS if name.endswith("prompts") else COMPLETIONS
    return pads.dataset(run.table_files(name), schema=schema, format="parquet", filesystem=run.fs).to_table(columns=columns, filter=where)
