"""Labelling conflicts and the guard of the test set, against brute force over all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray.dedup.verify import Pairs, near_duplicates
from divray.relations import mask_entities, parse_marked
from divray.scoring import conflicts, near_copies
from divray.scoring.conflicts import label_conflicts, near_reference
from divray.scoring.near_copies import deduplicate
from divray.sections import DiversityConfig

CONFIG = DiversityConfig(threshold=0.5)
Row = dict[str, Any]


def row(name: str, relation: str, marked: str) -> Row:
    parsed = parse_marked(marked)
    assert parsed is not None
    text, head, tail = parsed
    spans = {"head_start": head[0], "head_end": head[1], "tail_start": tail[0], "tail_end": tail[1]}
    return {"candidate_id": name, "relation": relation, "text": text, **spans}


def table(rows: list[Row]) -> pa.Table:
    kinds = {"candidate_id": pa.string(), "relation": pa.string(), "text": pa.string()}
    spans = dict.fromkeys(("head_start", "head_end", "tail_start", "tail_end"), pa.int32())
    return pa.Table.from_pylist(rows, pa.schema(list({**kinds, **spans, "correctness": pa.float64()}.items())))


NONE = table([])


def found(rows: list[Row], known: list[Row] | None = None, config: DiversityConfig = CONFIG) -> dict[str, str]:
    made = label_conflicts(table(rows), config, table(known or []))
    return dict(zip(made["candidate_id"].to_pylist(), made["conflict"].to_pylist(), strict=True))


def shingles(text: str, size: int = 3) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def jaccard(one: str, two: str) -> float:
    a, b = shingles(one), shingles(two)
    return len(a & b) / len(a | b)


def masked(r: Row) -> str:
    return mask_entities(r["text"], (r["head_start"], r["head_end"]), (r["tail_start"], r["tail_end"]))


def entity(r: Row, role: str) -> set[str]:
    return set(r["text"][r[f"{role}_start"] : r[f"{role}_end"]].lower().split())


def in_conflict(a: Row, b: Row, threshold: float) -> bool:
    straight = len(entity(a, "head") & entity(b, "head")), len(entity(a, "tail") & entity(b, "tail"))
    crossed = len(entity(a, "head") & entity(b, "tail")) + len(entity(a, "tail") & entity(b, "head"))
    near = jaccard(a["text"], b["text"]) >= threshold and jaccard(masked(a), masked(b)) >= threshold
    return a["relation"] != b["relation"] and near and min(straight) > 0 and sum(straight) > crossed


def test_one_sentence_under_two_labels() -> None:
    rows = [
        row("a", "cause", "The [storm] caused the {flood} in the valley last year ."),
        row("b", "origin", "The [storm] caused the {flood} in the valley last year ."),
        row("c", "cause", "The [storm] caused the {flood} in the valley last year ."),
        row("d", "origin", "A [car] stood in front of the old {house} ."),
    ]
    assert found(rows) == {"a": "b", "b": "a", "c": "b"}
    made = label_conflicts(table(rows), CONFIG, NONE)
    assert made["conflict_relation"].to_pylist() == ["origin", "cause", "origin"] and made["similarity"].to_pylist() == [1.0] * 3
    assert found(rows[2:]) == {}
    assert label_conflicts(NONE, CONFIG, NONE).num_rows == 0


def test_the_same_fact_read_in_two_directions_is_no_conflict() -> None:
    long = "on a cold and windy evening in the last days of the war , as people say who were there and saw it all with their own eyes ,"
    forward = row("a", "cause(e1,e2)", f"{long} the [storm] caused a {{flood}} in the wide valley below the old town .")
    backward = row("b", "cause(e2,e1)", f"{long} the {{storm}} caused a [flood] in the wide valley below the old town .")
    assert jaccard(masked(forward), masked(backward)) > 0.7  # the masks alone don't tell them apart
    assert found([forward, backward], config=DiversityConfig()) == {}
    assert found([forward, {**forward, "candidate_id": "c", "relation": "cause(e2,e1)"}]) == {"a": "c", "c": "a"}
    one, other = row("a", "r", f"{long} [the engine] of {{the car}}"), row("b", "s", f"{long} {{the engine}} of [the car]")
    assert found([one, other], config=DiversityConfig()) == {}


def test_another_pair_of_entities_in_one_sentence_is_no_conflict() -> None:
    rows = [
        row("a", "cause", "The [storm] caused the {flood} in the wide green valley of the Rhine last year ."),
        row("b", "place", "The storm caused the [flood] in the wide green {valley} of the Rhine last year ."),
    ]
    assert found(rows) == {}


def test_what_was_there_before_is_not_judged() -> None:
    sentence = "The [storm] caused the {flood} in the valley last year ."
    known = [row("seed:1", "origin", sentence), row("seed:0", "cause", sentence)]
    rows = [row("x", "cause", sentence), row("y", "cause", sentence.replace("last", "this"))]
    assert found(rows, known) == {"x": "seed:1", "y": "seed:1"}
    assert found(rows, known[1:]) == {}


def test_of_equally_similar_ones_a_known_one_is_named() -> None:
    sentence = "The [storm] caused the {flood} in the valley last year ."
    rows = [row("a", "cause", sentence), row("b", "origin", sentence)]
    assert found(rows, [row("seed:9", "other", sentence)]) == {"a": "seed:9", "b": "seed:9"}


def test_a_hundred_thousand_identical_rows() -> None:
    one = row("a", "cause", "The [storm] caused the {flood} .")
    many = [{**one, "candidate_id": f"n{i:06d}", "relation": "cause" if i % 2 else "origin"} for i in range(100_000)]
    made = found(many)
    assert len(made) == 100_000 and made["n000000"] == "n000001" and made["n000001"] == "n000000"


WORDS = st.sampled_from(["a", "b", "c"])


@st.composite
def rows_of(draw: st.DrawFn, prefix: str) -> list[Row]:
    made = []
    for number in range(draw(st.integers(0, 7))):
        parts = [" ".join(draw(st.lists(WORDS, min_size=1, max_size=2))) for _ in range(5)]
        parts[1], parts[3] = (f"[{parts[1]}]", f"{{{parts[3]}}}") if draw(st.booleans()) else (f"{{{parts[1]}}}", f"[{parts[3]}]")
        made.append(row(f"{prefix}{number}", draw(st.sampled_from(["r", "s", "t"])), " ".join(parts)))
    return made


@settings(max_examples=80)
@given(rows_of("n"), rows_of("k"), st.sampled_from([0.3, 0.5, 0.8]), st.randoms())
def test_conflicts_agree_with_all_pairs(new: list[Row], known: list[Row], threshold: float, random: Any) -> None:
    expected = {}
    for a in new:
        others = [b for b in new + known if in_conflict(a, b, threshold)]
        if others:
            best = min(others, key=lambda b: (-jaccard(a["text"], b["text"]), b in new, b["candidate_id"]))
            expected[a["candidate_id"]] = best["candidate_id"]
    config = DiversityConfig(threshold=threshold)
    assert found(new, known, config) == expected
    random.shuffle(new)
    random.shuffle(known)
    assert found(new, known, config) == expected


@settings(max_examples=100)
@given(rows_of("n"), rows_of("t"), st.sampled_from([0.3, 0.6, 1.0]), st.booleans())
def test_the_guard_agrees_with_all_pairs(new: list[Row], test: list[Row], threshold: float, mask: bool) -> None:
    expected = []
    for a in new:
        near = []
        for b in test:
            similarity = max([jaccard(a["text"], b["text"]), *([jaccard(masked(a), masked(b))] if mask else [])])
            if similarity >= threshold:
                near.append((-similarity, b["candidate_id"]))
        if near:
            expected.append((a["candidate_id"], min(near)[1], pytest.approx(-min(near)[0])))
    reference = table(test).rename_columns(["example_id", *table(test).column_names[1:]])
    made = near_reference(table(new), reference, DiversityConfig(threshold=threshold, mask_entities=mask))
    assert [tuple(r.values()) for r in made.to_pylist()] == expected


def sentence_rows(prefix: str, seed: int, count: int, relations: list[str]) -> list[Row]:
    """Sentences of few words, so that many are near each other."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        a, b, c, d, e = random.choice(list("abc"), 5)
        made.append(row(f"{prefix}{number}", str(random.choice(relations)), f"the {a} [{b}] of {c} and {{{d}}} here {e}"))
    return made


