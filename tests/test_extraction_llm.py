from __future__ import annotations

import re

import pyarrow as pa
import pytest
from made_examples import span_problem

from divray.config import parse_config
from divray.datasets.stage import examples_table
from divray.extraction import answers as llm
from divray.relations import Example, Relation
from divray.run_folder import RunFolder
from divray.schemas import COMPLETIONS, PROMPTS

RELATIONS = [Relation("Cause-Effect(e1,e2)", "The head causes the tail."), Relation("Other", "None of them.")]


def example(text: str, head: str, tail: str, relation: str = "Other", identity: str = "t") -> Example:
    a, b = text.index(head), text.index(tail)
    return Example(text, (a, a + len(head)), (b, b + len(tail)), relation, example_id=identity)


SEEDS = [
    example("A storm caused a long and terrible flood.", "storm", "flood", "Cause-Effect(e1,e2)", "s0"),
    example("The storm caused a flood.", "storm", "flood", "Cause-Effect(e1,e2)", "s1"),
    example("The cat saw a flood.", "cat", "flood", "Other", "s2"),
]
TEST = [example(f"The virus number {i} caused a fever.", "virus", "fever", "Cause-Effect(e1,e2)", f"t{i}") for i in range(40)]


@pytest.fixture
def config():
    return parse_config({"task": {"name": "t", "relations": "r.yaml", "none_label": "Other"}}, "test")


def test_a_prompt_holds_the_labels_and_then_the_seeds_with_the_nearest_last(config):
    table = llm.request_table(config, RELATIONS, [SEEDS, SEEDS[::-1]], TEST[:2])
    assert table.schema == PROMPTS and table["demonstrations"].to_pylist() == [["s2", "s1", "s0"], ["s0", "s1", "s2"]]
    first, second = table["prompt"].to_pylist()
    nearest = "Sentence: A [storm] caused a long and terrible {flood}.\nRelation: Cause-Effect(e1,e2)\n\n"
    assert first.endswith(f"{nearest}Sentence: The [virus] number 0 caused a {{fever}}.\nRelation:")
    assert "- Cause-Effect(e1,e2): The head causes the tail.\n" in first and nearest in second
    assert table["candidate_id"].to_pylist() == table["prompt_id"].to_pylist() == ["llm-t0", "llm-t1"]
    assert [seed.example_id for seed in llm.prompt_of(RELATIONS, SEEDS, TEST[0], 250)[1]] == ["s0"]


def test_the_nearest_seeds_are_those_that_say_the_same():
    asked = [example("Heavy rain caused a landslide.", "rain", "landslide"), example("Our dog saw a landslide.", "dog", "landslide")]
    (cause, sight) = llm.nearest("embedded:minilm", SEEDS, asked)
    assert {*cause[:2]} == {0, 1} and sight[0] == 2 and len(cause) == len(SEEDS)


def test_only_labels_match_the_pattern(config):
    (pattern,) = set(llm.request_table(config, RELATIONS, [[]] * len(TEST), TEST)["pattern"].to_pylist())
    assert re.fullmatch(pattern, " Cause-Effect(e1,e2)") and re.fullmatch(pattern, " Other")
    assert not re.fullmatch(pattern, " Cause-Effect") and not re.fullmatch(pattern, "Other")


def test_many_labels_stay_within_the_room(config):
    many = [Relation(f"relation_number_{i}", "The head has a long and winding description of the tail." * 2) for i in range(40)]
    seeds = [example("The cat saw a flood.", "cat", "flood", r.name, r.name) for r in many]
    room = llm.room_of(config)
    prompt, shown = llm.prompt_of(many, seeds, TEST[0], room)
    assert 0 < len(shown) < 40 and prompt.rindex("Sentence:") <= room
    assert "winding" not in prompt and all(f"- {r.name}\n" in prompt for r in many)
    assert all(f"- {r.name}: {r.description}\n" in llm._instructions(many, 8000) for r in many)


