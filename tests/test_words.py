"""Words in any script: entities in the text; ids and tags of relations."""

from __future__ import annotations

import pytest

from divray.prompts.rows import slugs_of
from divray.relations import Relation, as_letters, mentions, metric_tag


def test_a_mark_belongs_to_the_letter_before_it() -> None:
    for text in ("Zoe\u0308", "पुणे", "می\u200cگوید"):
        assert as_letters(text).isalnum() and len(as_letters(text)) == len(text)
    assert as_letters("❤\ufe0f a") == "❤\ufe0f a"


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
