from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import fmean

import pyarrow as pa
import pytest

from divray.config import Config, load_config
from divray.datasets import load_task
from divray.datasets.stage import run as prepare
from divray.prompts import ROWS_PER_FILE, STRATEGIES, render_prompt, request_rows, strategy, token_counter, write_prompts
from divray.prompts import run as prompt
from divray.prompts.notes import fitting_notes, tokens_outside
from divray.quickstart import folder
from divray.relations import render_marked
from divray.runs import RunFolder
from divray.sampling.constraint import anchored_pattern, shape_of
from divray.schemas import NAIVE, PROMPTS


def rows_of(config: Config, round_: int = 0) -> list[dict]:
    task = load_task(config)
    return list(request_rows(config, task.relations, task.seeds, round_))


def test_the_same_settings_give_the_same_rows(quickstart: Config) -> None:
    assert rows_of(quickstart) == rows_of(quickstart)
    other = load_config(folder() / "quickstart.yaml", ["seed=14"])
    assert [row["seed"] for row in rows_of(other)] != [row["seed"] for row in rows_of(quickstart)]


def test_counts_ids_and_seeds(quickstart: Config) -> None:
    rows = rows_of(quickstart)
    per = Counter((row["relation"], row["strategy"]) for row in rows)
    assert per["employed_by", NAIVE] == quickstart.sampling.naive_candidates_per_relation
    own = sum(count for (relation, name), count in per.items() if relation == "employed_by" and name != NAIVE)
    assert own == quickstart.sampling.candidates_per_relation
    assert len({row["candidate_id"] for row in rows}) == len(rows)
    assert len({row["seed"] for row in rows}) == len(rows)
    assert not [row for row in rows_of(quickstart, 1) if row["strategy"] == NAIVE]


def test_candidates_of_one_prompt_share_its_text_and_stand_together(quickstart: Config) -> None:
    rows = rows_of(quickstart)
    texts: dict[str, set[str]] = {}
    for row in rows:
        texts.setdefault(row["prompt_id"], set()).add(row["prompt"])
    assert all(len(some) == 1 for some in texts.values())
    order = [row["prompt_id"] for row in rows]
    assert sum(a != b for a, b in pairwise(order)) == len(texts) - 1


def test_a_prompt_shows_relation_demonstrations_and_the_next_number(quickstart: Config) -> None:
    task = load_task(quickstart)
    seeds = {seed.example_id: seed for seed in task.seeds}
    relations = {relation.name: relation for relation in task.relations}
    for row in rows_of(quickstart)[::17]:
        assert relations[row["relation"]].description in row["prompt"]
        for number, name in enumerate(row["demonstrations"], 1):
            assert f"\n{number}. {render_marked(seeds[name])}\n" in row["prompt"]
            assert seeds[name].relation == row["relation"]
        assert row["prompt"].endswith(f"\n{len(row['demonstrations']) + 1}.")


def test_an_anchored_pattern_belongs_to_the_first_demonstration(quickstart: Config) -> None:
    task = load_task(quickstart)
    seeds, shape = {seed.example_id: seed for seed in task.seeds}, shape_of(task.seeds)
    anchored = [row for row in rows_of(quickstart) if row["strategy"] == "anchored"]
    assert anchored
    assert all(row["pattern"] == anchored_pattern(seeds[row["demonstrations"][0]], shape) for row in anchored)


def test_notes_let_the_prompts_of_a_relation_end_with_a_block(quickstart: Config) -> None:
    task, count = load_task(quickstart), token_counter(quickstart)
    plain, noted = (
        list(request_rows(config, task.relations, task.seeds, 0, length=count))
        for config in (load_config(folder() / "quickstart.yaml", ["prompts.cache_block=0"]), quickstart)
    )
    assert [row["candidate_id"] for row in plain] == [row["candidate_id"] for row in noted]
    outside: dict[str, list[float]] = {}
    for relation in task.relations:
        for rows in (plain, noted):
            own = [row for row in rows if row["relation"] == relation.name and row["strategy"] != NAIVE]
            outside.setdefault(relation.name, []).append(fmean(tokens_outside(row["length"], 32) for row in own))
            heads = {row["prompt"].partition("\n\n1.")[0] for row in own}
            assert len(heads) == 1
    assert all(after <= before for before, after in outside.values())
    assert fmean(after for _, after in outside.values()) < 7 < fmean(before for before, _ in outside.values())
    naive = [row["prompt"] for row in noted if row["strategy"] == NAIVE]
    assert naive == [row["prompt"] for row in plain if row["strategy"] == NAIVE]


