"""The few rows of a run that a reader sees, picked by a fixed rule and never by hand, and sentences cut for display."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.console import visible
from divray.layout import SEEDS, SELECTED, Round
from divray.report.account import rounds_of
from divray.run_folder import RunFolder
from divray.scan import Row, first_of_each, rows, tally
from divray.schemas import NAIVE
from divray.texts import SEED_PREFIX, SENTENCE

SAMPLES_PER_RELATION = 5
REJECTIONS_PER_REASON = 2
NEAR_DUPLICATES = 8
PAIRS = 3
BINS = 20

_LOOP = pc.field("strategy") != NAIVE
_SENTENCE = ["candidate_id", "relation", *SENTENCE]


def excerpts(config: Config, run: RunFolder) -> dict[str, Any]:
    """The report's rows and counts, each under the name of the function below that picks it."""
    rounds = rounds_of(config, run)
    chosen = (near_duplicates, rejections, pairs, correctness)
    return {"samples": samples(run), **{pick.__name__: pick(run, rounds) for pick in chosen}}


def near_duplicates(run: RunFolder, rounds: list[Round]) -> list[Row]:
    """Dropped samples, each with what it is too near to as ``other``; in each relation the most similar first, identical ones last."""

    def closeness(row: Row) -> tuple[bool, float, str]:
        return (row["similarity"] or 0.0) >= 1.0, -(row["similarity"] or 0.0), row["candidate_id"]

    where = ~pc.field("unique") & _LOOP & (pc.field("nearest_id") != "") & ~pc.starts_with(pc.field("nearest_id"), "test:")
    found = rows(run, [own.scores for own in rounds], [*_SENTENCE, "nearest_id", "similarity", "reason"], where)
    chosen = _turns(first_of_each(found, "relation", closeness, NEAR_DUPLICATES))[:NEAR_DUPLICATES]
    known = sentences_of(run, rounds, {row["nearest_id"] for row in chosen})
    return [{**row, "other": known[row["nearest_id"]]} for row in chosen if row["nearest_id"] in known]


def samples(run: RunFolder) -> dict[str, list[Row]]:
    """Relation -> some of its selected samples."""
    columns = ["sample_id", "relation", *SENTENCE, "round", "strategy", "audit", "novelty"]
    return first_of_each(rows(run, SELECTED, columns), "relation", _hash("sample_id"), SAMPLES_PER_RELATION)


def rejections(run: RunFolder, rounds: list[Round]) -> dict[str, list[Row]]:
    """Reason -> some of the completions that were rejected for it."""
    columns = ["candidate_id", "relation", "completion", "rejection"]
    found = rows(run, [own.samples for own in rounds], columns, (pc.field("rejection") != "") & _LOOP)
    return first_of_each(found, "rejection", _hash("candidate_id"), REJECTIONS_PER_REASON)


def pairs(run: RunFolder, rounds: list[Round]) -> list[Row]:
    """Some preference pairs, of different relations."""
    found = rows(run, [own.pairs for own in rounds], ["pair_id", "relation", "chosen", "rejected", "kind"])
    return sorted(_turns(first_of_each(found, "relation", _hash("pair_id"), 1)), key=_hash("pair_id"))[:PAIRS]


def correctness(run: RunFolder, rounds: list[Round]) -> dict[str, Any]:
    """Valid samples by the judge's score in 20 bins of [0, 1]: those that pass the gate are ``kept``, the others ``dropped``."""
    place = pc.floor(pc.coalesce(pc.field("correctness"), 0.0) * float(BINS) + 1e-9)
    derived = {"place": pc.min_element_wise(place, BINS - 1.0), "flag": pc.coalesce(pc.field("correct"), False)}
    counts: dict[str, list[int]] = {"kept": [0] * BINS, "dropped": [0] * BINS}
    for (at, holds), (count,) in tally(run, [own.scores for own in rounds], ["place", "flag"], derived=derived, where=_LOOP).items():
        counts["kept" if holds else "dropped"][int(at)] += int(count)
    return counts


def sentences_of(run: RunFolder, rounds: list[Round], ids: Iterable[str]) -> dict[str, Row]:
    """The sentences of ``ids``: samples by ``candidate_id``, seeds by ``example_id`` or ``seed:<example_id>``; ``unique``: it was kept."""
    wanted = set(ids)
    scores, columns = [own.scores for own in rounds], [*_SENTENCE, "unique"]
    found = {row.pop("candidate_id"): row for row in rows(run, scores, columns, _one_of("candidate_id", wanted))}
    seeds = _one_of("example_id", wanted | {name.removeprefix(SEED_PREFIX) for name in wanted})
    for row in rows(run, SEEDS, ["example_id", "relation", *SENTENCE], seeds):
        name = row.pop("example_id")
        found |= {key: {**row, "unique": True} for key in wanted & {name, SEED_PREFIX + name}}
    return found


def _one_of(column: str, values: Iterable[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(sorted(values), pa.string()))


def _turns(groups: dict[Any, list[Row]]) -> list[Row]:
    """The rows of all groups; the groups take turns, so that no single group fills the page."""
    return [row for turn in itertools.zip_longest(*groups.values()) for row in turn if row is not None]


def _hash(identity: str) -> Callable[[Row], bytes]:
    return lambda row: hashlib.sha256(row[identity].encode()).digest()


class Piece(NamedTuple):
    """A stretch of a sentence with one look; ``classes`` are CSS classes (``head``, ``tail``, ``differs``)."""

    text: str
    classes: str


def pieces(row: Row, differing: Iterable[tuple[int, int]] = ()) -> list[Piece]:
    """The sentence of a table row, cut where the look changes."""
    text = row["text"]
    spans = [("head", row["head_start"], row["head_end"]), ("tail", row["tail_start"], row["tail_end"])]
    spans += [("differs", start, end) for start, end in differing]
    cuts = sorted({0, len(text), *(at for _, start, end in spans for at in (start, end) if 0 <= at <= len(text))})
    return [
        Piece(visible(text[start:end]), " ".join(name for name, first, last in spans if first <= start and end <= last))
        for start, end in itertools.pairwise(cuts)
    ]


def side_by_side(row: Row, other: Row) -> tuple[list[Piece], list[Piece]]:
    """Both sentences, with the words marked that the other one lacks; no entity is marked."""
    return _marked(row, other), _marked(other, row)


def _marked(row: Row, other: Row) -> list[Piece]:
    known = {word for word, _ in _words(other)}
    return pieces(row, [span for word, span in _words(row) if word not in known])


def _words(row: Row) -> list[tuple[str, tuple[int, int]]]:
    """Each word outside the entities in lower case, with its place."""
    text = row["text"]
    for start, end in ((row["head_start"], row["head_end"]), (row["tail_start"], row["tail_end"])):
        text = text[:start] + " " * (end - start) + text[end:]
    return [(match.group().lower(), match.span()) for match in re.finditer(r"\S+", text)]
