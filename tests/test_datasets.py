from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_examples import span_problem

from divray.config import Config, load_config, parse_config
from divray.datasets import stage as prepare
from divray.datasets.corpora import detokenize, read_fewrel, read_semeval, read_tacred
from divray.datasets.huggingface import read_huggingface
from divray.datasets.own import Source, read_jsonl, read_marked, read_relations_file
from divray.datasets.stage import examples_table, load_task, read_relations, table_examples
from divray.errors import InputError
from divray.relations import Example
from divray.run_folder import RunFolder
from divray.schemas import EXAMPLES

DATA = Path(__file__).parent / "data"
EXAMPLE_FILES = Path(__file__).parents[1] / "examples"
SHARED = Path(__file__).parents[1] / "../shared/data"
NEEDS_SHARED = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared/data")
ROW = {"text": "The storm caused flooding.", "head": [4, 9], "tail": [17, 25], "relation": "cause"}


def refused(call: Callable[[], Any], *parts: str) -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return caught.value


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# detokenization -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("Yes , he did n't .", "Yes, he didn't."),
        ("the king 's men ( and dogs ) left !", "the king's men (and dogs) left!"),
        ('He said " no , thanks " and " go " .', 'He said "no, thanks" and "go".'),
        ("`` One '' and `` two '' .", '"One" and "two".'),
        ("-LRB- see -LSB- 3 -RSB- -RRB-", "(see [3])"),
        ("worth $ 11 million or 24.4 % , # 1", "worth $11 million or 24.4%, #1"),
        ("the sailors ' songs", "the sailors' songs"),
        ("he called it ' odd ' again", "he called it 'odd' again"),
        ("Wait … what ?", "Wait… what?"),
        ("about .567 of it", "about .567 of it"),
        ("Belgrade ’s “ old ” town", "Belgrade’s “old” town"),
    ],
)
def test_detokenize(tokens: str, text: str) -> None:
    assert detokenize(tokens.split(" "))[0] == text


def test_infixes_are_joined_only_where_the_tokenizer_cut_them() -> None:
    tokens = ["a", "well", "-", "known", "Illinois", "/", "Indiana", "line", "-", "(", "old", ")"]
    assert detokenize(tokens, join_infixes=True)[0] == "a well-known Illinois/Indiana line - (old)"
    assert detokenize(tokens)[0] == "a well - known Illinois / Indiana line - (old)"


@given(st.lists(st.text(alphabet="ab1 \n.,'\"()[]-/$%`é’…s", max_size=4), max_size=14), st.booleans())
def test_detokenize_keeps_every_token_in_its_span(tokens: list[str], join: bool) -> None:
    text, spans = detokenize(tokens, join)
    assert len(spans) == len(tokens)
    assert text == text.strip() and "\n" not in text and "  " not in text
    position = 0
    for token, (start, end) in zip(tokens, spans, strict=True):
        assert position <= start <= end <= len(text)
        assert text[position:start].strip() == ""
        position = end
        if token.strip() not in ("``", "''"):
            assert text[start:end] == " ".join(token.split())
    assert position == len(text)


# SemEval ------------------------------------------------------------------------------------