def test_of_very_many_labels_those_of_the_nearest_seeds_are_listed(config):
    many = [Relation(f"relation_number_{i}", "x") for i in range(300)]
    seeds = [example("The cat saw a flood.", "cat", "flood", many[i].name, str(i)) for i in (7, 250)]
    prompt, shown = llm.prompt_of(many, seeds, TEST[0], llm.room_of(config))
    assert len(shown) == 2 and prompt.rindex("Sentence:") <= 2000
    assert re.findall(r"^- (\S+)", prompt, re.MULTILINE) == ["relation_number_7", "relation_number_250"]


def test_the_room_follows_what_the_model_takes(config):
    assert llm.room_of(config) == 2000
    longer = config.model_copy(update={"engine": config.engine.model_copy(update={"vllm": {"max_model_len": 32768}})})
    assert llm.room_of(longer) == 8000
    server = config.model_copy(update={"models": config.models.model_copy(update={"llm": "endpoint"})})
    assert llm.room_of(server) == 8000


def test_a_long_sentence_is_cut_around_its_entities():
    long = example("blah " * 300 + "the virus caused a fever" + " blah" * 300, "virus", "fever")
    cut = llm._shortened(long)
    assert len(cut.text) <= llm.SENTENCE_CHARACTERS + 10
    assert (cut.head_text, cut.tail_text) == ("virus", "fever")
    assert not span_problem(cut.text, cut.head, cut.tail)
    apart = example("virus " + "blah " * 300 + "fever", "virus", "fever")
    assert (llm._shortened(apart).head_text, llm._shortened(apart).tail_text) == ("virus", "fever")


def test_limit_is_a_seeded_sample_in_test_order():
    some = llm.chosen(TEST, 10, 1)
    assert len(some) == 10 and some == [e for e in TEST if e in some]
    assert some == llm.chosen(TEST, 10, 1) != llm.chosen(TEST, 10, 2)
    assert set(llm.chosen(TEST, 5, 1)) < set(some)
    assert llm.chosen(TEST, None, 1) == TEST


def test_it_asks_once_and_reads_the_answers(config, tmp_path, monkeypatch, ray_two_cpus):
    run = RunFolder(str(tmp_path))
    run.write_json("data/relations.json", [{"name": r.name, "description": r.description} for r in RELATIONS])
    run.write_table("data/seeds", examples_table(SEEDS))
    run.write_table("data/test", examples_table(TEST))
    calls = []

    def complete(config, run, source, target, model, *, greedy=False, on_progress=None):
        calls.append(bool(run.files(target)))
        assert greedy and model == config.models.llm and len(run.files(source)) == 2
        rows = run.read_table(source).to_pylist()[::-1]
        extra = {"prompt_tokens": 1, "generated_tokens": 1, "started_at": 0.0, "finished_at": 1.0, "engine": "x", "error": ""}
        answered = [{**row, **extra, "completion": " Cause-Effect(e1,e2)" if row["candidate_id"] != "llm-t3" else " Ca"} for row in rows]
        answered[0]["error"] = "too long"
        run.write_table(target, pa.Table.from_pylist(answered, COMPLETIONS))

    monkeypatch.setattr(llm, "complete", complete)
    assert llm.run(config, run) == {"sentences": 40, "answered": 38}
    asked, answers = llm.llm_answers(config, run)
    assert [e.example_id for e in asked] == [e.example_id for e in TEST]
    assert [a for i, a in enumerate(answers) if i not in (3, 39)] == ["Cause-Effect(e1,e2)"] * 38
    assert answers[3] is None and answers[39] is None
    llm.run(config, run)
    run.write_table("data/test", examples_table(TEST[:35]))
    llm.run(config, run)
    assert calls == [False, True, False]  # answers are kept while the requests are the same


def test_texts_without_blanks_are_cut_all_the_same() -> None:
    text = "他" * 2000 + "头" + "在" * 10 + "尾" + "她" * 2000
    short = llm._shortened(Example(text, (2000, 2001), (2011, 2012), "r"))
    assert len(short.text) <= llm.SENTENCE_CHARACTERS + 1 and (short.head_text, short.tail_text) == ("头", "尾")
