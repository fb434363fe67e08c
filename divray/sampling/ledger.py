"""The ledger of failed requests, and the second try of those whose failure was the engine's own."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from divray.runs import RunFolder
from divray.schemas import COMPLETIONS, FAILED, PROMPTS

if TYPE_CHECKING:
    import pyarrow as pa

ENGINE_ERROR, REJECTED, TOO_LONG = "engine_error", "rejected_request", "prompt_too_long"

ROWS_PER_PART = 10_000

_REFUSALS = ("ValueError", "VLLMValidationError", "TypeError", "BadRequestError", "UnprocessableEntityError")
_LENGTH = ("longer than the context", "maximum model length", "maximum context length", "max_model_len", "is too long")


def failure_reason(error: str) -> str:
    """Whose fault an ``error`` of a completion is: the request's (refused for good) or the engine's."""
    if any(words in error for words in _LENGTH):
        return TOO_LONG
    return REJECTED if error.partition(":")[0].strip() in _REFUSALS else ENGINE_ERROR


def write_ledger(run: RunFolder, folder: str) -> dict[str, int]:
    """Write ``<folder>/failed`` (``schemas.FAILED``) from ``<folder>/completions``; returns reason -> rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    run.delete(f"{folder}/failed")
    counts: Counter[str] = Counter()
    held: list[dict[str, Any]] = []
    parts = 0

    def write() -> None:
        nonlocal parts
        table = pa.Table.from_pylist(held, FAILED).sort_by("candidate_id")
        run.write_parquet(f"{folder}/failed/part-{parts:05d}.parquet", table)
        parts += 1
        held.clear()

    for file in run.files(f"{folder}/completions", ".parquet"):
        table = _read(run, file, [*FAILED.names[:3], "error", "completion", "finish_reason"])
        blank = pc.equal(pc.utf8_trim_whitespace(table["completion"]), "")
        failed = pc.or_(pc.or_(pc.not_equal(table["error"], ""), blank), pc.equal(table["finish_reason"], "length"))
        for row in table.filter(failed).to_pylist():
            reason = failure_reason(row["error"]) if row["error"] else "truncated" if row["finish_reason"] == "length" else "empty"
            counts[reason] += 1
            held.append({**{name: row[name] for name in FAILED.names if name in row}, "reason": reason})
        if len(held) >= ROWS_PER_PART:
            write()
    if held or not parts:
        write()
    return dict(sorted(counts.items()))


def retry_rows(run: RunFolder, folder: str) -> pa.Table:
    """The request rows (``schemas.PROMPTS``) of ``<folder>`` whose failure was the engine's own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    again: list[str] = []
    for file in run.files(f"{folder}/completions", ".parquet"):
        for row in _read(run, file, ["candidate_id", "error"]).to_pylist():
            if row["error"] and failure_reason(row["error"]) == ENGINE_ERROR:
                again.append(row["candidate_id"])
    parts = [PROMPTS.empty_table()]
    if again:
        wanted = pa.array(again, pa.string())
        tables = (_read(run, file, PROMPTS.names) for file in run.files(f"{folder}/prompts", ".parquet"))
        parts += [table.filter(pc.is_in(table["candidate_id"], wanted)) for table in tables]
    return pa.concat_tables(parts).sort_by("candidate_id")


def forget_completions(run: RunFolder, folder: str) -> None:
    """Remove what the engine wrote for ``<folder>``, and the prompts that followed from it (waves after the first)."""
    for name in ("completions", "completions.checkpoint", "completions.engines", "retry", "waves", "quota.json"):
        run.delete(f"{folder}/{name}")
    for file in run.files(f"{folder}/prompts"):
        if file.rpartition("/")[2].startswith("wave-"):
            run.delete(file)


def put_in_place(run: RunFolder, answers: str, completions: str) -> int:
    """Let the successful rows of table ``answers`` take the places of their failed ones; returns how many.

    File by file, each written whole under its own name, so that a call which was ended half-way is made good
    by another.
    """
    import pyarrow as pa

    found: dict[str, dict[str, Any]] = {}
    for file in run.files(answers, ".parquet"):
        with contextlib.suppress(pa.ArrowInvalid):  # one that a kill cut short
            found |= {row["candidate_id"]: row for row in _read(run, file, COMPLETIONS.names).to_pylist() if not row["error"]}
    placed = 0
    for file in run.files(completions, ".parquet"):
        rows: list[dict[str, Any]] = _read(run, file, COMPLETIONS.names).to_pylist()
        mended = [found.get(row["candidate_id"], row) if row["error"] else row for row in rows]
        if mended != rows:
            run.write_parquet(file, pa.Table.from_pylist(mended, COMPLETIONS))
            placed += sum(new is not old for new, old in zip(mended, rows, strict=True))
    return placed


def whole_rows(run: RunFolder, table: str) -> int:
    """Rows in the whole files of a table; one that a kill or a full disk cut short counts for nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    for file in run.files(table, ".parquet"):
        with contextlib.suppress(pa.ArrowInvalid):
            rows += pq.read_metadata(run.path(file), filesystem=run.fs).num_rows
    return rows


def _read(run: RunFolder, file: str, columns: list[str]) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(run.path(file), columns=columns, filesystem=run.fs)