def test_semeval() -> None:
    source = Source(DATA / "semeval.txt")
    examples = list(read_semeval(source))
    assert [(e.example_id, e.relation, e.head_text, e.tail_text) for e in examples] == [
        ("1", "Cause-Effect(e1,e2)", "storm", "flooding"),
        ("2", "Other", "kitchen", "smell"),
        ("4", "Cause-Effect(e2,e1)", "fire", "spark"),
    ]
    assert examples[0].text == "The storm caused heavy flooding in the valley."
    assert examples[2].text.endswith('said "Old Tom".')
    assert source.left_out == {"overlapping_entities": 1, "discontinuous_entity": 1}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("the file is empty",)),
        ('1\t"A <e1>cup</e1> of tea."\nOther\n', ("line 1 (sentence 1)", "<e2> is missing")),
        ('1\t"A <e1>cup</e1> of <e2>tea</e2>."\nOther\n\n2\t"A <e1>cup</e1> of <e2>tea</e2>."\n', ("line 4", "no label", "cut short")),
        ('7\t"A <e1>cup</e1> of <e2>tea</e2>."\n8\t"<e1>Rain</e1> and <e2>wind</e2>."\n', ("line 1", "no label", "TEST_FILE_FULL.TXT")),
        ('1\t"A <e1>cup</e1> of <e2>tea</e2>."\nOthr\n', ("line 1", "'Othr' is not among the relations", "Did you mean `Other`?")),
        ("hello\n", ("line 1", "neither a sentence")),
        ('1\t"<e1>a</e1> <e2>b</e2>"\nOther\n\n1\t"<e1>a</e1> <e2>b</e2>"\nOther\n', ("line 4", "id", "twice")),
    ],
)
def test_semeval_refuses(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "train.txt"
    path.write_text(text)
    refused(lambda: list(read_semeval(Source(path, {"Other"}))), str(path), *parts)


# TACRED -------------------------------------------------------------------------------------


def test_tacred() -> None:
    source = Source(DATA / "tacred.json")
    examples = list(read_tacred(source))
    assert [(e.example_id, e.relation, e.head_text, e.tail_text) for e in examples] == [
        ("a1", "per:title", "Mira Olsen", "treasurer"),
        ("a2", "no_relation", "Ann Lee", "Oslo"),
        ("a4", "per:origin", "Ida", "Danish"),
    ]
    assert examples[0].text == '(Mira Olsen), the firm\'s treasurer, said "no".'
    assert (examples[0].head_type, examples[0].tail_type) == ("PERSON", "TITLE")
    assert examples[1].text == "They didn't meet Ann Lee in Oslo."
    assert source.left_out == {"overlapping_entities": 1}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"subj_end": 99}, ("row 1, subj_start, subj_end", "99 is no position among 4 tokens")),
        ({"obj_start": None}, ("row 1, obj_start", "missing")),
        ({"subj_start": 1, "subj_end": 0}, ("row 1, subj_start, subj_end", "[1, 0] are not in order", "not before the start")),
        ({"token": "Ida is Danish ."}, ("row 1, token", "no list of tokens")),
        ({"relation": "per:orign"}, ("row 1, relation", "Did you mean `per:origin`?")),
        ({"relation": None}, ("row 1, relation", "None is no label")),
        ({"subj_type": 3}, ("row 1, subj_type", "3 is not a text")),
    ],
)
def test_tacred_refuses(tmp_path: Path, change: dict[str, Any], parts: tuple[str, ...]) -> None:
    row = json.loads((DATA / "tacred.json").read_text())[3] | change
    path = tmp_path / "train.json"
    path.write_text(json.dumps([row]))
    refused(lambda: list(read_tacred(Source(path, {"per:origin"}))), str(path), *parts)


def test_tacred_refuses_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text((DATA / "tacred.json").read_text()[:700])
    refused(lambda: list(read_tacred(Source(path))), str(path), "no valid JSON", "cut short")
    path.write_text("{}")
    refused(lambda: list(read_tacred(Source(path))), str(path), "no JSON array")


# FewRel -------------------------------------------------------------------------------------


def test_fewrel() -> None:
    source = Source(DATA / "fewrel.json")
    examples = list(read_fewrel(source))
    assert [(e.example_id, e.relation, e.head_text, e.tail_text) for e in examples] == [
        ("P1/1", "P1", "Arden Bridge", "River Lowe"),
        ("P1/2", "P1", "Moss Gate", "Moss Creek"),
        ("P2/1", "P2", "Rosa Vale", "Inga Vale"),
    ]
    assert examples[0].text == "The well-known Arden Bridge (1902) spans the River Lowe."
    assert source.left_out == {"discontinuous_entity": 1, "overlapping_entities": 1}


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ([], ("no JSON object",)),
        ({"P9": []}, ("P9, relation", "not among the relations")),
        ({"P1": {}}, ("P1", "no list of instances")),
        ({"P1": [{"tokens": ["a", "b"], "h": ["a", "Q", [[0]]]}]}, ("P1, row 1, t", "missing")),
        ({"P1": [{"tokens": ["a", "b"], "h": ["a", "Q", [[0]]], "t": ["b", "Q", [[2]]]}]}, ("row 1, t", "2 is no position among 2")),
        ({"P1": [{"tokens": [], "h": 1, "t": 1}]}, ("P1, row 1, tokens", "no list of tokens")),
    ],
)
def test_fewrel_refuses(tmp_path: Path, data: Any, parts: tuple[str, ...]) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(data))
    refused(lambda: list(read_fewrel(Source(path, {"P1", "P2"}))), str(path), *parts)


