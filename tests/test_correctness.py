"""The judge of correctness: what it sees, what it tells apart, and what its scores must not depend on."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import divray
from divray.correctness import (
    Judge,
    correctness_scores,
    feature_texts,
    fit_judge,
    fitting_rows,
    lexical_features,
    sentence_features,
)
from divray.datasets import Source, examples_table, read_relations_file
from divray.datasets.jsonl import read_jsonl
from divray.relations import Example
from divray.sections import CorrectnessConfig

NAMES = ["Ada", "Omar", "Clara", "Tom", "Rosa", "Priya", "Hana", "Lucas", "Ines", "Bruno"]
OTHERS = ["Zoe", "Ivo", "Mia", "Leo", "Uma", "Kai", "Eva", "Ned", "Amy", "Joe"]
FIRMS = ["Alden", "Selby", "Claro", "Kestrel", "Ironbridge", "Akoma", "Osprey", "Lima", "Vero", "Nord"]
WORDING = {
    "founder": ["{h} founded {t} that year.", "{t} was founded by {h} long ago.", "It was {h} who set up {t}."],
    "works_for": ["{h} works as a clerk at {t}.", "{t} employs {h} as a driver.", "For years {h} was on the staff of {t}."],
    "meets": ["{h} met {t} today.", "{h} met {t} again.", "{h} met {t} there."],
}


def sentence(relation: str, number: int, wording: int) -> Example:
    head, tail = NAMES[number], (OTHERS if relation == "meets" else FIRMS)[number]
    text = WORDING[relation][wording].format(h=head, t=tail)
    h, t = text.index(head), text.index(tail)
    spans = (h, h + len(head)), (t, t + len(tail))
    return Example(text, *spans, relation, "", "", f"{relation}-{number}-{wording}")


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


SEED_EXAMPLES = [sentence(relation, number, number % 3) for relation in WORDING for number in range(6)]
SEED_EXAMPLES += [replace(reversed_(e), example_id=f"{e.example_id}-back") for e in SEED_EXAMPLES if e.relation == "meets"]
SEEDS = examples_table(SEED_EXAMPLES)
FORWARD, BACKWARD = sentence_features(SEEDS, encode), sentence_features(SEEDS, encode, reverse=True)


def sample_table(examples: list[Example], intended: list[str]) -> pa.Table:
    table = examples_table([replace(e, relation=name) for e, name in zip(examples, intended, strict=True)])
    return table.append_column("candidate_id", pa.array([f"c{number:03d}" for number in range(len(examples))]))


def noisy_samples() -> tuple[pa.Table, np.ndarray]:
    """Samples of which two of five are right, and which those are."""
    examples, intended, truth = [], [], []
    for relation in WORDING:
        for number in range(10):
            for wording in range(3):
                kind = (number + wording) % 5
                example = sentence(relation, number, wording)
                wrong = [sentence(other, number, wording) for other in WORDING if other != relation]
                examples.append(example if kind < 2 else wrong[kind % 2])
                intended.append(relation)
                truth.append(kind < 2)
    return sample_table(examples, intended), np.array(truth)


def scores(table: pa.Table, config: CorrectnessConfig | None = None) -> np.ndarray:
    return correctness_scores(table, sentence_features(table, encode), SEEDS, FORWARD, BACKWARD, config or CorrectnessConfig())


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


def test_right_samples_score_above_wrong_and_reversed_ones() -> None:
    judge = fit_judge(SEEDS, FORWARD, BACKWARD, CorrectnessConfig(signals=["seeds"]))
    assert judge.folds == ()
    right = [sentence(r, number, wording) for r in ("founder", "works_for") for number in (7, 8) for wording in range(3)]
    names = [e.relation for e in right]
    other = [{"founder": "works_for", "works_for": "founder"}[name] for name in names]

    def score(examples: list[Example], intended: list[str]) -> np.ndarray:
        table = sample_table(examples, intended)
        return judge.score(table, sentence_features(table, encode))

    own = score(right, names)
    assert ((own >= 0) & (own <= 1)).all()
    assert (own > score(right, other)).all()
    assert (own > score([reversed_(e) for e in right], names)).all()


def test_a_relation_without_direction_is_judged_without() -> None:
    judge = fit_judge(SEEDS, FORWARD, BACKWARD, CorrectnessConfig(signals=["seeds"]))
    assert dict(zip(judge.relations, judge.directed.tolist(), strict=True)) == {"founder": True, "works_for": True, "meets": False}
    met = [sentence("meets", 8, 0)]
    forward, backward = sample_table(met, ["meets"]), sample_table([reversed_(met[0])], ["meets"])
    values = [float(judge.score(table, sentence_features(table, encode))[0]) for table in (forward, backward)]
    assert min(values) > 0.5


def test_noise_is_found_and_both_signals_beat_chance() -> None:
    from sklearn.metrics import roc_auc_score

    table, truth = noisy_samples()
    for signals in (["seeds"], ["out_of_fold"], ["seeds", "out_of_fold"]):
        assert roc_auc_score(truth, scores(table, CorrectnessConfig.model_validate({"signals": signals}))) > 0.95
    kept = scores(table) >= CorrectnessConfig().threshold
    assert truth[kept].mean() > 0.9 and kept[truth].mean() > 0.5


def test_order_and_partitions_change_nothing() -> None:
    table, _ = noisy_samples()
    features = sentence_features(table, encode)
    expected = dict(zip(table["candidate_id"].to_pylist(), scores(table).tolist(), strict=True))
    order = np.random.default_rng(1).permutation(table.num_rows)
    shuffled_seeds = np.random.default_rng(2).permutation(SEEDS.num_rows)
    judge = fit_judge(
        SEEDS.take(shuffled_seeds), FORWARD[shuffled_seeds], BACKWARD[shuffled_seeds], CorrectnessConfig(),
        *(lambda rows: (table.take(rows), features[rows]))(order[np.isin(order, fitting_rows(table, 2000))]),
    )  # fmt: skip
    found: dict[str, float] = {}
    for start in range(0, len(order), 7):
        rows = order[start : start + 7]
        part = table.take(rows)
        found.update(zip(part["candidate_id"].to_pylist(), judge.score(part, features[rows]).tolist(), strict=True))
    assert found == expected


def test_probability_does_not_depend_on_the_batch() -> None:
    judge = fit_judge(SEEDS, FORWARD, BACKWARD, CorrectnessConfig())
    groups = [str(number) for number in range(len(FORWARD))]
    whole = judge.probability(FORWARD, groups)
    single = np.concatenate([judge.probability(FORWARD[row : row + 1], groups[row : row + 1]) for row in range(len(FORWARD))])
    assert np.array_equal(whole, single) and whole.shape == (len(FORWARD), 3)


def test_copies_count_once_and_the_cap_holds() -> None:
    table, _ = noisy_samples()
    rows = fitting_rows(table, 2000)
    masked = {(row["relation"], feature_texts(table.slice(number, 1))[0][0]) for number, row in enumerate(table.to_pylist())}
    assert len(rows) <= len(masked) * 2 and sorted(rows.tolist()) == rows.tolist()
    capped = fitting_rows(table, 2).tolist()
    assert len(capped) == 2 * len(WORDING) and set(capped) <= set(rows.tolist())
    clustered = table.append_column("cluster", pa.array(["one"] * table.num_rows))
    assert len(fitting_rows(clustered, 2000)) == len(WORDING)


def test_llm_scores_join() -> None:
    table, _ = noisy_samples()
    plain = scores(table)
    certain = scores(table.append_column("llm_score", pa.array([1.0] * table.num_rows)))
    never = scores(table.append_column("llm_score", pa.array([0.0] * table.num_rows)))
    assert (certain > never).all()
    assert ((never <= plain) & (plain <= certain)).mean() > 0.9


def test_none_label_has_no_reversal_and_unknown_relations_are_refused() -> None:
    judge = fit_judge(SEEDS, FORWARD, BACKWARD, CorrectnessConfig(), none_label="works_for")
    assert not judge.directed[judge.relations.index("works_for")]
    with pytest.raises(ValueError, match="unheard_of"):
        table = sample_table([sentence("founder", 0, 0)], ["unheard_of"])
        judge.score(table, sentence_features(table, encode))


@pytest.mark.parametrize("kept", [1, 2])
def test_few_seeds_and_one_relation(kept: int) -> None:
    few = examples_table([e for r in WORDING for e in [x for x in SEED_EXAMPLES if x.relation == r][:kept]])
    one = examples_table([e for e in SEED_EXAMPLES if e.relation == "founder"][:kept])
    for seeds in (few, one):
        judge = fit_judge(seeds, sentence_features(seeds, encode), sentence_features(seeds, encode, True), CorrectnessConfig())
        table = sample_table([sentence("founder", 8, 0), reversed_(sentence("founder", 8, 0))], ["founder"] * 2)
        values = judge.score(table, sentence_features(table, encode))
        assert np.isfinite(values).all() and values[0] >= values[1]


def test_no_samples() -> None:
    table = sample_table([], [])
    assert sentence_features(table, encode).shape[0] == 0
    assert len(fitting_rows(table, 10)) == 0
    assert scores(table).shape == (0,)


@pytest.mark.slow
def test_quick_start_sentences_are_judged_well() -> None:
    from sklearn.metrics import roc_auc_score

    from divray.diversity.embeddings import Encoder

    folder = Path(divray.__file__).parent / "quickstart"
    seeds = examples_table([e for relation in read_relations_file(folder / "relations.yaml") for e in relation.examples])
    test = list(read_jsonl(Source(folder / "test.jsonl")))
    names = sorted({e.relation for e in test})
    encoder = Encoder("embedded:minilm")
    judge: Judge = fit_judge(
        seeds,
        sentence_features(seeds, encoder.encode),
        sentence_features(seeds, encoder.encode, True),
        CorrectnessConfig(signals=["seeds"]),
    )
    right = sample_table(test, [e.relation for e in test])
    wrong = sample_table(
        test, [names[(names.index(e.relation) + 1 + number % (len(names) - 1)) % len(names)] for number, e in enumerate(test)]
    )
    backward = sample_table([reversed_(e) for e in test], [e.relation for e in test])
    own, other, turned = (judge.score(table, sentence_features(table, encoder.encode)) for table in (right, wrong, backward))
    truth = np.repeat([1, 0], len(test))
    assert roc_auc_score(truth, np.concatenate([own, other])) > 0.9
    assert roc_auc_score(truth, np.concatenate([own, turned])) > 0.8
