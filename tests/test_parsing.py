"""From a record to a sample: which sentences are taken, which are not and why, and where the spans come from."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from made_examples import marked

from divray.prompts.parsing import Form, Parsed, bare_name, form_of, mentions, parse_record, refused_seeds
from divray.prompts.record import Record, completion_of, read_records
from divray.relations import Example, Relation

RELATION = Relation("r", "The head works for the tail.", "person", "organization")
SEEDS = ("[Maria Lopez] works as a welder at {Nordhaven Shipyards}.", "Last year {Greenfield Foods} gave a job to [Tom Becker].")


def form(*seeds: str, relation: Relation = RELATION) -> Form:
    return form_of([marked(seed) for seed in seeds], [relation])


def parsed(head: str, tail: str, sentence: str, *seeds: str) -> Parsed:
    return parse_record(Record(head, tail, sentence), form(*(seeds or SEEDS)), "r")


def test_a_good_record_becomes_a_sample() -> None:
    made = parsed(" Ada  Varn", "Hask Motors", " In May, Hask Motors  hired Ada Varn. ")
    assert made == Parsed("In May, Hask Motors hired Ada Varn.", (26, 34), (8, 19), "")


@pytest.mark.parametrize(
    ("head", "tail", "sentence", "reason"),
    [
        ("", "Hask", "Someone works at Hask now.", "placeholder_entity"),
        ("the person", "Hask", "The person works at Hask now.", "placeholder_entity"),
        ("Head (person)", "Hask", "Head (person) works at Hask now.", "placeholder_entity"),
        ('"Organization"', "Hask", 'The "Organization" works at Hask now.', "placeholder_entity"),
        ("…", "Hask", "… works at Hask now.", "placeholder_entity"),
        (
            "one two three four five six seven eight nine",
            "Hask",
            "So one two three four five six seven eight nine saw Hask.",
            "long_entity",
        ),
        ("a" * 61, "Hask", f"So {'a' * 61} works at Hask.", "long_entity"),
        ("Hask", "hask", "So Hask works at hask now.", "same_entities"),
        ("maria  lopez", "Nordhaven Shipyards", "There maria lopez left Nordhaven Shipyards.", "seed_pair"),
        ("Maria Lopez", "welder", "Maria Lopez works as a welder at Nordhaven  Shipyards.", "seed_sentence"),
        ("Ada Varn", "Hask", "She works at Hask now.", "missing_head"),
        ("Ada Varn", "Hask", "Ada Varn works at the firm.", "missing_tail"),
        ("Ada Varn", "Hask", "Ada Varn, or Ada Varn the elder, works at Hask.", "doubled_head"),
        ("Ada Varn", "Hask", "At Hask, Ada Varn is what Hask needs.", "doubled_tail"),
        ("Ada Varn", "Varn", "The welder Ada Varn came late.", "overlap"),
        ("Ada", "Hask", "At Hask the welder Ada Varn came late.", "part_of_name"),
        ("Ada Varn", "Hask", "Ada Varn works for a Hask-owned firm.", "part_of_name"),
        ("Ada", "Hask", "Ada left Hask.", "too_short"),
        ("Ada Varn", "Hask Motor Works", "1. Ada Varn, Hask Motor Works.", "too_short"),
        ("Ada Varn", "Hask", "Head: Ada Varn works at Hask.", "label_in_sentence"),
        ("Ada Varn", "Hask", "Ada Varn, Tail (organization): Hask now.", "label_in_sentence"),
        ("Ada Varn", "Hask", "there Ada Varn works at Hask.", "small_start"),
        ("Ada Varn", "Hask", "Ada Varn works at Hask now", "no_end"),
        ("Ada Varn", "Hask", "Ada Varn works at Hask now,", "no_end"),
        ("Ada Varn", "Hask", "Who is Ada Varn's boss at Hask?", "question"),
        ("Ada Varn and Tom", "Hask", "Ada Varn and Tom work at Hask.", "several_persons"),
        ("Ada Varn", "Hask", "Ada Varn works there. She likes Hask.", "several_sentences"),
        ("Ada Varn", "Hask", "Is Ada Varn there? So says Hask.", "several_sentences"),
        ("Ada Varn", "Hask", "Ada Varn and the sea and the sea and the sea and the sea at Hask.", "repetition"),
    ],
)
def test_every_rejection_has_its_reason(head: str, tail: str, sentence: str, reason: str) -> None:
    assert parsed(head, tail, sentence) == Parsed(rejection=reason)


def test_a_person_is_one_and_a_sample_no_question_unless_the_seeds_are() -> None:
    assert parsed("Ada Varn", "Hask and Sons", "Ada Varn works at Hask and Sons.").rejection == ""
    couple = replace(marked("[Mia and Tom] work at {Nordhaven}."), relation="r")
    record = Record("Ada and Tom", "Hask", "Ada and Tom work at Hask.")
    assert parse_record(record, form_of([couple], [RELATION]), "r").rejection == ""
    asked = ("Does [Mia] work at {Nordhaven}?", *SEEDS)
    assert parsed("Ada Varn", "Hask", "Is Ada Varn at Hask?", *asked).rejection == "question"
    assert parsed("Ada Varn", "Hask", "Is Ada Varn at Hask?", *asked[:2]).rejection == "question"
    assert parsed("Ada Varn", "Hask", "Is Ada Varn at Hask?", *asked[:1]).rejection == ""
    assert refused_seeds([marked(seed) for seed in asked], form(*asked)) == {}


def test_letters_without_blanks_between_repeat_themselves_too() -> None:
    seed = "[李明]住在{上海}的东边。"
    assert parsed("王明", "北京", "王明出生在很远很远很远很远很远很远的北京。", seed).rejection == "repetition"
    assert parsed("王明", "北京", "王明出生在北京的一家小医院。", seed).rejection == ""


LANGUAGES = {
    "Russian": (
        "Город {Белогорск} помнит [Олега Сомова].",
        "Иван Петров",
        "Заречье",
        "Иван Петров родился в городе Заречье много лет назад.",
    ),
    "French": (
        "[Chloé Roux] est née à {Sablemont} en hiver.",
        "Élodie Martin",
        "Clinique Verte",
        "Élodie Martin travaille comme infirmière à Clinique Verte.",
    ),
    "Polish": (
        "[Żaneta Wilk] mieszka od dawna w {Łące Małej}.",
        "Łukasz Nowak",
        "Barze Śląskim",
        "Łukasz Nowak pracuje itd. łącznie rok w Barze Śląskim.",
    ),
    "Greek": (
        "Η [Ελένη Μάρκου] ζει στη {Λιμνιά}.",
        "Γιάννης Ρίτσος",
        "Μονεμβασιά",
        "Γιάννης Ρίτσος γεννήθηκε στη Μονεμβασιά πριν από χρόνια.",
    ),
    "German": (
        "In der Stadt {Aldenau} lebt der Maler [Jan Holt].",
        "Anton Berg",
        "Hask Werke",
        "Heute arbeitet der Schlosser Anton Berg bei der Firma Hask Werke.",
    ),
    "Turkish": (
        "[İpek Şahin] her sabah {Yeşilova} köyüne gider.",
        "İlker Öz",
        "Çınar Ltd",
        "Her sabah İlker Öz’ün yolu Çınar Ltd önünden geçer.",
    ),
    "Arabic": ("تعمل [ليلى حسن] في شركة {النور} منذ سنوات.", "أحمد علي", "القاهرة", "ولد أحمد علي في مدينة القاهرة قبل سنوات."),
    "Hebrew": ("[דנה כהן] עובדת בחברת {אורן} שנים רבות.", "יוסי לוי", "מפעל הגליל", "השנה התחיל יוסי לוי לעבוד אצל מפעל הגליל."),
    "small first letter of a name": (
        "The gene {p16} is blocked by [CDK4] in cells.",
        "p53",
        "p21",
        "p53 activates the gene p21 in these cells.",
    ),
    "Greek letter in a name": (
        "The gene {p16} is blocked by [CDK4] in cells.",
        "α-synuclein",
        "TNF-α",
        "α-synuclein inhibits the protein TNF-α in mice.",
    ),
    "curly quotes": (
        "“[Tom Becker] left {Nordhaven Foods},” said the cook.",
        "Ada Varn",
        "Hask Motors",
        "“Ada Varn runs Hask Motors,” said the clerk.",
    ),
    "Japanese": ("[佐藤花子]は{京都}に住んでいる。", "山田太郎", "東京", "山田太郎は東京で生まれた。"),
    "Chinese": ("[林晓岚]在{明光医院}当护士。", "周远", "北河大学", "周远是北河大学的教授。"),
    "Chinese, the entities side by side": ("{南风公司}[许明]昨天来了。", "周远", "白河市", "白河市周远，他在那里长大。"),
    "Korean": ("[김하늘]은 {새벽마을}에서 태어났다.", "이도윤", "푸른강", "이도윤은 푸른강에서 오래 살았다."),
    "Hindi": ("[सीमा वर्मा] का घर {नीलगाँव} में है।", "राम शर्मा", "पीपलपुर", "राम शर्मा की माँ की बहन की शादी की बात पीपलपुर की है।"),
    "Thai": ("[สมชาย]ทำงานที่{บ้านสวน}มานาน", "กานดา", "โรงสีใหม่", "กานดาทำงานที่โรงสีใหม่มาหลายปี"),
    "Burmese": ("[မောင်မောင်]သည်{ရွာသစ်}တွင်နေသည်။", "လှလှ", "မြို့ဟောင်း", "လှလှသည်မြို့ဟောင်းတွင်နေသည်။"),
    "Armenian": ("[Անի Մելյան] ապրում է {Լեռնագյուղ} գյուղում։", "Արամ Գևորգյան", "Ձորավան", "Արամ Գևորգյան ծնվել է Ձորավան քաղաքում։"),
}


@pytest.mark.parametrize(("seed", "head", "tail", "sentence"), LANGUAGES.values(), ids=LANGUAGES)
@pytest.mark.parametrize("normal", ["NFC", "NFD"])
def test_a_sentence_with_the_habits_of_the_seeds_is_taken_in_any_script(
    seed: str, head: str, tail: str, sentence: str, normal: str
) -> None:
    seed, head, tail, sentence = (unicodedata.normalize(normal, text) for text in (seed, head, tail, sentence))
    made = parsed(head, tail, sentence, seed)
    assert made.rejection == ""
    assert (made.text[slice(*made.head)], made.text[slice(*made.tail)]) == (head, tail)


SCRIPTS = ["abcdeéñABCD", "абвгдеАБВГ", "αβγδέΑΒΓΔ", "ابتثجحخد", "אבגדהוז", "कखगघािीुे", "ကခဂဃာိီ", "가나다라마바", "abcd\u0301\u0308"]


@given(st.data())
def test_every_seed_reads_back_as_a_sample_of_its_own_task(data: st.DataObject) -> None:
    """What the prompts show is what the parser takes, in both forms, whatever script and habits the seeds have."""
    alphabet = data.draw(st.sampled_from(SCRIPTS))
    end, blank = data.draw(st.sampled_from([".", "", "।", "؟", "!", "…"])), data.draw(st.sampled_from([" ", " «", ", "]))
    word = st.text(alphabet, min_size=2, max_size=7).filter(lambda text: text[0].isalnum() and text[-1].isalnum())
    relation = Relation("r", "d", "thing", "thing")
    seeds = []
    for _ in range(data.draw(st.integers(1, 3))):
        words = data.draw(st.lists(word, min_size=3, max_size=8, unique_by=str.casefold))
        assume(not any(one.casefold() in other.casefold() for one, other in permutations(words, 2)))
        head, tail = data.draw(st.permutations(range(len(words))))[:2]
        text, spans = "", []
        for part in words:
            text += blank if text else ""
            spans.append((len(text), len(text) + len(part)))
            text += part
        seeds.append(Example(text + end, spans[head], spans[tail], "r"))
    form = form_of(seeds, [relation])
    assert refused_seeds(seeds, form) == {}
    form = replace(form, pairs=frozenset(), texts=frozenset())
    for seed in seeds:
        for chat in (False, True):
            (record,) = read_records(completion_of(relation, seed, False, chat))
            found = parse_record(record, form)
            assert (found.rejection, found.text, found.head, found.tail) == ("", seed.text, seed.head, seed.tail)


def test_seeds_that_no_sample_may_be_like_are_counted() -> None:
    seeds = [
        marked("[Ada] met {Bo} and then Ada left."),
        marked("Once [Ada Varn] met {Bo}."),
        marked("[one two three four five six seven eight nine] hurt {Cy}."),
    ]
    assert refused_seeds(seeds, form_of(seeds, [])) == {"doubled_head": 1, "long_entity": 1}


@pytest.mark.parametrize(
    ("head", "tail", "sentence", "seed", "reason"),
    [
        ("Ada", "Hask", "there Ada works at Hask.", "today [Tom] left {Greenfield} for good.", "small_start"),
        ("Ada", "Hask", "Today Ada works at Hask", "Welder [Tom] leaves {Greenfield} at last", "no_end"),
        ("Ada", "Hask", "Ada works there. She likes Hask.", "Here comes [Tom] again. He left {Greenfield} for good.", "several_sentences"),
        ("Ада", "Вира", "Ада служит там. Она любит Вира.", "Вот пришёл [Лев] снова. Он любит {Луч}.", "several_sentences"),
        ("Անի", "Գյումրի", "Անի այստեղ է։ Նա գիտի Գյումրի։", "Ահա [Արամ] նորից։ Նա գիտի {Երեւան}։", "several_sentences"),
        ("Άννα", "Βίρα", "Η Άννα ζει μακριά. Αγαπά τη Βίρα.", "Ο [Νίκος] ζει. Εδώ είναι η {Λίμνη}.", "several_sentences"),
        ("Ada", "Hask", "Ada left Hask.", "[Tom] quit {Greenfield}.", "too_short"),
        ("Ada", "Hask", "Today welder Ada Varn left Hask.", "So did [Tom] Becker at {Greenfield}.", "part_of_name"),
        ("head", "stone", "The head is made of stone.", "The {mason} cut the [head] of the lion.", "placeholder_entity"),
    ],
)
def test_a_rule_holds_only_where_the_seeds_keep_it(head: str, tail: str, sentence: str, seed: str, reason: str) -> None:
    assert parsed(head, tail, sentence, SEEDS[0]).rejection == reason
    assert parsed(head, tail, sentence, seed).rejection == ""


@pytest.mark.parametrize(
    ("wrapped", "seed"),
    [
        ("1. Ada works at Hask now.", "1. [Tom] quit {Greenfield} last year."),
        ("- Ada works at Hask now.", "- [Tom] quit {Greenfield} last year."),
        ('"Ada works at Hask now."', '"[Tom] quit {Greenfield} last year."'),
        ("„Ada works at Hask now.“", "„[Tom] quit {Greenfield} last year.“"),
    ],
)
def test_numbers_and_quotes_around_a_sentence_go_unless_the_seeds_have_them(wrapped: str, seed: str) -> None:
    assert parsed("Ada", "Hask", wrapped).text == "Ada works at Hask now."
    assert parsed("Ada", "Hask", wrapped, seed).text == wrapped


def test_quotes_within_a_sentence_stay() -> None:
    for text in ('"Ada works here," says Hask, "and there."', '"Ada" is the name of a ship at Hask.'):
        assert parsed("Ada", "Hask", text).text == text


@pytest.mark.parametrize("name", ['"Ada Varn"', "“Ada Varn”", "1. Ada Varn", "- Ada Varn", "Ada Varn.", "*Ada Varn*", "Ada Varn,"])
def test_what_an_llm_puts_around_a_name_is_no_part_of_it(name: str) -> None:
    assert bare_name(name) == "Ada Varn"
    made = parsed(name, "Hask Motors.", "Today Ada Varn works at Hask Motors.")
    assert (made.text[slice(*made.head)], made.text[slice(*made.tail)]) == ("Ada Varn", "Hask Motors")


@pytest.mark.parametrize("tail", ["Hask Inc.", "Hask Inc .", "Hask Inc"])
def test_the_sign_that_ends_a_sentence_is_no_part_of_a_name(tail: str) -> None:
    made = parsed("Ada", tail, f"Today Ada works at {tail.removesuffix('.')}.")
    assert made.text[slice(*made.tail)] == "Hask Inc"
    made = parsed("Ada", "Hask Inc.", "Today Hask Inc. hired Ada.")
    assert made.text[slice(*made.tail)] == "Hask Inc."


@pytest.mark.parametrize(("head", "tail"), [("1. FC Alden", "B.C. Hask"), ("“Ada”", "Hask & Co.")])
def test_numbers_quotes_and_stops_that_stand_in_the_sentence_stay(head: str, tail: str) -> None:
    made = parsed(head, tail, f"Last year {head} played against {tail} in the rain.")
    assert (made.text[slice(*made.head)], made.text[slice(*made.tail)]) == (head, tail)


@pytest.mark.parametrize(
    ("text", "entity", "found"),
    [
        ("Ada saw Ada and ada.", "Ada", ["Ada", "Ada", "ada"]),
        ("The storm caused a flood.", "Flood", ["flood"]),
        ("Storm and STORM", "storm", ["Storm"]),
        ("Adaline saw Varnada.", "Ada", []),
        ("Ada's car and Ada’s boat", "Ada", ["Ada", "Ada"]),
        ("an Ada-like one", "Ada", ["Ada"]),
        ("Ada Varn", "Ada Varn", ["Ada Varn"]),
        ("A.B. left", "A.B.", ["A.B."]),
        ("a a a", "a a", ["a a", "a a"]),
        ("nothing", "", []),
        ("short", "longer than that", []),
        ("İpek ve İpek", "İpek", ["İpek", "İpek"]),
        ("Die Straße nach Groß Alden", "Groß Alden", ["Groß Alden"]),
        ("Weiß und weiß, ßß Alden", "Alden", ["Alden"]),
        ("Straße, İstanbul, straße", "straße", ["Straße", "straße"]),
        ("ﬁne Alden", "Alden", ["Alden"]),
        ("राम ने रामू को देखा", "राम", ["राम"]),
        ("cafe\u0301 cafe", "cafe", ["cafe"]),
        ("東京都は東京", "東京", ["東京", "東京"]),
        ("x2 and 2 of 12", "2", ["2"]),
    ],
)
def test_a_mention_is_a_word_of_its_own(text: str, entity: str, found: list[str]) -> None:
    spans = mentions(text, entity)
    assert [text[slice(*span)] for span in spans] == found
    assert spans == sorted(set(spans))


@pytest.mark.parametrize(
    ("sentence", "whole"),
    [
        ("Ada of Hask works there.", True),
        ("Today Ada of Hask works.", True),
        ("Welder Ada left Hask early.", True),
        ("The new welder Ada left Hask.", True),
        ("At Hask, Ada came late.", True),
        ("Long ago Mrs Ada left Hask.", False),
        ("Long ago Ada Varn left Hask.", False),
        ("Long ago Ada left Hask Motors.", False),
        ("Long ago Ada left West-Hask early.", False),
        ("The Hask-born cook met Ada.", False),
    ],
)
def test_a_mention_is_no_half_of_a_longer_name(sentence: str, whole: bool) -> None:
    assert (parsed("Ada", "Hask", sentence).rejection or "whole") == ("whole" if whole else "part_of_name")


def test_a_few_seeds_with_half_a_name_change_nothing_and_a_quarter_does() -> None:
    half = "So did [Tom] Becker at {Greenfield} in May."
    sentence = ("Ada", "Hask", "Today welder Ada Varn left Hask.")
    assert parsed(*sentence, half, *SEEDS, *SEEDS).rejection == "part_of_name"
    assert parsed(*sentence, half, *SEEDS).rejection == ""


def test_a_task_without_types_or_seeds_has_a_form() -> None:
    bare = form_of([], [Relation("r", "")])
    assert (bare.ended, bare.capital, bare.single, bare.least_words) == (True, True, True, 4)
    assert parse_record(Record("Ada", "the person", "Ada is the person that came."), bare).rejection == ""