# JSONL and Hugging Face ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "spans",
    [
        {"head": [4, 9], "tail": [17, 25]},
        {"head": {"start": 4, "end": 9}, "tail": {"text": "flooding", "start": 17, "end": 25}},
        {"head": {"text": "storm"}, "tail": {"text": "flooding"}},
        {"head_start": 4, "head_end": 9, "tail_start": 17, "tail_end": 25},
    ],
)
def test_jsonl_forms(tmp_path: Path, spans: dict[str, Any]) -> None:
    row = {"text": ROW["text"], "relation": "cause", "head_type": "event", "round": 1} | spans
    examples = list(read_jsonl(Source(jsonl(tmp_path / "a.jsonl", [row, row | {"id": "x"}]))))
    assert [e.example_id for e in examples] == ["line-1", "x"]
    assert examples[0] == Example(ROW["text"], (4, 9), (17, 25), "cause", "event", "", "line-1")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"relation": "causes"}, ("line 2, relation", "Did you mean `cause`?")),
        ({"head": [4, 99]}, ("line 2, head", "does not lie in the text (26 characters)")),
        ({"head": {"text": "rain"}}, ("line 2, head", "'rain' stands in the text 0 times as words of its own", "`start` and `end`")),
        ({"head": {"text": "flood"}}, ("line 2, head", "'flood' stands in the text 0 times as words of its own")),
        ({"text": "A storm is a storm, flooding.", "head": {"text": "storm"}}, ("line 2, head", "2 times")),
        ({"head": {"text": "storm", "start": 3, "end": 9}}, ("line 2, head", "' storm', not 'storm'")),
        ({"head": None}, ("line 2, head", "missing")),
        ({"head": [True, 9]}, ("line 2, head", "no span")),
        ({"head": "storm"}, ("line 2, head", "'storm' is no span")),
        ({"text": " "}, ("line 2, text", "is not a text")),
        ({"id": "same"}, ("line 2, id", "twice")),
        ({"text": "The storm caused flooding\ud800"}, ("line 2", "surrogates not allowed")),
        ({"note\ud83d": 1}, ("line 2", "surrogates not allowed")),
    ],
)
def test_jsonl_refuses(tmp_path: Path, change: dict[str, Any], parts: tuple[str, ...]) -> None:
    path = jsonl(tmp_path / "a.jsonl", [ROW | {"id": "same"}, ROW | change])
    refused(lambda: list(read_jsonl(Source(path, {"cause"}))), str(path), *parts)


def test_jsonl_refuses_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    refused(lambda: list(read_jsonl(Source(path))), str(path), "no such file")
    path.write_text(" \n")
    refused(lambda: list(read_jsonl(Source(path))), "the file is empty")
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW)[:30])
    refused(lambda: list(read_jsonl(Source(path))), "line 2", "no valid JSON")
    path.write_text(json.dumps([ROW]))
    refused(lambda: list(read_jsonl(Source(path))), "line 1", "no JSON object")
    path.write_bytes(json.dumps(ROW).encode() + b"\n\n" + b'{"text": "caf\xe9"}')
    refused(lambda: list(read_jsonl(Source(path))), "line 3", "invalid UTF-8")


def test_jsonl_rows_may_be_marked_sentences(tmp_path: Path) -> None:
    rows = [{"text": "The [storm] caused {flooding}.", "relation": "cause"}, {"text": "The storm caused flooding.", "relation": "cause"}]
    (example,) = read_jsonl(Source(jsonl(tmp_path / "a.jsonl", rows[:1])))
    assert example == Example(ROW["text"], (4, 9), (17, 25), "cause", example_id="line-1")
    refused(
        lambda: list(read_jsonl(Source(jsonl(tmp_path / "a.jsonl", rows)))),
        "line 2",
        "no head and tail, and not one of each marked",
        "[start, end)",
    )


def test_byte_order_mark_and_line_separators_inside_strings(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "\ufeff" + json.dumps(ROW | {"text": "The storm caused flooding.\u2028"}, ensure_ascii=False) + "\r\n", encoding="utf-8"
    )
    assert len(list(read_jsonl(Source(path)))) == 1


BLANK = {
    "jsonl": (read_jsonl, json.dumps(ROW | {"head": [3, 4]}) + "\n" + json.dumps(ROW | {"tail": [17, 17]}) + "\n" + json.dumps(ROW)),
    "semeval": (
        read_semeval,
        '1\t"A <e1> </e1>cup of <e2>tea</e2>."\ncause\n\n2\t"A <e1>cup</e1> of <e2></e2>tea."\ncause\n\n'
        '3\t"A <e1> cup</e1> of <e2>tea </e2>."\ncause\n',
    ),
    "tacred": (
        read_tacred,
        json.dumps(
            [
                {"token": tokens, "subj_start": 0, "subj_end": 0, "obj_start": 2, "obj_end": 2, "relation": "cause"}
                for tokens in (["", "in", "Oslo"], ["Ida", "in", " "], ["Ida", "in", "Oslo"])
            ]
        ),
    ),
    "fewrel": (
        read_fewrel,
        json.dumps(
            {
                "cause": [
                    {"tokens": tokens, "h": ["x", "Q1", [[0]]], "t": ["y", "Q2", [[2]]]}
                    for tokens in (["", "in", "Oslo"], ["Ida", "in", " "], ["Ida", "in", "Oslo"])
                ]
            }
        ),
    ),
}


@pytest.mark.parametrize("form", BLANK)
def test_an_example_with_a_blank_entity_is_left_out_in_every_format(tmp_path: Path, form: str) -> None:
    reader, text = BLANK[form]
    path = tmp_path / "data"
    path.write_text(text)
    source = Source(path, {"cause"})
    (example,) = reader(source)
    assert not span_problem(example.text, example.head, example.tail)
    assert source.left_out == {"blank_entity": 2}


def test_jsonl_overlaps_are_left_out_and_blanks_at_the_ends_go(tmp_path: Path) -> None:
    source = Source(jsonl(tmp_path / "a.jsonl", [ROW | {"head": [4, 18]}, ROW | {"head": [3, 10]}]))
    (example,) = read_jsonl(source)
    assert example.head_text == "storm" and source.left_out == {"overlapping_entities": 1}


