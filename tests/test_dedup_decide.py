from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray.dedup.decide import Decisions, components, in_words, ranks
from divray.dedup.decide import decide as decide_ranked
from divray.dedup.verify import Pairs


def pairs_of(edges: dict[tuple[int, int], float]) -> Pairs:
    keys = sorted(edges)
    left, right = (np.array([key[side] for key in keys], np.int64) for side in (0, 1))
    return Pairs(left, right, np.array([edges[key] for key in keys], np.float64))


def decide(ids: Any, *rest: Any, **options: Any) -> Decisions:
    return decide_ranked(ranks(pa.array(ids)), *rest, **options)


def reasons(made: Decisions, ids: Any) -> list[str]:
    said: list[str] = in_words(made.why, made.copy_of, made.copy_similarity, pa.array(ids)).to_pylist()
    return said


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, dict[tuple[int, int], float], list[float], list[bool]]:
    n = draw(st.integers(1, 12))
    possible = [(i, j) for i in range(n) for j in range(i + 1, n)]
    chosen = draw(st.lists(st.sampled_from(possible), unique=True, max_size=25)) if possible else []
    edges = {edge: draw(st.sampled_from([0.7, 0.8, 0.9])) for edge in chosen}
    scores = draw(st.lists(st.sampled_from([0.1, 0.5, 0.9, float("nan")]), min_size=n, max_size=n))
    fixed = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return n, edges, scores, fixed


@settings(max_examples=80, deadline=None)
@given(graphs())
def test_kept_items_are_a_maximal_independent_set(graph: tuple[int, dict[tuple[int, int], float], list[float], list[bool]]) -> None:
    n, edges, scores, fixed = graph
    ids = [f"{(7 * i) % 13:02d}" for i in range(n)]
    made = decide(ids, pairs_of(edges), np.array(scores), np.array(fixed))
    near = {i: {(set(edge) - {i}).pop(): value for edge, value in edges.items() if i in edge} for i in range(n)}
    for i in range(n):
        kept_neighbours = {j: value for j, value in near[i].items() if made.kept[j]}
        if fixed[i]:
            assert made.kept[i]
        elif made.kept[i]:
            assert not kept_neighbours
            assert made.copy_of[i] == -1 and reasons(made, ids)[i].startswith("kept: ")
        else:
            best = min(kept_neighbours, key=lambda j: (-kept_neighbours[j], ids[j]))
            assert made.copy_of[i] == best and made.copy_similarity[i] == kept_neighbours[best]
            assert reasons(made, ids)[i] == f"near copy of {ids[best]} ({kept_neighbours[best]:.2f})"


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_the_component_rule_keeps_one_of_each_cluster(graph: tuple[int, dict[tuple[int, int], float], list[float], list[bool]]) -> None:
    n, edges, scores, fixed = graph
    ids = [(7 * i) % 13 for i in range(n)]
    made = decide(ids, pairs_of(edges), np.array(scores), np.array(fixed), rule="component")
    cluster = {i: {i} for i in range(n)}
    for i, j in edges:
        merged = cluster[i] | cluster[j]
        cluster.update(dict.fromkeys(merged, merged))
    degree = [sum(i in edge for edge in edges) for i in range(n)]
    rank = {i: (not fixed[i], -np.nan_to_num(scores[i], nan=-1.0), -degree[i], ids[i]) for i in range(n)}
    said = reasons(made, ids)
    for i in range(n):
        first = min(cluster[i], key=rank.__getitem__)
        assert ids[made.cluster[i]] == min(ids[j] for j in cluster[i])
        assert made.kept[i] == (i == first or fixed[i])
        if made.kept[i]:
            assert made.copy_of[i] == -1 and made.copy_similarity[i] == 0 and said[i].startswith("kept: ")
            continue
        near = {j: edges.get((min(i, j), max(i, j)), 0.0) for j in cluster[i] if made.kept[j]}
        best = min(near, key=lambda j: (-near[j], ids[j]))
        if near[best]:
            assert (made.copy_of[i], made.copy_similarity[i]) == (best, near[best])
            assert said[i] == f"near copy of {ids[best]} ({near[best]:.2f})"
        else:
            assert (made.copy_of[i], made.copy_similarity[i]) == (first, 0.0)
            assert said[i] == f"linked by near copies to {ids[first]}"


