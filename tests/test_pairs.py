"""The user's file of entity pairs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import FASTER
from made_examples import marked

from divray.commands import preview
from divray.config import Config, load_config
from divray.datasets.stage import run as prepare
from divray.errors import InputError
from divray.pipeline import check
from divray.prompts import run as prompt
from divray.prompts.pairs import read_pairs, read_pool
from divray.prompts.parsing import form_of
from divray.quickstart import folder
from divray.relations import Relation
from divray.run_folder import RunFolder

RELATION = Relation("works_for", "The head works for the tail.", "person", "organization")
FORM = form_of([marked("[Maria Lopez] works as a welder at {Nordhaven}.")], [RELATION])
SMALL = [
    *FASTER,
    "sampling.candidates_per_relation=8",
    "sampling.naive_candidates_per_relation=2",
    "prompts.candidates_per_prompt=4",
]


def settings(*overrides: str) -> Config:
    return load_config(folder() / "quickstart.yaml", [*SMALL, *overrides])


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
        ('{"relation": "works_for", "head": "Ada", "head": "Eva", "tail": "Hask"}', "line 1: key 'head' stands there twice"),
        ('{"relation": "works_for", "head": "\\ud83d", "tail": "Hask"}', "line 1, head: half a surrogate pair"),
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


def answer(row: dict[str, Any]) -> dict[str, Any]:
    record = f" Ada Varn\nTail (x): Hask\nSentence: On day {row['seed'] % 97}, Ada Varn was seen near Hask."
    return {"completion": record, "generated_tokens": 9, "prompt_tokens": 40, "finish_reason": "stop"}


def test_a_preview_shows_prompts_and_what_becomes_of_their_completions(ray_two_cpus: None, tmp_path: Path) -> None:
    blocks = list(preview(settings(), 1, answer=answer))
    assert sum(block.startswith("\n=== ") for block in blocks) == 6 * 2
    verdicts = [block for block in blocks if block.startswith("  [")]
    assert len(verdicts) == 6 * 2 and all(block.startswith("  [valid]\n    ") for block in verdicts)


@pytest.mark.parametrize(("name", "text"), [("p.csv", "relation,head,tail\n"), ("p.jsonl", "\n \n")])
def test_a_file_without_pairs_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError):
        read_pairs(str(tmp_path / name), [RELATION], FORM)
