"""The pool of entity pairs: from a file, and written by the LLM first."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from begun_runs import quickstart_with
from conftest import FASTER
from made_examples import marked

from divray.commands import preview
from divray.config import Config, load_config
from divray.datasets.stage import load_task
from divray.datasets.stage import run as prepare
from divray.engines import Answer
from divray.engines.vllm import sampling_parameters
from divray.errors import InputError
from divray.pipeline import check
from divray.prompts import run as prompt
from divray.prompts.pairs import MOST_REPEATS, pair_rows, pairs_wanted, pool_of, read_pairs, read_pool
from divray.prompts.parsing import form_of
from divray.quickstart import folder
from divray.relations import Relation
from divray.run_folder import RunFolder
from divray.sampling import run as sample
from divray.schemas import PAIRS_A_COMPLETION, PROMPTS

RELATION = Relation("works_for", "The head works for the tail.", "person", "organization")
FORM = form_of([marked("[Maria Lopez] works as a welder at {Nordhaven}.")], [RELATION])
SMALL = [
    *FASTER,
    "sampling.candidates_per_relation=8",
    "sampling.naive_candidates_per_relation=2",
    "prompts.candidates_per_prompt=4",
]
settings = partial(quickstart_with, *SMALL)


def answers(*completions: str, finish_reason: str = "stop") -> list[dict[str, str]]:
    return [
        {"candidate_id": f"pairs-{number}", "relation": "r", "completion": text, "finish_reason": finish_reason}
        for number, text in enumerate(completions)
    ]


def test_a_list_is_asked_for_by_its_head_and_its_first_lines(quickstart: Config) -> None:
    task = load_task(quickstart)
    rows = list(pair_rows(quickstart, task.relations, task.seeds, None))
    assert pa.Table.from_pylist(rows, PROMPTS).num_rows == 6 * -(-2 * pairs_wanted(quickstart) // PAIRS_A_COMPLETION)
    assert len({row["seed"] for row in rows}) == len({row["candidate_id"] for row in rows}) == len(rows)
    seeds = [seed for seed in task.seeds if seed.relation == rows[0]["relation"]]
    assert all(f"\n{seed.head_text} | {seed.tail_text}\n" in rows[0]["prompt"] for seed in seeds)
    assert "\nHead (person) | Tail (organization)\n" in rows[0]["prompt"]
    parameters = sampling_parameters(quickstart, rows[0], greedy=False)
    assert parameters["stop"] == ["\n\n"] and parameters["max_tokens"] > quickstart.sampling.max_tokens
    assert "stop" not in sampling_parameters(settings("prompts.style=chat"), rows[0], greedy=False)
    (asked,) = {row["prompt"].splitlines()[-1] for row in pair_rows(quickstart, task.relations, task.seeds, lambda m: m[0]["content"])}
    assert str(PAIRS_A_COMPLETION) in asked


@pytest.mark.parametrize(
    ("completion", "pairs"),
    [
        (" Ada  Varn | Hask Motors \nBo Lind|Alden Mill\n", [("Ada Varn", "Hask Motors"), ("Bo Lind", "Alden Mill")]),
        ("1. Ada | Hask\n2) Bo | Alden\n- Cy | Mill\n* Di | Dale", [("Ada", "Hask"), ("Bo", "Alden"), ("Cy", "Mill"), ("Di", "Dale")]),
        ("| Head (person) | Tail (organization) |\n| --- | --- |\n| Ada | Hask |\n", [("Ada", "Hask")]),
        ('"Ada" | “Hask Motors”.', [("Ada", "Hask Motors")]),
        ("Here is the list:\n\nAda | Hask\nAda | Hask | 1990\nno bar\n | Hask\nBo |", [("Ada", "Hask")]),
        ("Ada | Hask\nada | HASK\nAda | ada", [("Ada", "Hask")]),
        ("maria lopez | Nordhaven\nMaria Lopez | Hask", [("Maria Lopez", "Hask")]),
        ("the person | Hask\nAda | an organization", []),
        ("İpek | Straße\nimkânsız | Groß Alden", [("İpek", "Straße"), ("imkânsız", "Groß Alden")]),
    ],
)
def test_pairs_are_read_from_a_list(completion: str, pairs: list[tuple[str, str]]) -> None:
    assert pool_of(answers(completion), FORM, 10).get("r", []) == pairs


def test_the_last_line_of_a_cut_list_counts_for_nothing() -> None:
    assert pool_of(answers("Ada | Hask\nBo | Ald", finish_reason="length"), FORM, 10) == {"r": [("Ada", "Hask")]}


def test_no_name_prevails_in_the_pool() -> None:
    names = ["Ada", "Bo", "Cy", "Di", "Ed"]
    lines = [f"{head} | {tail}" for head in names for tail in ("Hask", "Alden", "Mill", "Dale", "Ada")]
    pool = pool_of(answers("\n".join(lines), "\n".join(reversed(lines))), FORM, 100)["r"]
    uses = Counter(entity for pair in pool for entity in pair)
    assert len(pool) >= 4 and max(uses.values()) <= MOST_REPEATS
    assert pool_of(answers(*reversed(lines)), FORM, 3)["r"] == pool_of(answers(*reversed(lines)), FORM, 100)["r"][:3]


PAIRS = [("works_for", "Ada Varn", "Hask, Inc."), ("works_for", "1990", "007"), ("works_for", "2020-01-01", "true")]


def written(path: Path, pairs: list[tuple[str, ...]], names: tuple[str, ...] = ("relation", "head", "tail")) -> str:
    rows = [dict(zip(names, pair, strict=False)) | {"note": "x"} for pair in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS[1:2]])
def test_a_file_of_pairs_is_read_as_text(tmp_path: Path, pairs: list[tuple[str, ...]]) -> None:
    path = written(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(path, [RELATION], FORM) == {"works_for": [pair[1:] for pair in pairs]}


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (("owns", "Ada", "Hask"), ("line 2, relation", "'owns' is not among the relations", "Add it")),
        (("works_for", "", "Hask"), ("line 2, head", "'' is not a text", "Give a string")),
        (("works_for", "Ada", "the organization"), ("line 2", "placeholder_entity", "Correct or drop the row")),
        (("works_for", "Maria Lopez", "Nordhaven"), ("line 2", "seed_pair")),
        (("works_for", "Hask", "hask"), ("line 2", "same_entities")),
    ],
)
def test_a_bad_pair_is_named_with_its_row_and_what_to_do(tmp_path: Path, pair: tuple[str, ...], words: tuple[str, ...]) -> None:
    path = written(tmp_path / "pairs.jsonl", [PAIRS[0], pair])
    with pytest.raises(InputError) as caught:
        read_pairs(path, [RELATION], FORM)
    assert all(word in str(caught.value) for word in (path, *words))


def test_a_file_without_a_column_or_broken_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    written(path, PAIRS, ("relation", "head", "object"))
    for word in ("line 1, tail: missing", "line 1: invalid UTF-8"):
        with pytest.raises(InputError, match=word) as caught:
            read_pairs(str(path), [RELATION], FORM)
        assert str(path) in str(caught.value)
        path.write_bytes(b"\x00\xff{{{")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"relation": "works_for", "head": 1990, "tail": "Hask"}', "line 1, head: 1990 is not a text"),
        ('{"relation": "works_for", "head": ["Ada"], "tail": "Hask"}', "line 1, head: .'Ada'. is not a text"),
        ('{"relation": 7, "head": "Ada", "tail": "Hask"}', "line 1, relation: 7 is no label"),
        ('{"relation": "works_for", "head": "\\ud83d", "tail": "Hask"}', "line 1: no valid JSON .*surrogates not allowed"),
        (
            '{"relation": "works_for", "head": "Ada", "tail": "Hask"}\n{"head": "Ada", "tail": "Hask"}',
            "line 2, relation: None is no label",
        ),
        ("", "the file is empty"),
    ],
)
def test_a_jsonl_of_pairs_is_read_like_any_other(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        read_pairs(str(tmp_path / "pairs.jsonl"), [RELATION], FORM)


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_part_of_a_file_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    written(path, PAIRS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert read_pairs(str(path), [RELATION], FORM) == {"works_for": [pair[1:] for pair in PAIRS]}


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.txt", "missing.jsonl"])
def test_another_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "pairs.txt").write_text("x")
    with pytest.raises(InputError, match=r"prompts\.pairs_file") as caught:
        read_pairs(str(tmp_path / name), [RELATION], FORM)
    assert name in str(caught.value) and "Give a file" in str(caught.value)


def test_a_file_beside_the_settings_is_found_and_checked_before_the_run(tmp_path: Path) -> None:
    for file in folder().glob("*.*"):
        shutil.copy(file, tmp_path)
    path = tmp_path / "quickstart.yaml"
    path.write_text(f"{path.read_text()}\nprompts: {{pairs_file: pairs.jsonl}}\n")
    written(tmp_path / "pairs.jsonl", [("born_in", "Ada", "Rome")])
    config = load_config(path)
    assert config.prompts.pairs_file == str(tmp_path / "pairs.jsonl")
    check(config)
    written(tmp_path / "pairs.jsonl", [("borne_in", "Ada", "Rome")])
    with pytest.raises(InputError, match="borne_in"):
        check(config)


def test_the_users_pairs_are_given_and_a_relation_without_any_writes_its_own(tmp_path: Path, uri: str) -> None:
    path = written(tmp_path / "pairs.jsonl", [("born_in", "Ada Varn", "Alden"), ("born_in", "Bo Lind", "Mill")])
    config, run = settings(f"prompts.pairs_file={path}"), RunFolder(uri)
    prepare(config, run)
    assert prompt(config, run, 0)["pairs"] == 2
    assert read_pool(run) == {"born_in": [("Ada Varn", "Alden"), ("Bo Lind", "Mill")]}
    rows = run.read_table("round-00/prompts").to_pylist()
    given = Counter((row["relation"], row["head"]) for row in rows if row["head"])
    assert given == {("born_in", "Ada Varn"): 4, ("born_in", "Bo Lind"): 4}
    assert all(row["prompt"].endswith(":" if not row["head"] else f"{row['tail']}\nSentence:") for row in rows)


def answering(again: bool = True) -> Answer:
    """An engine that writes pairs, and for each of them a sentence; ``again``: it may be asked."""
    names = [f"{a}{b}" for a in ("Ber", "Dor", "Fal", "Gim", "Hul", "Jan") for b in ("ta", "mo", "lin", "dek")]

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        assert again, row["candidate_id"]
        number = row["seed"]
        text = "\n".join(f"{names[(number + place) % 24]} Holt | {names[(number + 5 * place) % 24]} Works" for place in range(12))
        if row["strategy"] != "pairs":
            head, tail = (row["head"], row["tail"]) if row["head"] else ("Ada Varn", "Hask")
            sentence = f"On day {number % 97}, {head} was seen near {tail}."
            text = f" {sentence}" if row["head"] else f" {head}\nTail (x): {tail}\nSentence: {sentence}"
        return {"completion": text, "generated_tokens": 9, "prompt_tokens": 40, "finish_reason": "stop"}

    return answer


def test_the_llm_writes_pairs_first_and_then_a_sentence_for_each(ray_two_cpus: None, uri: str) -> None:
    config, run = settings("prompts.pairs=first"), RunFolder(uri)
    prepare(config, run)
    counts = prompt(config, run, 0, answer=answering())
    pool = read_pool(run)
    assert counts["pairs"] == sum(map(len, pool.values())) == 6 * pairs_wanted(config) == 6 * 4
    first = run.read_table("round-00/prompts")
    prompt(config, run, 0, answer=answering(again=False))
    assert run.read_table("round-00/prompts") == first
    prompt(config, run, 1, answer=answering(again=False))
    rows = [*first.to_pylist(), *run.read_table("round-01/prompts").to_pylist()]
    taken = {row["prompt_id"]: (row["relation"], row["head"], row["tail"]) for row in rows if row["strategy"] != "naive"}
    assert Counter(taken.values()) == {(relation, *pair): 1 for relation, pairs in pool.items() for pair in pairs}
    assert sample(config, run, 0, answer=answering())["valid"] == 6 * 10


def test_a_preview_shows_prompts_and_what_becomes_of_their_completions(ray_two_cpus: None, tmp_path: Path) -> None:
    blocks = list(preview(settings("prompts.pairs=first"), 1, answer=answering()))
    assert sum(block.startswith("\n=== ") for block in blocks) == 6 * 2
    verdicts = [block for block in blocks if block.startswith("  [")]
    assert len(verdicts) == 6 * 2 and all(block.startswith("  [valid]\n    ") for block in verdicts)


@pytest.mark.parametrize(("name", "text"), [("p.csv", "relation,head,tail\n"), ("p.jsonl", "\n \n")])
def test_a_file_without_pairs_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError):
        read_pairs(str(tmp_path / name), [RELATION], FORM)
