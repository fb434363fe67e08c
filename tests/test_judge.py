"""The judges: what they see of a sample, what they tell apart, and what their scores must not depend on."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from divray.config import Config
from divray.datasets.stage import examples_table, read_relations, read_seeds
from divray.datasets.stage import run as prepare
from divray.layout import SEEDS as SEEDS_OF_RUN
from divray.relations import Example, Relation
from divray.run_folder import RunFolder
from divray.scoring import answers, audit
from divray.scoring import judge as judge_module
from divray.scoring.answers import Likelihood, Probe, ask, readings
from divray.scoring.audit import AUDIT, AUDIT_PROBED
from divray.scoring.judge import (
    FLUENCY,
    PLAIN,
    PROBED,
    SIGNALS,
    SPREAD,
    Judge,
    Judging,
    described_seeds,
    fit_judge,
    probability,
    probe_for,
    shipped,
)  # fmt: skip
from divray.sections import CorrectnessConfig
from divray.spans import BLOCKS, exchanged

NAMES = ["Ada", "Omar", "Clara", "Tom", "Rosa", "Priya", "Hana", "Lucas", "Ines", "Bruno"]
FIRMS = ["Alden", "Selby", "Claro", "Kestrel", "Ironbridge", "Akoma", "Osprey", "Lima", "Vero", "Nord"]
WORDING = {
    "founder": ["{h} founded {t} that year.", "{t} was founded by {h} long ago.", "It was {h} who set up {t}."],
    "works_for": ["{h} works as a clerk at {t}.", "{t} employs {h} as a driver.", "For years {h} was on the staff of {t}."],
}
RELATIONS = tuple(WORDING)
DESCRIPTIONS = {"founder": "The head is a person who founded the tail, an organization.", "works_for": "The head has a job at the tail."}


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


def spans(examples: list[Example]) -> np.ndarray:
    """The features of the span encoder, with bags of words in the place of its states."""
    blocks = []
    for example in examples:
        first, second = sorted((example.head, example.tail))
        own, none = encode([example.text[first[1] : second[0]].strip() or ","])[0], np.zeros(64)
        order = [own, none] if example.head < example.tail else [none, own]
        names = encode([example.head_text, example.tail_text])
        blocks.append(np.concatenate([*names, *order, *order, *names]))
    return np.array(blocks, np.float32)


def judge_of(seeds: list[Example]) -> Judge:
    described = described_seeds([Relation(name, DESCRIPTIONS[name]) for name in RELATIONS], seeds)
    return fit_judge(RELATIONS, seeds, spans(seeds), spans(described), np.zeros(2))


def signals(judge: Judge, examples: list[Example]) -> np.ndarray:
    return judge.signals(examples, spans(examples), np.zeros((len(examples), 3)))


def gate(found: np.ndarray, name: str = PLAIN) -> np.ndarray:
    return probability(name, dict(zip(SIGNALS, found.T, strict=True)))


SEEDS = [sentence(relation, number, number % 3) for relation in WORDING for number in range(6)]
RIGHT = [sentence(relation, number, wording) for relation in WORDING for number in (7, 8) for wording in range(3)]
OTHER = {"founder": "works_for", "works_for": "founder"}


def test_right_samples_score_above_wrong_and_reversed_ones() -> None:
    judge = judge_of(SEEDS)
    own = gate(signals(judge, RIGHT))
    assert ((own >= 0) & (own <= 1)).all()
    assert (own > gate(signals(judge, [replace(e, relation=OTHER[e.relation]) for e in RIGHT]))).all()
    assert own.mean() > gate(signals(judge, [reversed_(e) for e in RIGHT])).mean()


def test_exchanged_features_are_those_of_the_exchanged_example() -> None:
    plain, turned = (spans(examples)[:, : BLOCKS * 64] for examples in (RIGHT, [reversed_(example) for example in RIGHT]))
    assert np.array_equal(exchanged(plain), turned)


def test_the_order_that_the_seeds_prefer_says_nothing_of_a_direction() -> None:
    wordings = {
        "founder": ["{t} was founded by {h}.", "{t} is a firm of {h}."],
        "works_for": ["{h} has a job at {t}.", "{h} is paid by {t}."],
    }

    def example(relation: str, number: int, text: str) -> Example:
        head, tail = NAMES[number], FIRMS[number]
        text = text.format(h=head, t=tail)
        h, t = text.index(head), text.index(tail)
        return Example(text, (h, h + len(head)), (t, t + len(tail)), relation, example_id=f"{relation}-{number}")

    judge = judge_of([example(relation, number, texts[number % 2]) for relation, texts in wordings.items() for number in range(6)])
    other_order = [example("founder", number, "{h} once set up {t}.") for number in (1, 2)]
    gap = signals(judge, other_order)[:, SIGNALS.index("reversal")] + judge.origin[SIGNALS.index("reversal")]
    assert (gap > 0).all()


def test_a_description_becomes_an_example_where_it_names_head_and_tail() -> None:
    relations = [Relation("founder", "The tail is a firm that the head founded."), Relation("works_for", "A job.")]
    founder, works_for = described_seeds(relations, [SEEDS[0], SEEDS[-1]])
    assert founder.text == f"{SEEDS[0].tail_text} is a firm that {SEEDS[0].head_text} founded."
    assert (founder.head_text, founder.tail_text) == (SEEDS[0].head_text, SEEDS[0].tail_text)
    assert works_for == SEEDS[-1]


def test_order_batches_and_company_change_nothing() -> None:
    order = np.random.default_rng(1).permutation(len(RIGHT))
    whole = signals(judge_of(SEEDS), RIGHT)
    assert np.array_equal(signals(judge_of(SEEDS), [RIGHT[row] for row in order]), whole[order])
    single = np.concatenate([signals(judge_of(SEEDS), [example]) for example in RIGHT])
    assert np.array_equal(single, whole)


def test_signals_are_less_those_of_the_seeds_judged_without_themselves() -> None:
    judge = judge_of(SEEDS)
    assert whole_shape(judge) == (len(RIGHT), len(SIGNALS))
    near = signals(judge, SEEDS)[:, SIGNALS.index("near")]
    assert (near > 0).all()  # a seed is nearer to itself than seeds are to each other


def whole_shape(judge: Judge) -> tuple[int, ...]:
    return signals(judge, RIGHT).shape


def test_only_a_sentence_longer_than_the_seeds_has_a_length() -> None:
    judge, place = judge_of(SEEDS), SIGNALS.index("length")
    example = RIGHT[0]
    long = replace(example, text=f"{example.text} {'And so on and so on. ' * 10}")
    short, shorter, longer = signals(judge, [replace(example, text=example.text[:16]), replace(example, text=example.text[:14]), long])[
        :, place
    ]
    assert short == shorter < 0 < longer  # 0 less the seeds' mean


@pytest.mark.parametrize("kept", [1, 2])
def test_few_seeds_and_one_relation(kept: int) -> None:
    few = [seed for relation in RELATIONS for seed in [one for one in SEEDS if one.relation == relation][:kept]]
    assert np.isfinite(signals(judge_of(few), RIGHT)).all()
    only = [seed for seed in SEEDS if seed.relation == "founder"][:kept]
    assert np.isfinite(signals(judge_of(only), [sentence("founder", 8, 0)])).all()


def test_a_lone_seed_of_one_relation_moves_the_signals_of_the_others_little() -> None:
    lone = next(seed for seed in SEEDS if seed.relation != "founder")
    with_lone = judge_of([seed for seed in SEEDS if seed.relation != lone.relation or seed is lone])
    sample = [sentence("founder", 8, 0)]
    difference = signals(with_lone, sample) - signals(judge_of(SEEDS), sample)
    assert np.abs(difference[0, : SIGNALS.index("length")]).max() < SPREAD


def test_no_samples() -> None:
    empty = judge_of(SEEDS).signals([], np.zeros((0, (BLOCKS + 2) * 64)), np.zeros((0, 3)))
    assert empty.shape == (0, len(SIGNALS)) and gate(empty).shape == (0,)


READ = ("sentence", "stumble", "passed", "inside")


def test_the_shipped_weights_know_their_signals_and_the_audit_uses_none_of_the_gates() -> None:
    gates = {PLAIN: {"answer"}, FLUENCY: {"fluency", "answer"}, PROBED: {"fluency", "answer", "probe"}}
    signals_of = {**dict.fromkeys(gates, SIGNALS), **dict.fromkeys((AUDIT, AUDIT_PROBED), READ)}
    for name, known in signals_of.items():
        rows = shipped()[name]["signals"]
        assert {row["name"] for row in rows} <= set(known) and all(row["low"] < row["high"] for row in rows)
        assert 0 < probability(name, dict.fromkeys(known, np.zeros(1)))[0] < 1
    for name, heard in gates.items():
        assert {row["name"] for row in shipped()[name]["signals"]} & {"fluency", "answer", "probe"} == heard
    assert not set(READ) & set(SIGNALS)
    for name, llm in ((PROBED, CorrectnessConfig().fluency), (AUDIT_PROBED, CorrectnessConfig().reader)):
        assert probe_for(name, llm) is not None and probe_for(name, "another") is probe_for(name, None) is None
    likely, doubtful = (gate(np.array([[0.0] * 10 + [told]]), PROBED)[0] for told in (20.0, -20.0))
    assert likely > 0.9 and doubtful < 0.1
    loud, yes, nothing, no = (gate(np.array([[0.0] * 9 + [answer, 0.0]]), PROBED)[0] for answer in (30.0, 4.0, 0.0, -4.0))
    assert 0 < no < nothing < yes == loud < 1


def test_what_a_model_holds_of_a_text_is_that_of_its_own_tokens(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    likelihood = Likelihood(str(tiny_model))
    prefix, leads = "Some lines.\n\n", ["Head: Ann\nSentence:", "Head: Omar and Ada\nSentence:"]
    texts = [" Ann met Bob.", " They ran and ran and ran."]
    monkeypatch.setitem(answers.BATCH_TOKENS, "cpu", 1000)  # both in one batch, the first with padding
    for lead, text, (terms, states) in zip(leads, texts, likelihood.read(prefix, leads, texts, layer=1), strict=True):
        ids = [likelihood.tokenizer(part, add_special_tokens=False).input_ids for part in (prefix, lead, text)]
        own = len(ids[2])
        with torch.inference_mode():
            said = likelihood.model(torch.tensor([[*ids[0], *ids[1], *ids[2]]]), output_hidden_states=True)
        held, scores = said.hidden_states[1][0, -own:].double(), said.logits[0, -own - 1 : -1].log_softmax(-1)
        assert np.allclose(states, torch.cat([held.mean(0), held[-1]]), atol=1e-5)
        assert np.allclose(terms, scores.gather(1, torch.tensor(ids[2])[:, None])[:, 0], atol=1e-5)


NAMED = [Relation(name, f"The head {name} the tail.") for name in RELATIONS]


class Counting:
    """Answers with the number of right seeds shown, reads each word of a text as likely as its place says."""

    def __init__(self) -> None:
        self.prefixes: list[str] = []

    def answers(self, prefix: str, questions: list[str]) -> list[float]:
        self.prefixes.append(prefix)
        return [float(prefix.count("Answer: yes")) for _ in questions]

    def read(self, prefix: str, leads: list[str], texts: list[str], layer: int | None) -> list[tuple[np.ndarray, np.ndarray]]:
        self.prefixes.append(prefix)
        return [(-np.arange(1.0, 1 + len(text.split())), np.array([float(layer or 0), 1.0])) for text in texts]


def test_the_llm_is_asked_once_a_prefix_and_shown_right_and_wrong_seeds_but_not_the_one_asked_about() -> None:
    llm = Counting()
    assert ask(llm.answers, NAMED, SEEDS, RIGHT).tolist() == [6.0] * len(RIGHT)
    assert len(llm.prefixes) == len(RELATIONS)
    shown = llm.prefixes[0]
    assert shown.count("Answer: no") == 6 and "works" in shown and "founded" in shown
    assert ask(llm.answers, NAMED, SEEDS, SEEDS).tolist() == [5.0] * len(SEEDS)
    assert ask(llm.answers, NAMED, [], RIGHT[:1]).tolist() == [0.0]


def test_readings_are_means_of_a_sentences_own_tokens_under_the_records_of_its_relation() -> None:
    llm = Counting()
    example = sentence("founder", 7, 0)
    assert readings(llm, NAMED, SEEDS, [example]).tolist() == [[-3.0, -4.0, 0.0]]  # five words: -1 to -5
    assert readings(llm, NAMED, SEEDS, [example], Probe(7, np.array([2.0, 0.5])))[0, 2] == 14.5
    assert llm.prefixes[0].count("Sentence:") == 6 and "works" not in llm.prefixes[0]
    readings(llm, NAMED, SEEDS, SEEDS[:1])
    assert llm.prefixes[-1].count("Sentence:") == 5 and SEEDS[0].text not in llm.prefixes[-1]


def test_gate_and_audit_read_after_the_seeds_in_order_of_their_ids(quickstart: Config, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(uri)
    prepare(quickstart, run)
    run.write_table(SEEDS_OF_RUN, examples_table(read_seeds(run)[::-1]))
    for module, name in ((judge_module, "Encoder"), (judge_module, "Likelihood"), (audit, "Likelihood")):
        monkeypatch.setattr(module, name, MagicMock())
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [])
    judging, reader = Judging(quickstart, read_relations(run), read_seeds(run)), audit._Reader(quickstart, uri)
    ids = [seed.example_id for seed in judging.seeds]
    assert reader.known == (judging.relations, judging.seeds) and ids == sorted(ids) != [seed.example_id for seed in read_seeds(run)]