@settings(max_examples=100, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_the_order_of_items_changes_nothing(graph: Any, random: Any) -> None:
    n, edges, scores, fixed = graph
    ids = [f"s{i}" for i in range(n)]
    place = random.sample(range(n), n)
    moved = {(min(place[i], place[j]), max(place[i], place[j])): value for (i, j), value in edges.items()}
    back = np.argsort(place)
    one = decide(ids, pairs_of(edges), np.array(scores), np.array(fixed))
    two = decide([ids[i] for i in back], pairs_of(moved), np.array(scores)[back], np.array(fixed)[back])
    for i in range(n):
        assert one.kept[i] == two.kept[place[i]]
        assert one.why[i] == two.why[place[i]]
        assert ids[one.cluster[i]] == ids[back[two.cluster[place[i]]]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), st.data())
def test_groups_are_short_for_all_their_pairs(labels: list[int], data: st.DataObject) -> None:
    _, group = np.unique(labels, return_inverse=True)
    n, groups = len(labels), int(group.max()) + 1
    fixed = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    scores = np.array(data.draw(st.lists(st.sampled_from([0.2, 0.8]), min_size=n, max_size=n)))
    possible = [(g, h) for g in range(groups) for h in range(g + 1, groups)]
    chosen = data.draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    edges = dict.fromkeys(chosen, 0.75)
    spelled = {}
    for i in range(n):
        for j in range(i + 1, n):
            if group[i] == group[j]:
                spelled[i, j] = 1.0
            elif (min(group[i], group[j]), max(group[i], group[j])) in edges:
                spelled[i, j] = 0.75
    ids = [f"s{i}" for i in range(n)]
    short: Decisions = decide(ids, pairs_of(edges), scores, fixed, group)
    long: Decisions = decide(ids, pairs_of(spelled), scores, fixed)
    assert short.why.tolist() == long.why.tolist()
    assert short.kept.tolist() == long.kept.tolist()
    assert short.cluster.tolist() == long.cluster.tolist()
    assert short.copy_of.tolist() == long.copy_of.tolist()


def test_a_chain_keeps_both_ends_and_says_why() -> None:
    chain = pairs_of({(0, 1): 0.8, (1, 2): 0.7})
    ids = ["c", "b", "a", "d"]
    made = decide(ids, chain, np.array([0.9, 0.5, 0.4, 0.1]))
    assert made.kept.tolist() == [True, False, True, True]
    assert [["c", "b", "a", "d"][i] for i in made.cluster] == ["a", "a", "a", "d"]
    assert reasons(made, ids) == [
        "kept: most correct of its cluster",
        "near copy of c (0.80)",
        "kept: near only to dropped ones",
        "kept: no near neighbour",
    ]
    central = decide(ids, chain)
    assert reasons(central, ids)[1] == "kept: most central of its cluster" and central.kept.tolist() == [False, True, False, True]
    twins = decide(["b", "a"], pairs_of({(0, 1): 0.8}))
    assert reasons(twins, ["b", "a"]) == ["near copy of a (0.80)", "kept: first id of its cluster"]


def test_fixed_items_always_stay() -> None:
    ids = ["x", "seed:7", "seed:8"]
    made = decide(ids, pairs_of({(0, 1): 0.9, (1, 2): 0.8}), np.array([1.0, 0.0, 0.0]), np.array([False, True, True]))
    assert made.kept.tolist() == [False, True, True]
    assert reasons(made, ids)[0] == "near copy of seed:7 (0.90)"


@pytest.mark.parametrize("n", [0, 1])
def test_tiny_inputs(n: int) -> None:
    made = decide(pa.array(["x"][:n], pa.string()), pairs_of({}))
    assert made.kept.tolist() == [True] * n and reasons(made, ["x"][:n]) == ["kept: no near neighbour"] * n


def test_components() -> None:
    labels = components(6, np.array([0, 4, 2]), np.array([4, 5, 3]))
    assert labels[0] == labels[4] == labels[5] and labels[2] == labels[3]
    assert len(set(labels.tolist())) == 3