def test_only_the_rows_of_the_indices_belong_to_a_saved_folder(tmp_path: Path) -> None:
    import datasets

    table = examples_table(list(read_jsonl(Source(jsonl(tmp_path / "a.jsonl", [ROW | {"id": name} for name in "abcd"])))))
    saved = datasets.Dataset.from_list(table.to_pylist())
    saved.save_to_disk(tmp_path / "whole", num_shards=2)
    assert [example.example_id for example in read_huggingface(Source(tmp_path / "whole"))] == ["a", "b", "c", "d"]
    saved.select([3, 1]).save_to_disk(tmp_path / "some")
    assert [example.example_id for example in read_huggingface(Source(tmp_path / "some"))] == ["d", "b"]
    (tmp_path / "some" / "state.json").write_text("{}")
    refused(lambda: list(read_huggingface(Source(tmp_path / "some"))), "no whole data set", "save_to_disk")


def test_save_to_disk_folder(tmp_path: Path) -> None:
    import datasets

    rows = {"text": [ROW["text"]] * 2, "head": [[4, 9]] * 2, "tail": [[17, 25]] * 2, "relation": [1, 0]}
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "head": datasets.Sequence(datasets.Value("int32")),
            "tail": datasets.Sequence(datasets.Value("int32")),
            "relation": datasets.ClassLabel(names=["other", "cause"]),
        }
    )
    saved = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "all")
    refused(lambda: list(read_huggingface(Source(tmp_path / "all"))), "select a split", "folder of one split")
    examples = list(read_huggingface(Source(tmp_path / "all" / "train", {"cause", "other"})))
    assert [(e.relation, e.head_text, e.example_id) for e in examples] == [("cause", "storm", "row-1"), ("other", "storm", "row-2")]
    arrow = next((tmp_path / "all" / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    refused(lambda: list(read_huggingface(Source(tmp_path / "all" / "train"))), "no whole data set")


def test_entity_types_of_a_huggingface_data_set_may_be_class_labels(tmp_path: Path) -> None:
    import datasets

    spans = {"text": ["The storm caused flooding."] * 2, "head": [[4, 9]] * 2, "tail": [[17, 25]] * 2, "relation": ["cause"] * 2}
    rows = datasets.Dataset.from_dict({**spans, "head_type": [1, None], "tail_type": [0, 1]})
    kinds = datasets.ClassLabel(names=["event", "weather"])
    rows.cast_column("head_type", kinds).cast_column("tail_type", kinds).save_to_disk(tmp_path / "saved")
    examples = list(read_huggingface(Source(tmp_path / "saved")))
    assert [(example.head_type, example.tail_type) for example in examples] == [("weather", "event"), ("", "weather")]


def test_parquet_files_read_own_columns_back(tmp_path: Path) -> None:
    examples = list(read_jsonl(Source(jsonl(tmp_path / "a.jsonl", [ROW, ROW]))))
    folder = tmp_path / "dataset"
    folder.mkdir()
    pq.write_table(examples_table(examples[1:]).rename_columns(["sample_id", *EXAMPLES.names[1:]]), folder / "part-1.parquet")
    pq.write_table(examples_table(examples[:1]), folder / "part-0.parquet")
    assert list(read_huggingface(Source(folder / "*"))) == examples
    assert list(read_huggingface(Source(folder / "part-1.parquet"))) == examples[1:]
    refused(lambda: list(read_huggingface(Source(folder))), "no whole data set", "or Parquet: a file, or a pattern")
    pq.write_table(pa.table({"sentence": ["x"]}), folder / "part-2.parquet")
    refused(lambda: list(read_huggingface(Source(folder / "*.parquet"))), "no columns `text`")
    refused(lambda: list(read_huggingface(Source(folder / "part-2.parquet", unlabelled=True))), "no columns `text`")
    (folder / "part-2.parquet").write_bytes(b"PAR1")
    refused(lambda: list(read_huggingface(Source(folder / "*.parquet"))), "part-2.parquet", "not readable")
    refused(lambda: list(read_huggingface(Source(tmp_path / "none"))), "no such file or folder")
    refused(lambda: list(read_huggingface(Source(tmp_path / "a.jsonl"))), "no Parquet file")
    broken = pa.table({"text": pa.array([b"caf\xe9"]).view(pa.string()), "relation": ["cause"]})
    pq.write_table(broken, tmp_path / "broken.parquet")
    refused(lambda: list(read_huggingface(Source(tmp_path / "broken.parquet"))), "broken.parquet", "Invalid UTF8")


def test_columns_that_nothing_uses_may_be_of_any_kind(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([ROW]).select(["text", "head", "tail", "relation"])
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    odd = rows.append_column("twice", twice).append_column("at", pa.array([1], pa.timestamp("ns")))
    pq.write_table(odd.append_column("raw", pa.array([b"\xff"])), tmp_path / "odd.parquet")
    assert [e.text for e in read_huggingface(Source(tmp_path / "odd.parquet"))] == [ROW["text"]]


@pytest.mark.parametrize(
    ("name", "reader"),
    [("semeval.txt", read_semeval), ("tacred.json", read_tacred), ("fewrel.json", read_fewrel), ("tacred.json", read_jsonl)],
)
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, name: str, reader: Callable[[Source], Any]) -> None:
    whole = (DATA / name).read_bytes()
    damage = random.Random(7)
    path = tmp_path / name
    for _ in range(150):
        data = bytearray(whole[: damage.randrange(len(whole))] if damage.random() < 0.5 else whole)
        for _ in range(damage.randrange(4)):
            if data:
                data[damage.randrange(len(data))] = damage.randrange(256)
        path.write_bytes(data)
        try:
            examples = list(reader(Source(path)))
        except InputError as error:
            assert error.where == str(path) and error.problem and error.mend
        else:
            assert not any(span_problem(e.text, e.head, e.tail) for e in examples)


# relations file -----------------------------------------------------------------------------

RELATIONS = """
- name: cause
  description: The head brings
    the tail about.
  head_type: event
  examples:
    - "The [storm]  caused {flooding} ."
    - A {crash} followed the [ mistake].
- {name: other, description: None holds., examples: ["[Tea] or {milk}?"]}
"""


def test_a_relation_names_its_inverse(tmp_path: Path) -> None:
    path = tmp_path / "relations.yaml"
    path.write_text(
        "- {name: a, description: x, inverse: b}\n- {name: b, description: y, inverse: a}\n- {name: c, description: z, inverse: c}"
    )
    assert [relation.inverse for relation in read_relations_file(path)] == ["b", "a", "c"]


def test_relations_file(tmp_path: Path) -> None:
    path = tmp_path / "relations.yaml"
    path.write_text(RELATIONS)
    cause, other = read_relations_file(path)
    assert (cause.name, cause.description, cause.head_type, cause.tail_type) == ("cause", "The head brings the tail about.", "event", "")
    assert cause.examples[0] == Example("The storm caused flooding .", (4, 9), (17, 25), "cause", "event", "", "cause/1")
    assert (cause.examples[1].head_text, cause.examples[1].tail_text) == ("mistake", "crash")
    assert other.examples[0].text == "Tea or milk?"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("the file is empty",)),
        ("name: cause", ("no list of relations",)),
        ("- cause", ("relation 1", "no mapping")),
        ("- description: x", ("relation 1, name", "missing")),
        ("- {name: true, description: x}", ("relation True, name", "True is no text", "quote words like true or null")),
        ("- {name: a}", ("relation a, description", "missing")),
        ("- {name: a, description: x, on: y}", ("relation a, True", "unknown key")),
        ("- {name: a, description: ' '}", ("relation a, description", "missing")),
        ("- {name: a, description: 5}", ("relation a, description", "5 is no text")),
        ("- {name: a, description: x, exmples: []}", ("relation a, exmples", "unknown key")),
        ("- {name: a, description: x, inverse: b}", ("relation a, inverse", "'b' is no inverse")),
        ("- {name: a, description: x, inverse: b}\n- {name: b, description: y}", ("relation a, inverse", "names this one")),
        ("- {name: a, description: x}\n- {name: a, description: y}", ("relation a", "twice")),
        ("- name: a\n  description: x\n  description: y", ("line 3", "key 'description' stands there twice")),
        ("- {name: a, description: x, examples: 'The [a] {b}'}", ("relation a, examples", "no list")),
        (
            "- {name: a, description: x, examples: ['The [a] b']}",
            ("relation a, example 1", "not one head and one tail", "one tail in { }"),
        ),
        ("- {name: a, description: x, examples: ['{a} b']}", ("example 1", "not one head and one tail")),
        ("- {name: a, description: x, examples: ['[a {b}]']}", ("example 1", "not one head and one tail")),
        ("- {name: a, description: x, examples: ['[] {b}']}", ("example 1", "not one head and one tail")),
        ("- {name: a, description: x, examples: ['[a] [b] {c}']}", ("example 1", "not one head and one tail")),
        ("- name: a\n  description: x\n  examples:\n  - [a] and {b}", ("line 4", "quote")),
        ("- {name: a, description: x, examples: [[a]]}", ("example 1", "not one head and one tail", "quote the sentence")),
        ("- {name: a, description: x", ("no valid YAML",)),
        ("[" * 5000, ("YAML",)),
        ("- !!python/object/apply:os.system ['true']", ("no valid YAML",)),
    ],
)
def test_relations_file_refuses(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "relations.yaml"
    path.write_text(text)
    refused(lambda: read_relations_file(path), str(path), *parts)


def test_marked_file(tmp_path: Path) -> None:
    path = tmp_path / "test.yaml"
    path.write_text('cause:\n  - "[Rain] brought {mud}."\nother:\n  - "{Tea} or [milk]?"\n')
    examples = list(read_marked(Source(path, {"cause", "other"})))
    assert [(e.relation, e.head_text, e.tail_text) for e in examples] == [("cause", "Rain", "mud"), ("other", "milk", "Tea")]
    refused(lambda: list(read_marked(Source(path, {"cause"}))), "relation other", "not among the relations")
    path.write_text('no:\n  - "[Rain] brought {mud}."\n')
    refused(lambda: list(read_marked(Source(path))), "relation False, relation", "False is no label", "as a string")
    path.write_text('cause:\n  - "[Rain] brought {mud}."\ncause:\n  - "[Rain] brought {mud}."\n')
    refused(lambda: list(read_marked(Source(path))), "key 'cause' stands there twice")


# tasks --------------------------------------------------------------------------------------


def rows(count: int, relations: tuple[str, ...] = ("cause", "other")) -> list[dict[str, Any]]:
    nouns = ["mud", "noise", "dust", "ice", "steam", "ash"]
    return [
        {
            "id": f"{name}{n}",
            "text": f"{name} storm {n} with {nouns[n % 6]}.",
            "head": {"text": "storm"},
            "tail": {"text": nouns[n % 6]},
            "relation": name,
        }
        for name in relations
        for n in range(count)
    ]


def task_config(folder: Path, relations_yaml: str = RELATIONS, /, **task: Any) -> Config:
    (folder / "relations.yaml").write_text(relations_yaml)
    settings = {"name": "t", "relations": str(folder / "relations.yaml"), "data": str(folder)} | task
    return Config.model_validate({"task": settings})


def test_seeds_depend_on_neither_order_nor_k(tmp_path: Path) -> None:
    data = rows(30)
    jsonl(tmp_path / "train.jsonl", data)
    settings = {"format": "jsonl", "train": "train.jsonl", "test_per_relation": 10}
    first = load_task(task_config(tmp_path, seeds_per_relation=5, **settings))
    assert [len([e for e in first.seeds if e.relation == name]) for name in ("cause", "other")] == [5, 5]
    assert len(first.test) == 20
    assert not {e.text for e in first.seeds} & {e.text for e in first.test}
    assert len({e.example_id for e in first.seeds + first.test}) == 30
    random.Random(0).shuffle(data)
    jsonl(tmp_path / "train.jsonl", data)
    assert load_task(task_config(tmp_path, seeds_per_relation=5, **settings)) == first
    more = load_task(task_config(tmp_path, seeds_per_relation=8, **settings))
    assert more.test == first.test
    assert [e for e in more.seeds if e.relation == "cause"][:5] == [e for e in first.seeds if e.relation == "cause"]
    other = task_config(tmp_path, seeds_per_relation=5, **settings).model_copy(update={"seed": 14})
    assert load_task(other).seeds != first.seeds


def test_official_test_is_untouched_and_kept_from_the_seeds(tmp_path: Path) -> None:
    data = rows(8)
    bracketed = {"text": "A [sic] storm, mud.", "head": {"text": "storm"}, "tail": {"text": "mud"}, "relation": "cause"}
    jsonl(tmp_path / "train.jsonl", [*data, data[0] | {"id": "again"}, bracketed])
    test = [data[3], bracketed, data[9], data[3] | {"id": "copy"}]
    jsonl(tmp_path / "test.jsonl", test)
    task = load_task(task_config(tmp_path, format="jsonl", train="train.jsonl", test="test.jsonl", seeds_per_relation=7))
    assert [e.text for e in task.test] == [row["text"] for row in test]
    assert {e.text for e in task.seeds} == {row["text"] for n, row in enumerate(data) if n not in (3, 9)}
    assert task.skipped == {}


def test_seeds_from_the_relations_file(tmp_path: Path) -> None:
    (tmp_path / "test.yaml").write_text('cause:\n  - "[Rain] brought {mud}."\n')
    task = load_task(task_config(tmp_path, test="test.yaml", seeds_per_relation=1))
    assert sorted(e.relation for e in task.seeds) == ["cause", "other"]
    assert all(e.example_id.startswith("seed:") for e in task.seeds)
    assert task.test[0].example_id == "test:cause/1"


def test_what_cannot_be_a_seed_does_not_count(tmp_path: Path) -> None:
    marked = {"text": "The storm [sic] caused flooding.", "tail": [23, 31]}
    broken = {"text": "The storm\ncaused flooding.", "tail": [17, 25]}
    bad = [ROW | marked, ROW | broken, ROW | {"head": [4, 4]}, ROW, ROW]
    jsonl(tmp_path / "train.jsonl", [*bad, *(ROW | {"relation": "other", "text": f"{ROW['text']} {n}"} for n in range(3))])
    jsonl(tmp_path / "test.jsonl", [ROW])
    settings = {"format": "jsonl", "train": "train.jsonl", "seeds_per_relation": 1}
    why = ("train.jsonl", "relation cause", "0 of 3", "the test set lacks, without [ ] { } and line breaks")
    refused(lambda: load_task(task_config(tmp_path, **settings, test="test.jsonl")), *why)
    refused(lambda: load_task(task_config(tmp_path, **settings, test_per_relation=3)), "0 of 3 different examples")
    relations = RELATIONS + "- {name: rare, description: x}\n"
    none = task_config(tmp_path, relations, **settings, test_per_relation=1)
    refused(lambda: load_task(none), "relation rare", "0 of 0 different examples", "Add examples")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"seeds_per_relation": 9}, ("train.jsonl", "relation cause", "8 of 8 different examples", "set it lower")),
        ({"test": None}, ("task: test, test_per_relation", "one of the two")),
        ({"test_per_relation": 2}, ("task: test, test_per_relation", "one of the two is needed, and one only")),
        ({"test": None, "test_per_relation": 8}, ("relation cause", "0 of 8 different examples", "Add examples that the test set lacks")),
        ({"test": None, "test_per_relation": 6}, ("relation cause", "2 of 8 different examples", "Add examples that the test set lacks")),
        ({"none_label": "nothing"}, ("relations.yaml", "task.none_label", "'nothing' is not among the relations")),
        ({"test": "wrong.jsonl"}, ("wrong.jsonl", "line 1, relation", "'because' is not among the relations")),
        ({"test": "missing.jsonl"}, ("missing.jsonl", "no such file", "task.data")),
        ({"train": None, "seeds_per_relation": 2}, ("relations.yaml", "relation other", "1 of 1 different examples")),
        ({"relations": "/none/relations.yaml"}, ("/none/relations.yaml", "no such file")),
    ],
)
def test_load_task_refuses(tmp_path: Path, change: dict[str, Any], parts: tuple[str, ...]) -> None:
    jsonl(tmp_path / "train.jsonl", rows(8))
    jsonl(tmp_path / "test.jsonl", [ROW])
    jsonl(tmp_path / "wrong.jsonl", [ROW | {"relation": "because"}])
    settings = {"format": "jsonl", "train": "train.jsonl", "test": "test.jsonl", "seeds_per_relation": 5} | change
    refused(lambda: load_task(task_config(tmp_path, **settings)), *parts)


