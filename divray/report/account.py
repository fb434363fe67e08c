"""Every candidate of a run, counted where it got to, and what it cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from divray.report.intervals import busy_shares
from divray.report.scan import asked, batches, tally
from divray.schemas import NAIVE

if TYPE_CHECKING:
    from divray.config import Config
    from divray.run_folder import RunFolder


STEPS = ("candidates", "valid", "unique", "correct", "selected")
COSTS = ("generated_tokens", "prompt_tokens", "cached_tokens", "engine_seconds")


class Cell(NamedTuple):
    """What candidates are counted by."""

    round: int
    relation: str
    strategy: str
    policy: str

    @property
    def naive(self) -> bool:
        return self.strategy == NAIVE


@dataclass
class Account:
    """Counts of a run by round, relation, strategy and policy.

    Attributes:
        cells: Cell -> field -> amount; times in seconds.
        fields: The fields that the run has got to; the others are left out of every view.
        losses: Cell -> reason -> candidates lost after they were found valid.
        rejections: Cell -> reason -> completions that gave no valid sample.
    """

    cells: dict[Cell, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    fields: set[str] = field(default_factory=set)
    losses: dict[Cell, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    rejections: dict[Cell, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, cell: Cell, amounts: dict[str, float]) -> None:
        """Add to fields of one cell, which count as reached from now on."""
        for name, amount in amounts.items():
            self.cells[cell][name] += amount
        self.fields |= amounts.keys()

    def view(self, where: Callable[[Cell], bool]) -> dict[str, Any]:
        """The steps, the costs and the costs of one accepted (unique and correct) sample, over some cells."""
        total: dict[str, float] = defaultdict(float)
        for cell, amounts in self.cells.items():
            if where(cell):
                for name, amount in amounts.items():
                    total[name] += amount
        found: dict[str, Any] = {step: int(total[step]) for step in STEPS if step in self.fields}
        for cost in COSTS:
            if cost in self.fields:
                found[cost] = round(total[cost], 3) if cost == "engine_seconds" else int(total[cost])
        if "conflicts" in self.fields:
            found["conflicts"] = int(total["conflicts"])
        if total["audited"]:  # the best K a relation of each round, by the second judge
            found["mean_correctness"] = round(total["correctness"] / total["audited"], 4)
        if total["selected"]:
            found["mean_correctness_selected"] = round(total["selected_correctness"] / total["selected"], 4)
        for step, name in (("correct", "accepted"), ("selected", "selected")):
            for cost, short in (("generated_tokens", "tokens"), ("engine_seconds", "engine_seconds")):
                if {step, cost} <= self.fields and total[step]:
                    found[f"{short}_per_{name}"] = round(total[cost] / total[step], 3)
        return found

    def reasons(self, kind: dict[Cell, Counter[str]], where: Callable[[Cell], bool]) -> dict[str, int]:
        """Reason -> count over some cells, the most frequent first."""
        total: Counter[str] = Counter()
        for cell, counts in kind.items():
            if where(cell):
                total.update(counts)
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    def values(self, of: Callable[[Cell], Any]) -> list[Any]:
        """The different rounds, relations, strategies or policies, sorted."""
        return sorted({of(cell) for cell in self.cells})


def rounds_of(config: Config, run: RunFolder) -> list[int]:
    """The rounds that have left prompts so far."""
    return [number for number in range(config.rounds) if run.files(f"round-{number:02d}/prompts", ".parquet")]


def account(config: Config, run: RunFolder) -> Account:
    """Count from the tables of the run folder; what no stage has written yet is left out."""
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

    book = Account()
    keys = list(Cell._fields)
    named = {name: pc.coalesce(pads.field(name) != "", False) for name in ("conflict", "near_test")}
    named["near_seed"] = pc.coalesce(pc.starts_with(pads.field("nearest_id"), "seed:"), False)
    tokens = COSTS[:3]
    for number in rounds_of(config, run):
        folder = f"round-{number:02d}"
        for key, (_, count) in tally(run, f"{folder}/prompts", keys, ["asked"], asked()).items():
            book.add(Cell(*key), {"candidates": count})
        for key, (_, *amounts) in tally(run, f"{folder}/completions", keys, tokens).items():
            book.add(Cell(*key), dict(zip(tokens, amounts, strict=True)))
        for (*cell, rejection), (count,) in tally(run, f"{folder}/samples", [*keys, "rejection"]).items():
            book.add(Cell(*cell), {"valid": 0 if rejection else count})
            if rejection:
                book.rejections[Cell(*cell)][rejection] += int(count)
        columns = [*keys, "unique", "correct", "conflict", "near_test", "near_seed"]
        for key, (count,) in tally(run, f"{folder}/scores", columns, derived=named).items():
            place, (unique, correct, *flags) = Cell(*key[: len(keys)]), key[len(keys) :]
            passed = {"unique": count if unique else 0, "correct": count if unique and correct else 0}
            book.add(place, {"scored": count, "conflicts": count if flags[0] else 0, **passed})
            if not unique:
                drops = config.diversity.conflicts == "drop"
                book.losses[place][_loss(flags[0] and drops, *flags[1:])] += int(count)
            elif not correct:
                book.losses[place]["below the correctness gate"] += int(count)
    for key, (count, total) in tally(run, "comparison/selected", keys, ["audit"]).items():
        book.add(Cell(*key), {"selected": count, "selected_correctness": total})
    for name in ("naive", *(f"round-{number:02d}" for number in rounds_of(config, run))):
        for key, (count, total) in tally(run, f"comparison/{name}", keys, ["audit"]).items():
            book.add(Cell(*key), {"audited": count, "correctness": total})
    _add_engine_seconds(book, config, run)
    return book


def _loss(conflict: bool, near_test: bool, near_seed: bool) -> str:
    if near_test:
        return "near a test sentence"
    return "labelling conflict" if conflict else "near a seed example" if near_seed else "near-duplicate"


def _add_engine_seconds(book: Account, config: Config, run: RunFolder) -> None:
    import numpy as np

    cells: dict[Cell, int] = {}
    engines: dict[str, list[tuple[Any, Any, Any]]] = defaultdict(list)
    for number in rounds_of(config, run):
        columns = [*Cell._fields, "engine", "started_at", "finished_at"]
        for batch in batches(run, f"round-{number:02d}/completions", columns):
            keys = zip(*(batch[name].to_pylist() for name in Cell._fields), strict=True)
            codes = np.fromiter((cells.setdefault(Cell(*key), len(cells)) for key in keys), dtype=np.int64, count=batch.num_rows)
            names = np.asarray([name or "" for name in batch["engine"].to_pylist()], dtype=object)
            starts, ends = (batch[name].to_numpy(zero_copy_only=False) for name in columns[-2:])
            for engine in sorted(set(names)):
                mine = names == engine
                engines[engine].append((codes[mine], starts[mine], ends[mine]))
    for _, parts in sorted(engines.items()):
        codes, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
        shares = np.bincount(codes, weights=busy_shares(starts, ends), minlength=len(cells))
        for cell, code in cells.items():
            book.add(cell, {"engine_seconds": float(shares[code])})
