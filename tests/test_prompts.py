from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest

from divray.config import Config, load_config
from divray.datasets.stage import load_task
from divray.prompts import STRATEGIES, request_rows, write_prompts
from divray.prompts.record import as_json, as_lines, labels
from divray.prompts.rows import Renderer, gives_pair, render_prompt
from divray.prompts.waves import Wave
from divray.quickstart import folder
from divray.run_folder import RunFolder
from divray.schemas import NAIVE, PROMPTS


def rows_of(config: Config, round_: int = 0, pool: dict[str, list[tuple[str, str]]] | None = None, **other: Any) -> list[dict]:
    task = load_task(config)
    return list(request_rows(config, task.relations, task.seeds, round_, pool=pool, **other))


def asked(messages: list[dict[str, str]]) -> str:
    """A chat template."""
    return f"<{messages[0]['role']}>{messages[0]['content']}<assistant>"


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


@pytest.mark.parametrize("chat", [None, asked])
def test_a_prompt_shows_the_relation_and_its_demonstrations_as_records(quickstart: Config, chat: Renderer | None) -> None:
    task = load_task(quickstart)
    seeds = {seed.example_id: seed for seed in task.seeds}
    relations = {relation.name: relation for relation in task.relations}
    for row in rows_of(quickstart, chat=chat)[::17]:
        relation = relations[row["relation"]]
        assert relation.description in row["prompt"]
        assert len(row["demonstrations"]) == quickstart.prompts.demonstrations
        for name in row["demonstrations"]:
            assert seeds[name].relation == row["relation"]
            shown = as_json(seeds[name]) if chat else as_lines(relation, seeds[name])
            assert f"\n{shown}\n" in row["prompt"]
        end = "Answer in JSON.<assistant>" if chat else f"\n\n{labels(relation)[0]}"
        assert row["prompt"].endswith(end)
        assert (row["head"], row["tail"]) == ("", "")


POOL = {"employed_by": [(f"Person {number}", f"Firm {number}") for number in range(12)]}


@pytest.mark.parametrize("chat", [None, asked])
def test_a_prompt_of_the_pool_gives_its_pair(quickstart: Config, chat: Renderer | None) -> None:
    rows = rows_of(quickstart, pool=POOL, chat=chat)
    given = [row for row in rows if row["head"]]
    assert {(row["relation"], row["strategy"]) for row in given} == {("employed_by", "independent")}
    assert len(given) == quickstart.sampling.candidates_per_relation
    for row in given:
        end = (
            f'head is "{row["head"]}" and whose tail is "{row["tail"]}"'
            if chat
            else f"{row['head']}\nTail (organization): {row['tail']}\nSentence:"
        )
        assert end in row["prompt"] if chat else row["prompt"].endswith(end)
    prompts = pa.chunked_array([[row["prompt"] for row in rows]])
    assert gives_pair(prompts).to_pylist() == [bool(row["head"]) for row in rows]


def test_prompts_take_the_pool_in_turn() -> None:
    strategies = "prompts.strategies={independent: 1, one_by_one: 1}"
    config = load_config(
        folder() / "quickstart.yaml", [strategies, "sampling.candidates_per_relation=32", "prompts.candidates_per_prompt=8"]
    )
    rows = [row for round_ in (0, 1) for row in rows_of(config, round_, POOL) if row["head"]]
    taken = {(row["round"], row["prompt_id"]): row["head"] for row in rows}
    assert len(taken) == len(set(taken.values())) == 8  # of 12: no pair twice before all were taken


def test_strategies_of_unequal_shares_leave_no_pair_out() -> None:
    overrides = ["prompts.strategies={independent: 0.75, one_by_one: 0.25}", "sampling.candidates_per_relation=96"]
    config = load_config(folder() / "quickstart.yaml", [*overrides, "prompts.candidates_per_prompt=8"])
    rows = [row for row in rows_of(config, 0, POOL) if row["head"]]
    assert len({row["prompt_id"] for row in rows}) == len({row["head"] for row in rows}) == 12


