"""Counts of a run's candidates at each step, their cost, and how the engines spent their time."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.layout import SELECTED, Round
from divray.run_folder import RunFolder
from divray.scan import table_of, tally
from divray.schemas import COMPLETIONS, NAIVE
from divray.texts import SEED_PREFIX

STEPS = ("candidates", "valid", "unique", "correct", "selected")
TOKENS = ("generated_tokens", "prompt_tokens", "cached_tokens")
CAUSES = ("start_up", "waiting_for_input", "tail")
"""Why an engine is idle: it loads the model; it has no request; its last request is done, but the pass is not over."""

GATE = "below the correctness gate"
"""Why a unique sample was lost."""

_CONFLICT, _NEAR_TEST = (pc.coalesce(pc.field(name) != "", False) for name in ("conflict", "near_test"))
_NEAR_SEED = pc.coalesce(pc.starts_with(pc.field("nearest_id"), SEED_PREFIX), False)
_COPY = pc.if_else(_NEAR_SEED, "near a seed example", "near-duplicate")
_LOST = pc.if_else(_NEAR_TEST, "near a test sentence", pc.if_else(_CONFLICT, "labelling conflict", _COPY))
"""Why a sample that is not unique was lost."""


class Cell(NamedTuple):
    """The key under which candidates are counted."""

    round: int
    relation: str
    strategy: str


class Account:
    """Counts of a run by round, relation and strategy; times in seconds.

    ``fields`` are the fields that the run has reached; every view leaves out the others.  Fields that begin with ``rejected: `` count
    the completions without a valid sample, by reason; those that begin with ``lost: `` count the dropped valid samples.
    """

    def __init__(self) -> None:
        self.cells: dict[Cell, Counter[str]] = defaultdict(Counter)
        self.fields: set[str] = set()

    def add(self, key: Iterable[Any], **amounts: Any) -> None:
        """Add amounts to fields of one cell, and mark these fields as reached."""
        self.cells[Cell(*key)].update(amounts)
        self.fields |= amounts.keys()

    def of(self, naive: bool = False) -> list[Cell]:
        """The cells of the loop, or those of the naive baseline."""
        return [cell for cell in sorted(self.cells) if (cell.strategy == NAIVE) == naive]

    def reasons(self, kind: str, cells: Iterable[Cell]) -> dict[str, int]:
        """Reason -> count of the ``rejected`` or ``lost`` ones over some cells, the most frequent first."""
        ranked = sorted(self._total(cells).items(), key=lambda item: (-item[1], item[0]))
        return {name.removeprefix(f"{kind}: "): int(count) for name, count in ranked if name.startswith(f"{kind}: ")}

    def _total(self, cells: Iterable[Cell]) -> Counter[str]:
        return sum((self.cells[cell] for cell in cells), Counter())

    def view(self, cells: Iterable[Cell]) -> dict[str, Any]:
        """The steps, costs, mean scores, and costs of one accepted (unique and correct) sample, over some cells."""
        total = self._total(cells)
        found: dict[str, Any] = {name: int(total[name]) for name in (*STEPS, *TOKENS) if name in self.fields}
        if "engine_seconds" in self.fields:
            found["engine_seconds"] = round(float(total["engine_seconds"]), 3)
        if total["audited"]:  # the best K a relation of each round, by the second judge
            found["mean_correctness"] = round(total["correctness"] / total["audited"], 4)
        if total["selected"]:
            found["mean_correctness_selected"] = round(total["selected_correctness"] / total["selected"], 4)
        for cost, short in (("generated_tokens", "tokens"), ("engine_seconds", "engine_seconds")):
            if cost in self.fields and total["correct"]:
                found[f"{short}_per_accepted"] = round(total[cost] / total["correct"], 3)
        return found

    def views(self, key: Callable[[Cell], Any]) -> dict[Any, dict[str, Any]]:
        """A view of each group of the loop's cells."""
        groups = defaultdict(list)
        for cell in self.of():
            groups[key(cell)].append(cell)
        return {name: self.view(cells) for name, cells in sorted(groups.items())}


def rounds_of(config: Config, run: RunFolder) -> list[Round]:
    """The rounds that have left prompts so far."""
    return [own for own in map(Round.of, range(config.rounds)) if run.table_files(own.prompts)]


