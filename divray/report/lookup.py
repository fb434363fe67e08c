"""Finding single rows of a run folder: one id's, one cluster's, those nearest to a sentence."""

from __future__ import annotations

import difflib
import heapq
from typing import TYPE_CHECKING, Any

from divray.dedup import Shingles
from divray.report.scan import SPANS, Row, batches, rows
from divray.schemas import NAIVE
from divray.texts import SEED_PREFIX, compared_texts, configured_shingles

if TYPE_CHECKING:
    import numpy as np
    import pyarrow.compute as pc

    from divray.run_folder import RunFolder
    from divray.sections import DiversityConfig

CLUSTER_MEMBERS = 8
SENTENCE = ["relation", *SPANS]


def sentence_of(run: RunFolder, folders: list[str], name: str, test: bool = False) -> Row | None:
    """The sentence row of a candidate, a seed or a test example."""
    if test:
        row = row_of(run, "data/test", "example_id", name, ["example_id", *SENTENCE])
        return {**row, "id": name} if row else None
    for identity in (name, name.removeprefix(SEED_PREFIX)):
        if row := row_of(run, "data/seeds", "example_id", identity, ["example_id", *SENTENCE]):
            return {**row, "id": name}
    for folder in folders:
        if row := row_of(run, f"{folder}/samples", "candidate_id", name, ["candidate_id", *SENTENCE]):
            return {**row, "id": name}
    return None


def sentences_of(run: RunFolder, folders: list[str], ids: set[str]) -> dict[str, Row]:
    """Sentence of each id, ``seed:<example_id>`` for a seed; ``unique`` says whether it was kept."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as pads

    wanted = pa.array(sorted(ids), pa.string())
    found: dict[str, Row] = {}
    for folder in folders:
        columns = ["candidate_id", "relation", *SPANS, "unique"]
        for row in rows(run, f"{folder}/scores", columns, pc.is_in(pads.field("candidate_id"), wanted)):
            found[row["candidate_id"]] = row
    seeds = pa.array(sorted(i.removeprefix("seed:") for i in ids if i.startswith("seed:")), pa.string())
    if len(seeds):
        for row in rows(run, "data/seeds", ["example_id", "relation", *SPANS], pc.is_in(pads.field("example_id"), seeds)):
            found[f"seed:{row['example_id']}"] = {**row, "unique": True}
    return found


def row_of(run: RunFolder, table: str, column: str, value: str, columns: list[str] | None = None) -> Row | None:
    """The row with that id, without its vectors; ``None`` where there is none."""
    if columns is None:
        import pyarrow.parquet as pq

        files = run.files(table, ".parquet")
        if not files:
            return None
        names = pq.read_schema(run.path(files[0]), filesystem=run.fs).names
        columns = [name for name in names if name not in ("embedding", "features")]
    return next(rows(run, table, columns, field(column) == value), None)


def close_ids(run: RunFolder, folders: list[str], wanted: str) -> list[str]:
    """Up to three ids like ``wanted``: of those with the longest common beginning the most similar."""

    def common(name: str) -> int:
        return next((place for place, (a, b) in enumerate(zip(name, wanted, strict=False)) if a != b), min(len(name), len(wanted)))

    best: list[str] = []
    sources = [(f"{folder}/prompts", "candidate_id") for folder in folders] + [("data/seeds", "example_id")]
    for table, column in sources:
        for batch in batches(run, table, [column]):
            best = heapq.nlargest(200, dict.fromkeys([*best, *batch[column].to_pylist()]), key=common)
    return difflib.get_close_matches(wanted, best, n=3, cutoff=0.5)


def field(name: str) -> pc.Expression:
    import pyarrow.dataset as pads

    return pads.field(name)


def nearest_sentences(
    settings: DiversityConfig, run: RunFolder, folders: list[str], sentence: Row, name: str, naive: bool, count: int
) -> list[Row]:
    """The ``count`` most similar sentences of the relation, seeds included, and the most similar one that was kept.

    Of equally similar ones the kept ones come first, then the smallest id.  Similarities are exact.
    """
    import numpy as np
    import pyarrow as pa

    def sets(table: pa.Table) -> Shingles:
        return configured_shingles(compared_texts(table, settings.mask_entities), settings)

    own = sets(pa.Table.from_pylist([sentence])).values
    of_relation = field("relation") == sentence["relation"]
    of_kind = (field("strategy") == NAIVE) if naive else (field("strategy") != NAIVE)
    sources = [(f"{folder}/scores", ["candidate_id", *SENTENCE, "unique", "cluster"], of_relation & of_kind) for folder in folders]
    sources.append(("data/seeds", ["example_id", *SENTENCE], of_relation))
    best: list[Row] = []
    kept: list[Row] = []
    for source, wanted, where in sources:
        for batch in batches(run, source, wanted, where):
            table = pa.Table.from_batches([batch])
            similarity = _jaccard_with(own, sets(table))
            some = np.flatnonzero(similarity > 0)
            for number, row in zip(some, table.take(pa.array(some)).to_pylist(), strict=True):
                example = row.pop("example_id", None)
                row["id"] = row.pop("candidate_id") if example is None else SEED_PREFIX + example
                row["kept"] = row.pop("unique", True)
                row.setdefault("cluster", "")
                row["similarity"] = round(float(similarity[number]), 6)
                if row["id"] != name:
                    best.append(row)
            kept = heapq.nsmallest(1, [*kept, *(row for row in best if row["kept"])], key=_nearness)
            best = heapq.nsmallest(count, best, key=_nearness)
    return best + [row for row in kept if row not in best]


def _nearness(row: Row) -> tuple[float, bool, str]:
    return -row["similarity"], not row["kept"], row["id"]


def _jaccard_with(own: np.ndarray, others: Any) -> np.ndarray:
    import numpy as np

    shared = np.add.reduceat(np.isin(others.values, own).astype(np.int64), others.offsets[:-1])
    return shared / (np.diff(others.offsets) + len(own) - shared)


def cluster_of(run: RunFolder, folders: list[str], relation: str, cluster: str) -> Row:
    found: Row = {"id": cluster, "size": 0, "kept": 0, "members": []}
    columns = ["candidate_id", *SENTENCE, "unique", "similarity"]
    where = (field("relation") == relation) & (field("cluster") == cluster)
    for folder in folders:
        for row in rows(run, f"{folder}/scores", columns, where):
            found["size"] += 1
            found["kept"] += bool(row["unique"])
            member = {"id": row.pop("candidate_id"), "kept": row.pop("unique"), **row}
            found["members"] = sorted([*found["members"], member], key=lambda m: (not m["kept"], m["id"]))[:CLUSTER_MEMBERS]
    return found


def pairs_with(run: RunFolder, folders: list[str], name: str) -> list[Row]:
    where = (field("chosen_id") == name) | (field("rejected_id") == name)
    columns = ["pair_id", "kind", "chosen_id", "rejected_id"]
    return [{"round": folder, **row} for folder in folders for row in rows(run, f"{folder}/pairs", columns, where)]


def prompts_of(run: RunFolder, folders: list[str], seed: Row) -> list[Row]:
    """The different prompts of the seed's relation with their demonstrations."""
    found: dict[str, Row] = {}
    for folder in folders:
        for row in rows(run, f"{folder}/prompts", ["prompt_id", "demonstrations"], field("relation") == seed["relation"]):
            found.setdefault(row["prompt_id"], row)
    return list(found.values())