def test_the_prompts_of_a_later_wave_take_further_pairs(quickstart: Config) -> None:
    first = Wave(0, {"employed_by": {"independent": 11}})
    later = Wave(1, {"employed_by": {"independent": 13}}, {"employed_by": {"independent": 11}})
    rows = [rows_of(quickstart, 0, POOL, wave=wave) for wave in (first, later)]
    pairs = [[row["head"] for row in some] for some in rows]
    assert pairs == [["Person 0"] * 8 + ["Person 1"] * 3, ["Person 2"] * 8 + ["Person 3"] * 5]
    assert all(len({row["prompt"] for row in some if row["prompt_id"] == one["prompt_id"]}) == 1 for some in rows for one in some)


def test_a_list_of_records_has_no_pair_given() -> None:
    config = load_config(folder() / "quickstart.yaml", ["prompts.strategies={all_at_once: 1}"])
    assert not [row for row in rows_of(config, pool=POOL) if row["head"]]


@pytest.mark.parametrize(
    ("override", "chat", "kinds"),
    [
        ("prompts.strategies={independent: 1}", None, {""}),
        ("prompts.strategies={independent: 1}", asked, {"{"}),
        ("prompts.strategies={all_at_once: 1}", None, {"", " "}),  # the naive ones, and lists
        ("prompts.strategies={all_at_once: 1}", asked, {"{"}),
    ],
)
def test_chats_and_lists_are_decoded_under_a_pattern(override: str, chat: Renderer | None, kinds: set[str]) -> None:
    config = load_config(folder() / "quickstart.yaml", [override])
    assert {row["pattern"][:1] for row in rows_of(config, chat=chat)} == kinds


def test_naive_prompts_are_all_alike_and_have_no_wish(quickstart: Config) -> None:
    naive = [row["prompt"] for row in rows_of(quickstart) if row["strategy"] == NAIVE and row["relation"] == "born_in"]
    assert len(set(naive)) == 1
    assert "as different as possible" not in naive[0]


def test_a_user_may_register_a_strategy(quickstart: Config) -> None:
    def last_seed(config, relation, seeds, rng):  # type: ignore[no-untyped-def]
        return STRATEGIES["independent"](config, relation, seeds[-1:], rng)

    STRATEGIES["last_seed"] = last_seed
    try:
        config = load_config(folder() / "quickstart.yaml", ["prompts.strategies={last_seed: 1, independent: 3}"])
        counts = Counter(row["strategy"] for row in rows_of(config) if row["relation"] == "born_in")
        assert counts["last_seed"] * 3 == counts["independent"]
    finally:
        del STRATEGIES["last_seed"]


def test_chat_prompts_go_through_the_template(quickstart: Config) -> None:
    task = load_task(quickstart)
    draft = STRATEGIES[NAIVE](quickstart, task.relations[0], task.seeds[:5], None)  # type: ignore[arg-type]
    prompt = render_prompt(task.relations[0], draft, chat=asked)
    assert prompt.startswith("<user>")
    assert prompt.endswith("<assistant>")


def test_attributes_are_the_last_thing_before_the_record() -> None:
    config = load_config(folder() / "quickstart.yaml", ["prompts.attributes=true"])
    rows = [row for row in rows_of(config) if row["strategy"] != NAIVE]
    hints = {row["prompt"].split("\n")[-2] for row in rows}
    assert len(hints) > 6 and all(hint.startswith("Next: a") for hint in hints)


def test_rows_are_written_in_small_files(quickstart: Config, uri: str) -> None:
    run = RunFolder(uri)
    rows = rows_of(quickstart)
    assert write_prompts(run, "round-00/prompts", iter(rows)) == len(rows)
    assert len(run.files("round-00/prompts")) == -(-len(rows) // 32)
    table = run.read_table("round-00/prompts")
    assert table.schema == PROMPTS
    assert table == pa.Table.from_pylist(rows, PROMPTS)