def test_a_relation_needs_examples_or_training_data(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", [ROW])
    config = task_config(tmp_path, "- {name: cause, description: x}", test="test.jsonl")
    refused(lambda: load_task(config), "relation cause", "0 of 0 different examples", "Add examples")


def test_fewer_seeds(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", rows(8) + rows(1, ("rare",)))
    jsonl(tmp_path / "test.jsonl", [ROW])
    relations = RELATIONS + "- {name: rare, description: x}\n"
    settings = {"format": "jsonl", "train": "train.jsonl", "test": "test.jsonl", "seeds_per_relation": 4}
    refused(lambda: load_task(task_config(tmp_path, relations, **settings)), "relation rare", "1 of 1 different", "task.fewer_seeds=true")
    task = load_task(task_config(tmp_path, relations, **settings, fewer_seeds=True))
    assert [e.relation for e in task.seeds] == ["cause"] * 4 + ["other"] * 4 + ["rare"]


def test_prepare_stage(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", [ROW])
    config = task_config(tmp_path, test="test.jsonl", seeds_per_relation=1)
    folder = RunFolder(str(tmp_path / "run"))
    assert prepare.run(config, folder, 0) == {"relations": 2, "seeds": 2, "test": 1, "skipped": {}}
    relations = read_relations(folder)
    assert [(r.name, r.description, r.head_type) for r in relations] == [
        ("cause", "The head brings the tail about.", "event"),
        ("other", "None holds.", ""),
    ]
    task = load_task(config)
    seeds = folder.read_table("data/seeds")
    assert seeds.schema.equals(EXAMPLES)
    assert table_examples(seeds) == task.seeds
    assert table_examples(folder.read_table("data/test")) == task.test


def test_wrong_data_writes_nothing(tmp_path: Path) -> None:
    config = task_config(tmp_path, test="test.jsonl")
    folder = RunFolder(str(tmp_path / "run"))
    refused(lambda: prepare.run(config, folder, 0), "test.jsonl")
    assert not (tmp_path / "run").exists()


def test_examples_survive_a_table() -> None:
    examples = list(read_tacred(Source(DATA / "tacred.json")))
    assert table_examples(examples_table(examples)) == examples
    assert examples_table([]).schema.equals(EXAMPLES)


def test_paths_of_a_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "a.yaml"
    path.write_text("task: {name: a, relations: r.yaml, data: ../data}")
    task = load_config(path).task
    assert (task.relations, task.data) == (str(tmp_path / "runs/r.yaml"), str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    task = load_config(path, ["task.data=here"]).task
    assert (task.relations, task.data) == (str(tmp_path / "runs/r.yaml"), str(tmp_path / "here"))
    assert load_config(path, ["task.relations=other.yaml"]).task.relations == str(tmp_path / "other.yaml")


def test_import_is_light() -> None:
    heavy = "torch ray pandas datasets transformers sklearn matplotlib vllm"
    code = f"import sys, divray.datasets.stage, divray.extraction.metrics; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# examples and real data ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("semeval2010_task8", 19), ("fewrel", 16)])
def test_example_configs_hold(name: str, count: int) -> None:
    config = load_config(EXAMPLE_FILES / f"{name}.yaml", ["task.data=/somewhere"])
    relations = read_relations_file(Path(config.task.relations))
    assert len(relations) == count
    assert all(r.head_type and r.tail_type and r.description.endswith(".") and not r.examples for r in relations)
    assert len({r.description for r in relations}) == count
    refused(lambda: load_task(config), "/somewhere", "no such file")


@NEEDS_SHARED
def test_real_semeval() -> None:
    folder = SHARED / "semeval2010_task8"
    for name, count in (("TRAIN_FILE.TXT", 8000), ("TEST_FILE_FULL.TXT", 2717)):
        source = Source(folder / name)
        examples = list(read_semeval(source))
        assert (len(examples), source.left_out) == (count, {})
        assert not any(span_problem(e.text, e.head, e.tail) or "<e" in e.text for e in examples)
    task = load_task(load_config(EXAMPLE_FILES / "semeval2010_task8.yaml", [f"task.data={folder}"]))
    assert (len(task.relations), len(task.seeds), len(task.test)) == (19, 18 * 8 + 1, 2717)


@NEEDS_SHARED
def test_real_fewrel() -> None:
    source = Source(SHARED / "fewrel/val_wiki.json")
    examples = list(read_fewrel(source))
    assert (len(examples), source.left_out) == (11200, {})
    raw = json.loads((SHARED / "fewrel/val_wiki.json").read_text())
    instances = [row for group in raw.values() for row in group]
    for example, row in zip(examples, instances, strict=True):
        assert not span_problem(example.text, example.head, example.tail)
        for text, entity in ((example.head_text, row["h"]), (example.tail_text, row["t"])):
            tokens = "".join(row["tokens"][position] for position in entity[2][0])
            assert "".join(text.split()) == "".join(tokens.split())
    task = load_task(load_config(EXAMPLE_FILES / "fewrel.yaml", [f"task.data={SHARED / 'fewrel'}"]))
    assert (len(task.relations), len(task.seeds), len(task.test)) == (16, 16 * 8, 1600)
    assert not {e.text for e in task.seeds} & {e.text for e in task.test}


@pytest.mark.parametrize("name", ["works  for", " works for", "works\u00a0for", "caf\u00e9", "cafe\u0301"])
def test_a_label_is_its_relation_however_its_blanks_and_accents_are_written(tmp_path: Path, name: str) -> None:
    relations = tmp_path / "relations.yaml"
    relations.write_text(yaml.safe_dump([{"name": name, "description": "The head does it."}]), encoding="utf-8")
    (relation,) = read_relations_file(relations)
    for label in (name, relation.name, name.replace("\u00e9", "e\u0301"), f"{name} "):
        assert [
            one.relation for one in read_jsonl(Source(jsonl(tmp_path / "rows.jsonl", [ROW | {"relation": label}]), {relation.name}))
        ] == [relation.name]


def test_none_label_is_compared_as_a_label_is(tmp_path: Path) -> None:
    config = parse_config({"task": {"name": "t", "relations": "r.yaml", "none_label": "kein  Verha\u0308ltnis "}}, "test")
    assert config.task.none_label == "kein Verh\u00e4ltnis"


def test_japanese_tokens_join_at_iteration_marks_and_wide_digits() -> None:
    assert detokenize(["佐", "々木", "は", "２０２３", "年", "に", "人々", "が", "ﾃｽﾄ", "と"])[0] == "佐々木は２０２３年に人々がﾃｽﾄと"


def test_unlabelled_sentences_may_be_a_mapping_of_several_relations(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("a: ['[One] likes {two}.']\nb: ['[Three] likes {four}.']\n", encoding="utf-8")
    found = list(read_marked(Source(file, unlabelled=True)))
    assert [(one.relation, one.example_id) for one in found] == [("", "a/1"), ("", "b/1")]


def test_unlabelled_sentences_need_no_labels_in_any_format(tmp_path: Path) -> None:
    row = {"text": ["The storm caused flooding."], "head_start": [4], "head_end": [9], "tail_start": [17], "tail_end": [25]}
    pq.write_table(pa.table(row), tmp_path / "u.parquet")
    (found,) = read_huggingface(Source(tmp_path / "u.parquet", unlabelled=True))
    assert found.relation == "" and found.head_text == "storm"
    (tmp_path / "u.txt").write_text('1\t"The <e1>storm</e1> caused <e2>flooding</e2>."\n')
    (found,) = read_semeval(Source(tmp_path / "u.txt", unlabelled=True))
    assert found.relation == "" and found.tail_text == "flooding"
