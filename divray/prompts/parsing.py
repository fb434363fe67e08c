"""From a record to a sample with character spans, or to a rejection with its reason.

The rules of a sentence's form (final punctuation, first letter, one sentence or several) apply only where the task's own
seed sentences keep them, so that any script and any habit of writing is accepted.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import regex

from divray.dedup.shingle import spaced
from divray.prompts.record import Record
from divray.relations import Example, Relation, Span, mentions, overlap

_ENDS = ".!?…。．！？｡।॥؟۔։።՜՞"
"""Punctuation that ends a sentence, in the scripts that have any."""
_CLOSING = "\"'’”»›)]}」』）】"
_INNER_END = regex.compile(rf"(?:([\p{{L}}\p{{M}}]{{3}})[.]|[!?…।॥؟۔։።])[{re.escape(_CLOSING)}]? +(\p{{L}})|[。！？](?=\w)")
_NUMBER = re.compile(r"^(?:\d{1,2}[.)]|[-*•]) +")
_QUOTES = '"“”„«»'
_WORD = regex.compile(r"[\p{L}\p{N}_][\w\p{N}\u00ad]*")
"""A word with its marks and joiners, in any script."""
_LABELS = frozenset({"head", "tail", "entity", "head entity", "tail entity", "sentence", "relation", "none", "n/a"})
_PERSON = frozenset({"person", "people", "human", "individual"})
_SEVERAL = re.compile(r" (?:and|&) ")
_ARTICLES = re.compile(r"^(?:the|a|an) ", re.IGNORECASE)

MIN_WORDS, MAX_ENTITY_WORDS, MAX_ENTITY_CHARACTERS = 4, 8, 60
MOST_HALVES = 0.25
"""If more than this share of the seeds have an entity inside a longer name (German nouns, titles), samples may have one, too."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed record: its sentence and two spans, or ``rejection``, one of the reasons of :func:`parse_record`."""

    text: str = ""
    head: Span = (0, 0)
    tail: Span = (0, 0)
    rejection: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """What the seeds of a task have in common, and so its samples must have."""

    ended: bool  # every seed ends with punctuation that ends a sentence
    asserted: bool  # at most half of the seeds are questions
    capital: bool  # every seed that begins with a cased letter begins with a capital
    single: bool  # no seed is several sentences
    bare: bool  # no seed has a list marker before it or quotes around it, so both are removed from an LLM's sentence
    varied: bool  # no seed repeats itself
    whole_names: bool  # at most MOST_HALVES of the seeds have an entity inside a longer name
    least_words: int  # words of the shortest seed, but at most MIN_WORDS
    persons: frozenset[tuple[str, int]]  # (relation, 0 for head or 1 for tail) that is a person; empty if one in a seed is several persons
    placeholders: frozenset[str]  # folded labels and types, except seeds' entities; no sample's entity is one
    pairs: frozenset[tuple[str, str]]  # folded (head, tail) of every seed; no sample repeats one
    texts: frozenset[str]  # folded seed sentences; no sample repeats one


def form_of(seeds: Collection[Example], relations: Iterable[Relation]) -> Form:
    """The :class:`Form` of a task."""
    texts = [" ".join(seed.text.split()) for seed in seeds]
    types = {(one.name, side): kind.casefold() for one in relations for side, kind in enumerate((one.head_type, one.tail_type)) if kind}
    persons = {place for place, kind in types.items() if kind in _PERSON}
    sides = [(seed.relation, side, name) for seed in seeds for side, name in enumerate((seed.head_text, seed.tail_text))]
    several = any((relation, side) in persons and _SEVERAL.search(name) for relation, side, name in sides)
    halves = sum(part_of_name(seed.text, seed.head) or part_of_name(seed.text, seed.tail) for seed in seeds)
    return Form(
        ended=all(_is_ended(text) for text in texts),
        asserted=2 * sum(_is_asked(text) for text in texts) <= len(texts),
        capital=all(not _begins_small(text) for text in texts),
        single=not any(_is_several(text) for text in texts),
        bare=all(_bared(text) == text for text in texts),
        varied=not any(_repeats(text) for text in texts),
        whole_names=halves <= MOST_HALVES * len(seeds),
        least_words=min([MIN_WORDS, *(len(_WORD.findall(text)) for text in texts)]),
        persons=frozenset() if several else frozenset(persons),
        placeholders=(_LABELS | set(types.values())) - {_folded(name) for *_, name in sides},
        pairs=frozenset((_folded(seed.head_text), _folded(seed.tail_text)) for seed in seeds),
        texts=frozenset(text.casefold() for text in texts),
    )


def refused_seeds(seeds: Iterable[Example], form: Form) -> Counter[str]:
    """How many seeds would be rejected if they were samples, by reason."""
    fresh = replace(form, asserted=False, pairs=frozenset(), texts=frozenset())
    reasons = (parse_record(Record(seed.head_text, seed.tail_text, seed.text), fresh).rejection for seed in seeds)
    return Counter(reason for reason in reasons if reason)


