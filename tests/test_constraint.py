from __future__ import annotations

import re

import pytest

from divray.config import load_config
from divray.datasets import load_task
from divray.quickstart import folder
from divray.relations import Example, parse_marked
from divray.sampling.constraint import Shape, acceptance, accepts, anchored_pattern, completion_of, sentence_pattern, shape_of
from divray.sampling.parsing import parse_completion

SENTENCE = sentence_pattern(Shape())


def example(marked: str) -> Example:
    parsed = parse_marked(marked)
    assert not isinstance(parsed, str)
    return Example(*parsed, "r")


@pytest.mark.parametrize(
    "marked",
    [
        "[Ada] lives in {Rome}.",
        "{Rome} is where [Ada Lovelace] lives!",
        "Was [Ada], the writer, ever in {Rome}?",
        '"The [storm] caused the {flood}."',
        "The [old storm]-{flood} link is clear.",
        "In 2009, {Rome}'s [Ada] left; nobody knew.",
        "The U.S. ship [Ada] sank 3.5 miles off {Rome}.",
        "[Lee], who met J. K. Rowe 3.5 days ago, left {Rome, Italy}.",
        "For $1,234.56 (or 3.5-4.5 a day) a \"[bed]\" stands in the {rock 'n' roll} hotel of J. R. Lee.",
    ],
)
def test_sentences_of_any_shape_pass(marked: str) -> None:
    assert accepts(SENTENCE, example(marked))


@pytest.mark.parametrize(
    "completion",
    [
        " [Ada] lives.\n",
        " [Ada] lives in {Rome}\n",
        " [Ada] lives in {Rome}.",
        " [Ada] lives in {Rome}. She is old.\n",
        " A[da] lives in {Rome}.\n",
        " [Ada] lives in {Rome} and [Bob] too.\n",
        " [Ada ] lives in {Rome}.\n",
        " [Ada] lives\tin {Rome}.\n",
        " [Ada]{Rome}.\n",
        " [Ada] lives in {Rome}, 1.2.3.4.5.6.7 of it.\n",
        " The town lies at the sea.1. [Ada] lives in {Rome}.\n",
        " [Ada] was born in {Rome} in 1986.3 of it.\n",
        " [Ada] was born in {Rome}, 3.14159 of it.\n",
        " [Ada] lives in  {Rome}.\n",
        " [Ada] lives in {Rome}  now.\n",
        " [Ada] lives in {Rome} .\n",
        " [Ada] lives in {/Rome}.\n",
        " [-Ada] lives in {Rome}.\n",
    ],
)
def test_what_is_no_marked_sentence_does_not_pass(completion: str) -> None:
    assert re.fullmatch(SENTENCE, completion) is None


@pytest.mark.parametrize("marked", ["[Ada_Lee] lives in {Rome}.", "The *big* [storm] hit {Rome}.", "[Ada] left {Rome} \\\\bf."])
def test_rare_signs_pass_where_a_seed_has_them(marked: str) -> None:
    seed = example(marked)
    assert not accepts(sentence_pattern(shape_of([])), seed)
    assert shape_of([seed]).signs == next(sign for sign in "_*\\" if sign in marked)
    assert accepts(sentence_pattern(shape_of([seed])), seed)


@pytest.mark.parametrize("inside", ["for 3.5 years", "by J. K. Rowe", "on a U.S. ship", "by the U.S.A., twice,"])
def test_constraint_and_parser_agree_on_inner_stops(inside: str) -> None:
    marked = f"The [storm] of {{Rome}} was seen {inside} again."
    assert accepts(SENTENCE, example(marked))
    assert parse_completion(f" {marked}\n").rejection == ""


def test_the_engines_grammar_reads_the_expression_as_python_does() -> None:
    import xgrammar

    pieces = ["<end>", "\n", " ", ".", " The", " [", "]", " {", "}", " storm", " caused", " flood", " U", ".S", " 3", ".5", " Dr", "x"]
    pieces += ["\\", "^", "_", "-", "1986"]
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(pieces, stop_token_ids=[0]))
    matcher = xgrammar.GrammarMatcher(compiler.compile_regex(SENTENCE))
    for piece in (" The", " U", ".S", ".", " [", "x", "]", " caused", " {", "x", "}", " 3", ".5", ".", "\n"):
        assert matcher.accept_token(pieces.index(piece)), piece
    assert matcher.accept_token(0)
    matcher.reset()
    for piece, barred in ((" The", "\\^_"), (" ", " "), ("-", "\\"), (" [", "-_"), ("x", ""), ("-", "^"), ("x", ""), ("]", "")):
        assert matcher.accept_token(pieces.index(piece)), piece
        assert not any(matcher.accept_token(pieces.index(sign)) for sign in barred), piece
    for piece in (" {", "x", "}", " ", "1986"):
        assert matcher.accept_token(pieces.index(piece)), piece
    assert not matcher.accept_token(pieces.index(".5"))


