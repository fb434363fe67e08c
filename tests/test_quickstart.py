"""The quick-start task keeps what it promises: exact spans, clean single sentences, balance, no near copies."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

import pytest
import yaml
from made_examples import span_problem

from divray.config import load_config
from divray.quickstart import folder
from divray.relations import Example, mask_entities, parse_marked, render_marked

KEYS = {"id", "text", "head", "tail", "relation", "head_type", "tail_type"}
NAMED = ("person", "organization", "place")


def relations() -> list[dict[str, Any]]:
    return yaml.safe_load((folder() / "relations.yaml").read_text(encoding="utf-8"))


def seeds() -> list[Example]:
    examples = []
    for relation in relations():
        for marked in relation["examples"]:
            parsed = parse_marked(marked)
            assert parsed is not None, marked
            text, head, tail = parsed
            examples.append(Example(text, head, tail, relation["name"], relation["head_type"], relation["tail_type"]))
    return examples


def rows(name: str = "test.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder() / name).read_text(encoding="utf-8").splitlines()]


def examples_of(name: str) -> list[Example]:
    return [
        Example(r["text"], tuple(r["head"]), tuple(r["tail"]), r["relation"], r["head_type"], r["tail_type"], r["id"]) for r in rows(name)
    ]


def held_out() -> list[Example]:
    return examples_of("test.jsonl")


def negatives() -> list[Example]:
    return examples_of("negatives.jsonl")


def near_relation(negative: Example) -> str:
    """The relation that a negative only seems to state: its id is ``neg-<relation>-<number>``."""
    found = re.fullmatch(r"neg-(\w+)-\d\d", negative.example_id)
    assert found, negative.example_id
    return found[1]


def shingles(example: Example) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w'-]+", mask_entities(example.text, example.head, example.tail).lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def test_config_names_the_task_and_its_files() -> None:
    config = load_config(folder() / "quickstart.yaml")
    assert (config.task.name, config.task.format, config.task.metric) == ("quickstart", "divray", "micro")
    assert config.task.seeds_per_relation == 5
    assert config.task.data == str(folder())
    assert config.task.test is not None
    for name in (config.task.relations, config.task.test):
        assert (folder() / name).is_file()


def test_relations_are_described_and_carry_ten_seeds() -> None:
    found = relations()
    assert len({r["name"] for r in found}) == len(found) == 6
    for relation in found:
        assert set(relation) == {"name", "description", "head_type", "tail_type", "examples"}
        assert re.fullmatch(r"The head is [^.!?]+ the tail,? [^.!?]+\.", relation["description"])
        assert len(set(relation["examples"])) == len(relation["examples"]) == 10


def test_entity_types_alone_never_decide() -> None:
    sharing = Counter((r["head_type"], r["tail_type"]) for r in relations())
    assert set(sharing.values()) == {2}


def test_seeds_are_short_and_marked_in_both_orders() -> None:
    orders: dict[str, set[bool]] = defaultdict(set)
    for relation, example in zip((r for r in relations() for _ in r["examples"]), seeds(), strict=True):
        assert 8 <= len(example.text.split()) <= 16, example.text
        assert render_marked(example) in relation["examples"]
        orders[example.relation].add(example.head < example.tail)
    assert all(order == {True, False} for order in orders.values())


def test_rows_have_the_relation_s_types_and_unique_ids() -> None:
    types = {r["name"]: (r["head_type"], r["tail_type"]) for r in relations()}
    found = rows()
    assert all(set(r) == KEYS for r in found)
    assert all((r["head_type"], r["tail_type"]) == types[r["relation"]] for r in found)
    assert len({r["id"] for r in found}) == len(found)
    assert len({r["text"].lower() for r in found}) == len(found)


@pytest.mark.parametrize("part", [seeds, held_out, negatives])
def test_every_text_is_one_sentence_with_exact_spans(part: Any) -> None:
    for example in part():
        text = example.text
        assert span_problem(text, example.head, example.tail) == "", text
        for start, end in (example.head, example.tail):
            assert re.fullmatch(r"[\w'& -]+", text[start:end]), text
            assert not text[start - 1 : start].isalnum() and not text[end : end + 1].isalnum(), f"mark cuts a word: {text}"
        assert text.isascii() and not set(text) & set("[]{}\t\n"), text
        assert 6 <= len(text.split()) <= 30, text
        assert text[0].isupper() or text[0] == '"', text
        assert text[-1] in ".!?" and not re.search(r"[.!?]", text[:-1]), text
        assert text == " ".join(text.split()) and not re.search(r" [,.;:!?]", text), text


def test_test_set_is_large_balanced_and_in_both_orders() -> None:
    examples = held_out()
    counts = Counter(e.relation for e in examples)
    assert set(counts) == {r["name"] for r in relations()}
    assert len(examples) >= 600 and min(counts.values()) >= 100
    assert max(counts.values()) <= 1.1 * min(counts.values())
    head_first = Counter(e.relation for e in examples if e.head < e.tail)
    assert all(0.4 <= head_first[name] / counts[name] <= 0.6 for name in counts)


def test_organizations_and_places_stand_once_under_each_of_their_relations() -> None:
    under: dict[tuple[str, str], list[str]] = defaultdict(list)
    for example in held_out():
        if example.tail_type in NAMED:
            under[example.tail_type, example.tail_text].append(example.relation)
    assert under
    assert all(len(names) == len(set(names)) == 2 for names in under.values())


def test_no_person_stands_twice_and_no_name_of_a_seed_returns() -> None:
    unseen = [*held_out(), *negatives()]
    people = [e.head_text for e in unseen if e.head_type == "person"]
    assert len(set(people)) == len(people)
    known = {t for e in seeds() for t, kind in ((e.head_text, e.head_type), (e.tail_text, e.tail_type)) if kind in NAMED}
    for example in unseen:
        assert not any(name in example.text for name in known), example.text


def test_negatives_state_no_relation_and_are_balanced_over_those_they_are_near() -> None:
    types = {r["name"]: (r["head_type"], r["tail_type"]) for r in relations()}
    found = rows("negatives.jsonl")
    assert len({r["id"] for r in [*found, *rows()]}) == len(found) + len(rows())
    assert all(set(r) == KEYS and r["relation"] == "none" for r in found)
    examples = negatives()
    assert all((e.head_type, e.tail_type) == types[near_relation(e)] for e in examples)
    assert Counter(map(near_relation, examples)) == dict.fromkeys(types, 20)
    head_first = Counter(near_relation(e) for e in examples if e.head < e.tail)
    assert all(8 <= head_first[name] <= 12 for name in types)


def test_no_name_tells_a_negative_from_a_test_sentence() -> None:
    known = {(e.tail_type, e.tail_text) for e in held_out()}
    tails = [(e.tail_type, e.tail_text) for e in negatives() if e.tail_type in NAMED]
    assert len(set(tails)) == len(tails)
    assert set(tails) <= known


def test_no_sentence_is_a_near_copy_of_another_or_of_a_seed() -> None:
    everything = [(e.text, shingles(e)) for e in [*seeds(), *held_out(), *negatives()]]
    for (text, one), (other_text, other) in combinations(everything, 2):
        assert len(one & other) < 0.5 * len(one | other), f"{text} / {other_text}"