def parse_record(record: Record, form: Form, relation: str = "") -> Parsed:
    """Find the two entities in a sentence of ``relation`` and check the sentence's form, not whether it is *true*.

    Returns:
        A sample, or one of the rejections ``placeholder_entity``, ``long_entity``, ``same_entities``, ``seed_pair``, ``several_persons``,
        ``seed_sentence``, ``missing_head``, ``missing_tail``, ``doubled_head``, ``doubled_tail``, ``overlap``, ``part_of_name``,
        ``too_short``, ``label_in_sentence``, ``small_start``, ``no_end``, ``question``, ``several_sentences``, ``repetition``.
    """
    text = " ".join(record.sentence.split())
    text = _bared(text) if form.bare else text
    entities = " ".join(record.head.split()), " ".join(record.tail.split())
    if problem := pair_problem(entities, form, relation):
        return Parsed(rejection=problem)
    if text.casefold() in form.texts:
        return Parsed(rejection="seed_sentence")
    spans = [mentions(text, entity) or mentions(text, bare_name(entity)) for entity in entities]
    for found, name in zip(spans, ("head", "tail"), strict=True):
        if len(found) != 1:
            return Parsed(rejection=f"{'doubled' if found else 'missing'}_{name}")
    # The punctuation that ends the sentence is no part of a name.
    last = len(text[:-1].rstrip()) if form.ended and text[-1] in _ENDS else len(text)
    (head,), (tail,) = ([(start, min(end, last)) for start, end in found] for found in spans)
    if overlap(head, tail):
        return Parsed(rejection="overlap")
    if form.whole_names and (part_of_name(text, head) or part_of_name(text, tail)):
        return Parsed(rejection="part_of_name")
    problem = _sentence_problem(text, (head, tail), form)
    return Parsed(rejection=problem) if problem else Parsed(text, head, tail)


def pair_problem(entities: tuple[str, str], form: Form, relation: str = "") -> str:
    folded = (_folded(entities[0]), _folded(entities[1]))
    for entity in folded:
        if not _WORD.search(entity) or _ARTICLES.sub("", entity).partition(" (")[0] in form.placeholders:
            return "placeholder_entity"
        if len(entity.split()) > MAX_ENTITY_WORDS or len(entity) > MAX_ENTITY_CHARACTERS:
            return "long_entity"
    if folded[0] == folded[1]:
        return "same_entities"
    if any((relation, side) in form.persons and _SEVERAL.search(entity) for side, entity in enumerate(folded)):
        return "several_persons"
    return "seed_pair" if folded in form.pairs else ""


def bare_name(entity: str) -> str:
    """``entity`` without what an LLM puts around it: a list marker, quotes, asterisks, punctuation."""
    return _NUMBER.sub("", entity).strip(f"{_QUOTES}'‘’*.,; ")


def _folded(entity: str) -> str:
    return " ".join(bare_name(entity).casefold().split())


def _bared(text: str) -> str:
    """A sentence without a list marker before it and without quotes around all of it."""
    text = _NUMBER.sub("", text)
    quoted = text[:1] in tuple(_QUOTES) and text[-1:] in tuple(_QUOTES) and not set(text[1:-1]) & set(_QUOTES)
    return text[1:-1].strip() if quoted else text


def part_of_name(text: str, span: Span) -> bool:
    """Whether the mention is part of a longer name: a hyphen joins it to a word, or it and the word beside it are both capitalised."""
    entity, before, after = text[slice(*span)], text[: span[0]], text[span[1] :]
    if re.match(r"-\w", after) or re.search(r"\w-$", before):
        return True
    words = entity.split()
    following = re.match(r" ([^\W\d_])", after)
    if following and following[1].isupper() and words[-1][:1].isupper():
        return True
    previous = re.search(r"(\S+) $", before)
    return bool(
        previous and len(previous[1]) < len(before) - 1 and previous[1].isalpha() and previous[1][0].isupper() and words[0][:1].isupper()
    )


def _sentence_problem(text: str, spans: tuple[Span, Span], form: Form) -> str:
    words = _WORD.findall(text)
    rest = "".join(character for place, character in enumerate(text) if not any(start <= place < end for start, end in spans))
    if len(words) < form.least_words or not re.search(r"[^\W\d_]", rest):
        return "too_short"
    if re.search(r"\b(?:Head|Tail|Sentence)(?: \([^)]*\))?:", text):
        return "label_in_sentence"
    if form.capital and _begins_small(text) and min(spans)[0] > 0:
        return "small_start"
    if form.ended and not _is_ended(text):
        return "no_end"
    if form.asserted and _is_asked(text):
        return "question"
    if form.single and _is_several(text):
        return "several_sentences"
    return "repetition" if form.varied and _repeats(text) else ""


def _repeats(text: str) -> bool:
    lowered = [word.casefold() for word in _WORD.findall(spaced([text])[0])]
    trigrams = list(zip(lowered, lowered[1:], lowered[2:], strict=False))
    return len(trigrams) >= 4 and len(set(trigrams)) < 0.75 * len(trigrams)


def _is_several(text: str) -> bool:
    """Whether a sentence ends within ``text``: no small letter follows the punctuation, and no abbreviation precedes a full stop."""
    ends = ((found[1] or "", found[2] or "") for found in _INNER_END.finditer(text))
    return any(before == before.lower() and not following.islower() for before, following in ends)


def _begins_small(text: str) -> bool:
    return next((character for character in text if character.isalpha()), "").islower()


def _is_asked(text: str) -> bool:
    return _is_ended(text, "?？؟")


def _is_ended(text: str, signs: str = _ENDS) -> bool:
    return text.rstrip(_CLOSING + " ")[-1:] in tuple(signs)