def test_an_anchor_keeps_its_connective_and_nothing_else() -> None:
    seed = example("The [storm] led to severe {flooding} (again).")
    pattern = anchored_pattern(seed, Shape())
    assert accepts(pattern, example("Last May the [long drought] led to severe {losses}."))
    assert not accepts(pattern, example("The [storm] caused severe {flooding}."))
    assert not accepts(pattern, example("The {storm} led to severe [flooding]."))


@pytest.mark.parametrize(
    ("seed", "marked", "passes"),
    [
        ("The [storm] led to severe {floods} and to fires.", "A [war] led to severe {hunger} and to fires.", False),
        ("The [storm] led to severe {floods} and to fires.", "A [war] led to severe {hunger} an hour ago.", True),
        ("The [storm] led to severe {floods} and to fires.", "A [war] led to severe {hunger} andante.", True),
        ("The [storm] led to severe {floods} and to fires.", "A [war] led to severe {hunger}.", True),
        ("[Ada] is a native of {Rome}, a town.", "[Bob] is a native of {Bern}, a village.", False),
        ("[Ada] is a native of {Rome}, a town.", "[Bob] is a native of {Bern}, the city.", True),
        ("The [storm] led to severe {floods}.", "A [war] led to severe {hunger}.", False),
        ("The [storm] led to severe {floods}.", "A [war] led to severe {hunger} in many lands.", True),
        ("The [storm] led to severe {floods}.", "As one more thing, a [war] led to severe {hunger} in many lands.", False),
    ],
)
def test_an_anchored_sentence_goes_on_otherwise_than_its_anchor(seed: str, marked: str, passes: bool) -> None:
    assert accepts(anchored_pattern(example(seed), Shape()), example(marked)) is passes


def test_a_short_connective_keeps_the_words_around() -> None:
    seed = example("In {1990}, [Ada] was born.")
    pattern = anchored_pattern(seed, Shape())
    assert accepts(pattern, example("In {Rome}, [Bob Lee] was born on a boat."))
    assert not accepts(pattern, example("In {Rome}, [Bob Lee] was born."))
    assert not accepts(pattern, example("In {Rome}, [Bob Lee] was seen on a boat."))


def test_special_characters_of_a_seed_are_literal() -> None:
    seed = example("[A+B] costs (about) $5* more than {C}.")
    assert accepts(anchored_pattern(seed, Shape()), example("[A+B] costs (about) $5* more than {C} and its kin."))
    odd = example("[A] is more than {C} ^-a\\b of it.")
    assert accepts(anchored_pattern(odd, shape_of([odd])), example("[A] is more than {C} ^-a of it."))
    assert not accepts(anchored_pattern(odd, shape_of([odd])), odd)


def test_the_quick_start_is_within_the_constraint() -> None:
    task = load_task(load_config(folder() / "quickstart.yaml"))
    pattern = sentence_pattern(shape_of(task.seeds))
    assert acceptance(task.seeds, pattern) == 1.0
    assert acceptance(task.test, pattern) >= 0.95
    assert not any(accepts(anchored_pattern(seed, Shape()), seed) for seed in task.seeds)


def test_room_for_the_words_of_every_seed_and_half_as_many_again() -> None:
    long = example("Some " + "very " * 11 + "old [storm] hit {Rome}.")
    assert shape_of([long, example("[Ada] lives in {Rome}.")]) == Shape(before=20, between=10)
    assert shape_of([]) == Shape(before=10, between=10)


@pytest.mark.parametrize(("before", "between", "passes"), [(2, 3, True), (3, 3, False), (2, 4, False), (0, 1, True)])
def test_no_more_words_than_the_shape_has(before: int, between: int, passes: bool) -> None:
    marked = f"{'the ' * before}[storm] {'near ' * between}{{Rome}} {'and ' * 30}on."
    assert accepts(sentence_pattern(Shape(2, 3)), example(marked)) is passes
    assert acceptance([example(marked)], anchored_pattern(example("A [storm] not far from {Rome}."), Shape(2, 3))) == 0


def test_completion_has_a_blank_before_and_a_newline_after() -> None:
    assert completion_of(example("[Ada] lives in {Rome}.")) == " [Ada] lives in {Rome}.\n"
