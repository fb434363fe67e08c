"""Words in any script: their tokens in an export, and the way back; entities in the text; ids and tags of relations."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from divray.datasets.corpora import read_tacred
from divray.datasets.own import Source, read_jsonl
from divray.export import tacred_row
from divray.prompts.parsing import _WORD
from divray.prompts.rows import slugs_of
from divray.relations import Relation, mentions, metric_tag

SENTENCES = [
    ("Zoe\u0308 wohnt jetzt in Co\u0302te-Rouge.", "Zoe\u0308", "Co\u0302te-Rouge"),
    ("मीरा जोशी का जन्म पुणे में हुआ था।", "मीरा जोशी", "पुणे"),
    ("சுந்தரம் சென்னையில் பிறந்தார்.", "சுந்தரம்", "சென்னையில்"),
    ("李明出生在苏州，后来搬到北京。", "李明", "苏州"),
    ("佐藤さんは「横浜」で働いている。", "佐藤さん", "横浜"),
    ("สมชายเกิดที่เชียงใหม่", "สมชาย", "เชียงใหม่"),
    ("وُلِدَتْ ليلى في تونس، ثم رحلت.", "ليلى", "تونس"),
    ("او می\u200cگوید سارا در تبریز است.", "سارا", "تبریز"),
    ("👩\u200d👩\u200d👧 Ada ❤\ufe0f Paris 🇫🇷 👍🏽", "Ada", "Paris"),
    ("Ο Νίκος ζει στη Λάρισα.", "Νίκος", "Λάρισα"),
    ("O'Neil's gene p53-b rose 1,200.5 % at 10:30 in km/h for Ada (U.S.).", "p53-b", "Ada"),
]


@pytest.mark.parametrize(("text", "head", "tail"), SENTENCES)
def test_a_sentence_comes_back_from_tacreds_form(text: str, head: str, tail: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text(json.dumps({"text": text, "head": {"text": head}, "tail": {"text": tail}, "relation": "关系"}), encoding="utf-8")
    (example,) = read_jsonl(Source(path))
    assert (example.head_text, example.tail_text) == (head, tail)
    spans = {
        f"{side}_{end}": span[end == "end"] for side, span in (("head", example.head), ("tail", example.tail)) for end in ("start", "end")
    }
    row = tacred_row({"sample_id": "a", "relation": "关系", "text": text, "head_type": "", "tail_type": "", **spans})
    assert not any(unicodedata.category(token[0]).startswith("M") for token in row["token"])
    path.write_text(json.dumps([row], ensure_ascii=False), encoding="utf-8")
    (back,) = read_tacred(Source(path))
    assert (back.text.replace(" %", "%"), back.head_text, back.tail_text) == (text.replace(" %", "%"), head, tail)


def test_a_mark_belongs_to_the_letter_before_it() -> None:
    for text in ("Zoe\u0308", "पुणे", "می\u200cگوید"):
        assert _WORD.findall(text) == [text]
    assert _WORD.findall("❤\ufe0f a") == ["a"]


@pytest.mark.parametrize(
    ("text", "entity", "count"), [("Rene\u0301 met Rene.", "Rene", 1), ("李明住在苏州。", "苏州", 1), ("पुणेकर पुणे में", "पुणे", 1)]
)
def test_a_mention_ends_where_its_last_mark_ends(text: str, entity: str, count: int) -> None:
    assert len(mentions(text, entity)) == count


@pytest.mark.parametrize(
    "names",
    [
        ("works at", "works-at", "works at 2", "Works At", "works-at-1-2"),
        ("роди́лся", "住在", "relation-1", "relation 0", "رابطة"),
        ("a-1", "a", "A", "a-2"),
        ("x", "x-1", "x!", "x?", "x-2", "x-3"),
    ],
)
def test_every_relation_has_an_id_of_its_own(names: tuple[str, ...]) -> None:
    slugs = slugs_of([Relation(name, "d") for name in names])
    assert len(set(slugs.values())) == len(names)
    assert all(slug.isascii() for slug in slugs.values())


def test_a_metric_tag_is_ascii_and_tells_relations_apart() -> None:
    assert metric_tag("Cause-Effect(e1,e2)") == "Cause-Effect(e1,e2)" and metric_tag("per:city_of_birth") == "per:city_of_birth"
    tags = [metric_tag(name) for name in ("mieszka_w", "mieszka_wą", "住在", "住于", "50%", "50%25")]
    assert all(tag.isascii() and tag.isprintable() for tag in tags) and len(set(tags)) == 6