def account(config: Config, run: RunFolder) -> Account:
    """Count from the tables of the run folder, without those that no stage has written yet."""
    book, rounds, keys = Account(), rounds_of(config, run), Cell._fields
    key: Iterable[Any]
    for key, (_, count) in tally(run, [own.prompts for own in rounds], keys, ["sentences"]).items():
        book.add(key, candidates=count)
    for key, (_, *amounts) in tally(run, [own.completions for own in rounds], keys, TOKENS).items():
        book.add(key, **dict(zip(TOKENS, amounts, strict=True)))
    for (*key, rejection), (count,) in tally(run, [own.samples for own in rounds], [*keys, "rejection"]).items():
        book.add(key, **{"valid": 0, f"rejected: {rejection}": count} if rejection else {"valid": count})
    scored = tally(run, [own.scores for own in rounds], [*keys, "unique", "correct", "lost"], derived={"lost": _LOST})
    for (*key, unique, correct, lost), (count,) in scored.items():
        book.add(key, unique=count * bool(unique), correct=count * bool(unique and correct))
        if not (unique and correct):
            book.add(key, **{f"lost: {GATE if unique else lost}": count})
    for key, (count, total) in tally(run, SELECTED, keys, ["audit"]).items():
        book.add(key, selected=count, selected_correctness=total)
    for name in ("naive", *(own.name for own in rounds)):
        for key, (count, total) in tally(run, f"comparison/{name}", keys, ["audit"]).items():
            book.add(key, audited=count, correctness=total)
    for one in rounds:
        requests = _requests(run, one)
        for engine in requests["engine"].unique().to_pylist():
            own = requests.filter(pc.field("engine") == engine)
            own = own.append_column("seconds", pa.array(busy_shares(own["started_at"].to_numpy(), own["finished_at"].to_numpy())))
            for row in own.group_by(keys, use_threads=False).aggregate([("seconds", "sum")]).to_pylist():
                book.add([row[name] for name in keys], engine_seconds=row["seconds_sum"])
    return book


_REQUEST = pa.schema([COMPLETIONS.field(name) for name in (*Cell._fields, "engine", "started_at", "finished_at")])


def _requests(run: RunFolder, own: Round) -> pa.Table:
    """When the requests of a round began and ended, Unix seconds."""
    return table_of(run, own.completions, _REQUEST.names) or _REQUEST.empty_table()


def busy_shares(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Share out the busy time of one engine among its requests ``[starts[i], ends[i]]``, in their own unit.

    At each instant the requests in flight share the time equally, so that the shares sum to the length of the intervals'
    union.  All arrays are float64 of shape ``(n,)``; the share is 0 for an interval that ends before it starts.
    """
    times, position = np.unique(np.concatenate((starts, np.maximum(starts, ends))), return_inverse=True)
    opened, closed = np.split(position, 2)
    active = np.cumsum(np.bincount(opened, minlength=times.size) - np.bincount(closed, minlength=times.size))[:-1]
    slices = np.where(active > 0, np.diff(times) / np.maximum(active, 1), 0.0)
    elapsed = np.concatenate(([0.0], np.cumsum(slices)))
    return elapsed[closed] - elapsed[opened]


def engine_time(config: Config, run: RunFolder) -> dict[str, Any]:
    """The time of all engines in all passes; ``{}`` if no pass has left its record.

    Returns ``busy_seconds``, ``idle_seconds`` (cause -> seconds), ``busy_share`` in [0, 1], and ``engines`` (of all passes).
    """
    total: Counter[str] = Counter()
    for own in rounds_of(config, run):
        requests = _requests(run, own)
        for record in (run.read_json(name) for name in run.files(f"{own.completions}.engines", ".json")):
            for name in record["engines"]:
                total.update(_engine(record, name, requests), engines=1)
    busy, idle = float(total["busy"]), {cause: round(float(total[cause]), 3) for cause in CAUSES}
    share = round(busy / whole, 4) if (whole := busy + sum(idle.values())) else 0.0
    found = {"busy_seconds": round(busy, 3), "idle_seconds": idle, "busy_share": share, "engines": total["engines"]}
    return found if total["engines"] else {}


def _engine(record: dict[str, Any], name: str, requests: pa.Table) -> dict[str, float]:
    """The time of one engine in a pass, from when its process began until the pass was over."""
    engines: dict[str, dict[str, Any]] = record["engines"]
    created, ready = engines[name]["created_at"], engines[name]["ready_at"]
    during = (pc.field("started_at") >= created) & (pc.field("finished_at") <= (record["ended_at"] or np.inf))
    own = requests.filter((pc.field("engine") == name) & during)
    starts, ends = own["started_at"].to_numpy(), own["finished_at"].to_numpy()
    last = float(ends.max(initial=ready or created))
    # The record lacks the end of a replaced engine, and of a pass whose driver was killed.
    replaced = [other["created_at"] for key, other in engines.items() if key != name and other["created_at"] >= last]
    over = min(replaced) if replaced else record["ended_at"] or last
    if ready is None:
        return {"start_up": over - created}
    worked = float(busy_shares(starts, ends).sum())
    waiting = max(0.0, last - ready - worked)
    return {"busy": worked, "start_up": ready - created, "waiting_for_input": waiting, "tail": max(0.0, over - last)}
