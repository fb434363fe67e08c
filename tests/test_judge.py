"""The judges: what they see of a sample, what they tell apart, and what their scores must not depend on."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest

from divray.datasets import examples_table
from divray.relations import Example
from divray.scoring.features import feature_texts, lexical_features, sentence_features
from divray.scoring.judge import AUDIT, GATE, GATE_LLM, SIGNALS, Judge, Seeds, fit_judge, weights
from divray.scoring.readings import READINGS
from divray.scoring.spans import exchanged

NAMES = ["Ada", "Omar", "Clara", "Tom", "Rosa", "Priya", "Hana", "Lucas", "Ines", "Bruno"]
FIRMS = ["Alden", "Selby", "Claro", "Kestrel", "Ironbridge", "Akoma", "Osprey", "Lima", "Vero", "Nord"]
WORDING = {
    "founder": ["{h} founded {t} that year.", "{t} was founded by {h} long ago.", "It was {h} who set up {t}."],
    "works_for": ["{h} works as a clerk at {t}.", "{t} employs {h} as a driver.", "For years {h} was on the staff of {t}."],
}
RELATIONS = tuple(WORDING)


def sentence(relation: str, number: int, wording: int) -> Example:
    head, tail = NAMES[number], FIRMS[number]
    text = WORDING[relation][wording].format(h=head, t=tail)
    h, t = text.index(head), text.index(tail)
    return Example(text, (h, h + len(head)), (t, t + len(tail)), relation, example_id=f"{relation}-{number}-{wording}")


def reversed_(example: Example) -> Example:
    return replace(example, head=example.tail, tail=example.head)


def encode(texts: list[str]) -> np.ndarray:
    """Bags of words: each word has a random direction of its own."""
    rows = []
    for text in texts:
        words = text.lower().replace(".", " ").split() or [text]
        rows.append(sum(np.random.default_rng(zlib.crc32(word.encode())).normal(size=64) for word in words))
    matrix = np.array(rows)
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def masked(examples: list[Example]) -> np.ndarray:
    return encode([text[0] for text in feature_texts(examples_table(examples))])


def spans(examples: list[Example]) -> np.ndarray:
    """The blocks of the span encoder, with bags of words in the place of its states."""
    blocks = []
    for example, (_, between, head, tail) in zip(examples, feature_texts(examples_table(examples)), strict=True):
        own, none = encode([between])[0], np.zeros(64)
        order = [own, none] if example.head < example.tail else [none, own]
        blocks.append(np.concatenate([*encode([head, tail]), *order, *order, *order]))
    return np.array(blocks, np.float32)


def judge_of(seeds: list[Example]) -> Judge:
    table = examples_table(seeds)
    own = np.array([RELATIONS.index(seed.relation) for seed in seeds])
    readings = np.zeros((len(seeds), len(READINGS)))
    features = sentence_features(table, encode), sentence_features(table, encode, reverse=True)
    return fit_judge(RELATIONS, Seeds(own, spans(seeds), *features, masked(seeds), readings))


def signals(judge: Judge, examples: list[Example]) -> np.ndarray:
    readings = np.zeros((len(examples), len(READINGS)))
    relations = [example.relation for example in examples]
    return judge.signals(relations, spans(examples), sentence_features(examples_table(examples), encode), masked(examples), readings)


SEEDS = [sentence(relation, number, number % 3) for relation in WORDING for number in range(6)]
RIGHT = [sentence(relation, number, wording) for relation in WORDING for number in (7, 8) for wording in range(3)]
OTHER = {"founder": "works_for", "works_for": "founder"}


def test_feature_texts_show_order_and_reverse() -> None:
    table = examples_table([sentence("founder", 1, 1)])
    assert feature_texts(table) == [("TAIL was founded by HEAD", "was founded by", "Omar", "Selby")]
    assert feature_texts(table, reverse=True) == [("HEAD was founded by TAIL", "was founded by", "Selby", "Omar")]
    adjacent = examples_table([Example("Ada Rome is home.", (0, 3), (4, 8), "x")])
    assert feature_texts(adjacent) == [("HEAD TAIL", ",", "Ada", "Rome")]


def test_lexical_features_know_the_direction_and_nothing_of_the_names() -> None:
    one, other = sentence("founder", 1, 1), sentence("founder", 2, 1)
    forward = lexical_features(examples_table([one, other]))
    backward = lexical_features(examples_table([one, other]), reverse=True)
    assert np.array_equal(forward[0], forward[1])
    assert np.linalg.norm(forward[0]) == pytest.approx(0.75, abs=1e-2)
    assert abs(float(forward[0] @ backward[0])) < 0.1
    assert np.array_equal(lexical_features(examples_table([reversed_(one)]))[0], backward[0])


@pytest.mark.parametrize("name", [GATE, AUDIT])
def test_right_samples_score_above_wrong_and_reversed_ones(name: str) -> None:
    judge = judge_of(SEEDS)
    own = weights(name).probability(signals(judge, RIGHT))
    assert ((own >= 0) & (own <= 1)).all()
    assert (own > weights(name).probability(signals(judge, [replace(e, relation=OTHER[e.relation]) for e in RIGHT]))).all()
    assert own.mean() > weights(name).probability(signals(judge, [reversed_(e) for e in RIGHT])).mean()


def test_exchanged_features_are_those_of_the_exchanged_example() -> None:
    assert np.array_equal(exchanged(spans(RIGHT)), spans([reversed_(example) for example in RIGHT]))


def test_order_batches_and_company_change_nothing() -> None:
    order = np.random.default_rng(1).permutation(len(RIGHT))
    whole = signals(judge_of(SEEDS), RIGHT)
    assert np.array_equal(signals(judge_of(SEEDS), [RIGHT[row] for row in order]), whole[order])
    single = np.concatenate([signals(judge_of(SEEDS), [example]) for example in RIGHT])
    assert np.array_equal(single, whole)


def test_signals_are_less_those_of_the_seeds_judged_without_themselves() -> None:
    judge = judge_of(SEEDS)
    assert whole_shape(judge) == (len(RIGHT), len(SIGNALS))
    near = signals(judge, SEEDS)[:, SIGNALS.index("span_near")]
    assert (near > 0).all()  # a seed is nearer to itself than seeds are to each other


def whole_shape(judge: Judge) -> tuple[int, ...]:
    return signals(judge, RIGHT).shape


@pytest.mark.parametrize("kept", [1, 2])
def test_few_seeds_and_one_relation(kept: int) -> None:
    few = [seed for relation in RELATIONS for seed in [one for one in SEEDS if one.relation == relation][:kept]]
    assert np.isfinite(signals(judge_of(few), RIGHT)).all()
    only = [seed for seed in SEEDS if seed.relation == "founder"][:kept]
    assert np.isfinite(signals(judge_of(only), [sentence("founder", 8, 0)])).all()


def test_no_samples_and_an_unknown_relation() -> None:
    judge = judge_of(SEEDS)
    empty = judge.signals([], np.zeros((0, 512)), np.zeros((0, 1280)), np.zeros((0, 64), np.float32), np.zeros((0, len(READINGS))))
    assert empty.shape == (0, len(SIGNALS))
    with pytest.raises(ValueError, match="unheard_of"):
        signals(judge, [replace(RIGHT[0], relation="unheard_of")])


def test_the_shipped_weights_know_their_signals_and_the_audit_uses_none_of_the_gates() -> None:
    for name in (GATE, GATE_LLM, AUDIT):
        judge = weights(name)
        assert set(judge.signals) <= set(SIGNALS) and (judge.low < judge.high).all()
        middle = weights(name).probability(np.zeros((1, len(SIGNALS))))
        assert 0 < middle[0] < 1
    assert "answer" in weights(GATE_LLM).signals and "answer" not in weights(GATE).signals
    assert not set(weights(AUDIT).signals) & set(weights(GATE).signals)