class Spy:
    """Stands for ``near_duplicates``; counts the pairs of sets that both belong to old rows."""

    def __init__(self, honour: bool) -> None:
        self.honour, self.calls, self.both_old = honour, 0, 0

    def __call__(self, *arguments: Any, own: int, **options: Any) -> Pairs:
        pairs = near_duplicates(*arguments, own=own if self.honour else None, **options)
        self.calls += 1
        self.both_old += int((np.minimum(pairs.left, pairs.right) >= own).sum())
        return pairs


def test_old_rows_are_not_compared_with_each_other_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = sentence_rows("n", 0, 60, ["r", "s"]), sentence_rows("seed:", 1, 80, ["r", "s"])
    many = sentence_rows("m", 2, 200, ["r"])
    apart = deduplicate(table(sentence_rows("o", 3, 80, ["r"])), CONFIG)
    reference = table(old).rename_columns(["example_id", *table(old).column_names[1:]])
    made, both_old = {}, {}
    for honour in (False, True):
        spies = {module: Spy(honour) for module in (conflicts, near_copies)}
        for module, spy in spies.items():
            monkeypatch.setattr(module, "near_duplicates", spy)
        made[honour] = [
            label_conflicts(table(new), CONFIG, table(old)),
            near_reference(table(new), reference, CONFIG),
            near_reference(table(many), reference, CONFIG),
            deduplicate(table(new), CONFIG, apart),
        ]
        assert all(spy.calls for spy in spies.values())
        both_old[honour] = spies[conflicts].both_old
    assert all(one.equals(other) for one, other in zip(made[False], made[True], strict=True))
    assert all(part.num_rows > 5 for part in made[True])
    assert both_old[False] > 0 and both_old[True] == 0


def test_earlier_samples_near_each_other_give_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "near_duplicates", spy := Spy(True))
    deduplicate(table(sentence_rows("n", 0, 10, ["r"])), CONFIG, table(sentence_rows("o", 1, 80, ["r"])))
    assert (spy.calls, spy.both_old) == (1, 0)