def test_notes_need_a_tokenizer_and_follow_it() -> None:
    def prompt(notes: tuple[str, ...]) -> str:
        return " ".join(["word"] * 30 + list(notes))

    assert fitting_notes([prompt], lambda text: None, 32) == ()
    assert fitting_notes([prompt], lambda text: 33, 32) == ()
    words = fitting_notes([prompt], lambda text: len(text.split()), 32)
    assert tokens_outside(len(prompt(words).split()), 32) == 1


def test_free_decoding_has_no_pattern() -> None:
    config = load_config(folder() / "quickstart.yaml", ["sampling.constrained=false"])
    assert {row["pattern"] for row in rows_of(config)} == {""}


def test_naive_prompts_are_all_alike_and_have_no_wish(quickstart: Config) -> None:
    naive = [row["prompt"] for row in rows_of(quickstart) if row["strategy"] == NAIVE and row["relation"] == "born_in"]
    assert len(set(naive)) == 1
    assert "as different as possible" not in naive[0]


def test_a_user_may_register_a_strategy(quickstart: Config) -> None:
    @strategy("last_seed")
    def last_seed(config, relation, seeds, rng):  # type: ignore[no-untyped-def]
        return STRATEGIES["independent"](config, relation, seeds[-1:], rng)

    try:
        config = load_config(folder() / "quickstart.yaml", ["prompts.strategies={last_seed: 1, independent: 3}"])
        counts = Counter(row["strategy"] for row in rows_of(config) if row["relation"] == "born_in")
        assert counts["last_seed"] * 3 == counts["independent"]
    finally:
        del STRATEGIES["last_seed"]


def test_chat_prompts_go_through_the_template(quickstart: Config) -> None:
    task = load_task(quickstart)
    draft = STRATEGIES[NAIVE](quickstart, task.relations[0], task.seeds[:5], None)  # type: ignore[arg-type]
    prompt = render_prompt(task.relations[0], draft, lambda messages: f"<{messages[0]['role']}>{messages[0]['content']}<assistant>")
    assert prompt.startswith("<user>")
    assert prompt.endswith("<assistant>5.")


def test_rows_are_written_in_small_files(quickstart: Config, uri: str) -> None:
    run = RunFolder(uri)
    rows = rows_of(quickstart)
    assert write_prompts(run, "round-00/prompts", iter(rows)) == len(rows)
    assert len(run.files("round-00/prompts")) == -(-len(rows) // ROWS_PER_FILE)
    table = run.read_table("round-00/prompts")
    assert table.schema == PROMPTS
    assert table == pa.Table.from_pylist(rows, PROMPTS)


def test_prompts_are_counted_before_the_engine_sees_them(quickstart: Config) -> None:
    count = token_counter(quickstart)
    assert count is not None
    assert 10 <= (count("word " * 10) or 0) <= 12
    assert 2990 <= (count("word " * 3000) or 0) <= 3010
    assert token_counter(load_config(folder() / "quickstart.yaml", ["models.llm=s3://bucket/model"])) is None


def test_the_share_of_seeds_within_the_constraint_is_told(quickstart: Config, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(uri)
    prepare(quickstart, run)
    assert prompt(quickstart, run, 0)["seed_acceptance"] == 1.0
    assert "constraint" not in capsys.readouterr().err
    seeds = run.read_table("data/seeds")
    texts = [text[:-1] if number < 2 else text for number, text in enumerate(seeds["text"].to_pylist())]  # two without their full stop
    run.write_table("data/seeds", seeds.set_column(seeds.schema.get_field_index("text"), "text", pa.array(texts)))
    assert prompt(quickstart, run, 0)["seed_acceptance"] == 0.933
    assert "93.3%" in capsys.readouterr().err
