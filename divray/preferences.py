"""The ``mine`` stage: preference pairs for DPO, from the samples of a round (``mined``) or by the paper's recipe (``paper``).

``mined`` prefers a right and different sample to one that is wrong in a named way.  The chosen sample passed the gate, stayed unique
and lies far from the others (DivPO, arXiv 2501.18101).  Samples that share no entity with a seed come first, since the policy would
otherwise learn to write about the seeds' entities.  The rejected sample is

``invalid``
    a completion that is no valid record;
``doubtful``
    a valid sample that the judge rates more likely wrong than right, the worst first;
``mirrored``
    the chosen sample with head and tail exchanged (only where the LLM writes the pair and the relation's two types differ);
``other_relation``
    a right sample of another relation, under the prompt of this relation;
``near_copy``
    a seed example of the relation with the chosen sample's entities and one word changed;
``alike``
    a right sample that lies close to others.

Each chosen sample is in two pairs, or in more where a relation has few samples.  The pairs beyond two never reject right text
(``alike``, ``near_copy``): the policy would unlearn the relation's own words.  The ways take turns, and relations begin with
different ways, so that none prevails.  Both texts of a pair end as sampled text ends.

``paper`` (arXiv 2505.23108) chooses a seed example that the prompt does not show.  It rejects a seed of another relation
(``relabelled``), a demonstration with other entities and a slight edit (``near_copy``), or an unchanged demonstration (``copy``).
divray does not have the paper's guard against leaks, which tunes on one half of the relations and generates for the other.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.datasets.stage import read_relations, read_seeds
from divray.layout import Round
from divray.prompts.record import completion_of
from divray.prompts.rows import accepted_samples, gives_pair
from divray.relations import Example, Relation, replaced
from divray.run_folder import RunFolder
from divray.scan import Row
from divray.schemas import NAIVE, PAIRS, SCORES
from divray.sections import PreferencesConfig
from divray.stages import Progress
from divray.texts import SENTENCE, names_of

_WRITTEN = ("candidate_id", "relation", "strategy", "prompt", "completion")
_SCORED = (*SENTENCE, "correctness", "correct", "unique", "novelty")
CANDIDATES = pa.schema([SCORES.field(name) for name in (*_WRITTEN, *_SCORED)])
"""Candidates for a pair: scored samples, and complete but invalid completions, which have no scores."""

WAYS = ("doubtful", "mirrored", "invalid", "other_relation", "alike", "near_copy")
RIGHT = ("alike", "near_copy")
"""Ways whose rejected text states the prompt's relation correctly."""
LIKELY = 0.5
"""From this correctness on, a sample is more likely right than wrong."""
WAYS_EACH = 2
"""Pairs of one chosen sample, each wrong in another way: at least so many, where enough can be made."""

NOT_WHOLE = ("engine_error", "rejected_request", "empty", "truncated", "not_written")
"""Reasons of rejection that mean: the completion is not a complete text."""

OTHERS = 32
"""So many right samples of each relation serve as wrong samples of the other relations."""

EDITS = (("the", "this"), ("a", "one"), ("an", "one"), ("was", "has been"), ("is", "remains"), ("and", "as well as"), ("in", "within"))
"""Word and its substitute.  A near copy changes the first of these words that occurs outside the entities."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``round-XX/pairs`` (``schemas.PAIRS``), sorted by ``pair_id``, and count them.

    Reads ``round-XX/scores`` and the rejections in ``round-XX/samples`` (``mined``), or ``round-XX/prompts``
    and ``data/seeds`` (``paper``), one relation at a time.
    """
    own = Round.of(round)
    relations = {relation.name: relation for relation in read_relations(run)}
    shared: dict[str, Any] = {"relations": relations, "seeds": read_seeds(run), "settings": config.preferences}
    shared |= {"seed": config.seed, "chat": config.prompts.style == "chat"}
    if config.preferences.mode == "mined":
        rows = _candidates(run, own)
        others = {name: accepted[:OTHERS] for name, accepted in accepted_samples(run, [round]).items()}
        make: Any = partial(mined_pairs, others=others, **shared)
    else:
        rows = run.dataset(own.prompts, columns=["relation", "strategy", "prompt_id", "prompt", "head", "demonstrations"])
        make = partial(paper_pairs, **shared)
    groups = rows.groupby("relation", num_partitions=min(max(1, len(relations)), 64))
    made = groups.map_groups(make, batch_format="pyarrow", num_cpus=config.cluster.worker_cpus)
    # The table fits in memory for a round of any size: a relation has at most max_pairs_per_relation pairs.
    pairs = _pair_table(made.iter_rows())
    run.write_table(own.pairs, pairs)
    return {"pairs": pairs.num_rows}


def _candidates(run: RunFolder, own: Round) -> Any:
    """Dataset of :data:`CANDIDATES`: the scored samples and the complete but invalid completions, see :func:`_rows`."""
    scored, samples = run.dataset(own.scores, columns=CANDIDATES.names), run.dataset(own.samples, columns=[*_WRITTEN, "rejection"])
    scored, invalid = (rows.map_batches(_rows, batch_format="pyarrow", num_cpus=0.1) for rows in (scored, samples))
    return scored.union(invalid)


def _rows(batch: pa.Table) -> pa.Table:
    """Rows of :data:`CANDIDATES`: all scores, and of the samples the complete but invalid completions; neither naive nor from lists."""
    # all_at_once asks for a list of records, which is never the answer to a prompt for one record.
    out = pc.is_in(batch["strategy"], pa.array([NAIVE, "all_at_once"]))
    if "rejection" in batch.column_names:
        out = pc.or_(out, pc.is_in(batch["rejection"], pa.array(["", *NOT_WHOLE])))
    return pa.concat_tables([CANDIDATES.empty_table(), batch.filter(pc.invert(out))], promote_options="default").select(CANDIDATES.names)


def mined_pairs(
    rows: pa.Table,
    relations: Mapping[str, Relation],
    seeds: Sequence[Example],
    others: Mapping[str, Sequence[Example]],
    settings: PreferencesConfig,
    seed: int,
    chat: bool = False,
) -> pa.Table:
    """The pairs of one relation, at most ``max_pairs_per_relation``, from rows of :data:`CANDIDATES` in any order.

    ``seeds`` and ``relations`` are those of the run.  ``others`` has right samples of each relation, for ``other_relation``.
    ``seed`` and the chosen sample's id decide every draw.  With ``chat``, records are JSON.
    """
    candidates: list[Row] = rows.append_column("given", gives_pair(rows["prompt"])).sort_by("candidate_id").to_pylist()
    relation = relations[candidates[0]["relation"]]
    valid = [row for row in candidates if row["correctness"] is not None]
    own_seeds = [example for example in seeds if example.relation == relation.name]
    known = {name.casefold() for example in own_seeds for name in (example.head_text, example.tail_text)}
    good = [row for row in valid if row["correct"] and row["unique"]]
    good.sort(key=lambda row: (not known.isdisjoint(names_of(row)), -row["novelty"], -row["correctness"]))
    bad = sorted((row for row in valid if not row["correct"] and row["correctness"] < LIKELY), key=lambda row: row["correctness"])
    invalid = [row for row in candidates if row["correctness"] is None]
    most = settings.max_pairs_per_relation
    count = min(-(-most // WAYS_EACH), max(1, 2 * len(good) // 3), len(good))
    left = {"doubtful": bad, "invalid": invalid, "alike": good[count:][::-1]}
    foreign = [example for name in sorted(others) if name != relation.name for example in others[name]]

    def rejected(way: str, row: Row, rng: random.Random) -> tuple[str, str] | None:
        """Id and text of a rejected side that is wrong in this way under the row's prompt; ``None`` if there is none."""
        mine = Example(row["text"], (row["head_start"], row["head_end"]), (row["tail_start"], row["tail_end"]), relation.name)
        if other := next((one for one in left.get(way, []) if one["given"] == row["given"]), None):
            left[way].remove(other)
            return other["candidate_id"], _ended(other, chat)
        if way == "mirrored" and not row["given"] and relation.head_type != relation.tail_type:
            name, example = f"mirror:{row['candidate_id']}", replace(mine, head=mine.tail, tail=mine.head)
        elif way == "other_relation" and foreign:
            example = rng.choice(foreign)
            name = example.example_id
        elif way == "near_copy" and own_seeds:
            shown = rng.choice(own_seeds)
            name, example = f"seed:{shown.example_id}", near_copy(shown, mine)
        else:
            return None
        return name, completion_of(relation, example, row["given"], chat)

    first = sorted(relations).index(relation.name) % len(WAYS)
    ways, used, pairs = WAYS[first:] + WAYS[:first], Counter[str](), dict[tuple[str, str], Row]()
    for turn in range(len(WAYS)):
        if turn == WAYS_EACH:
            ways = tuple(way for way in ways if way not in RIGHT)
        for row in good[:count]:
            name, text, rng = row["candidate_id"], _ended(row, chat), _random(seed, row["candidate_id"])
            for way in sorted(ways, key=lambda way: used[way]):
                if len(pairs) < most and (name, way) not in pairs and (made := rejected(way, row, rng)) and made[1] != text:
                    used[way] += 1
                    pairs[name, way] = _pair(row, name, way, (name, text), made)
                    break
    return _pair_table(pairs.values())


def _ended(row: Row, chat: bool) -> str:
    """A sampled completion with the stop string that the engine cuts off: a line's end or an empty line; JSON has none."""
    completion: str = row["completion"]
    return completion if chat else completion.rstrip("\n") + ("\n" if row["given"] else "\n\n")


def paper_pairs(
    rows: pa.Table,
    relations: Mapping[str, Relation],
    seeds: Sequence[Example],
    settings: PreferencesConfig,
    seed: int,
    chat: bool = False,
) -> pa.Table:
    """The pairs of one relation by the paper's recipe, at most ``max_pairs_per_relation``; its prompts take turns.

    ``rows`` are of ``schemas.PROMPTS``, in any order, repeats allowed.  The rest is as for :func:`mined_pairs`.
    """
    examples = {example.example_id: example for example in sorted(seeds, key=lambda example: example.example_id)}
    prompts = {row["prompt_id"]: row for row in rows.to_pylist() if row["strategy"] != NAIVE}
    each = [_paper_pairs_of(prompts[name], relations, examples, seed, chat) for name in sorted(prompts)]
    in_turn = (pair for some in zip_longest(*each) for pair in some if pair is not None)
    return _pair_table(islice(in_turn, settings.max_pairs_per_relation))


def _paper_pairs_of(
    prompt: Row, relations: Mapping[str, Relation], examples: Mapping[str, Example], seed: int, chat: bool
) -> Iterator[Row]:
    rng = _random(seed, prompt["prompt_id"])
    shown = [examples[name] for name in prompt["demonstrations"] if name in examples]
    own = [e for e in examples.values() if e.relation == prompt["relation"]]
    unseen = [e for e in own if e not in shown]
    others = [e for e in examples.values() if e.relation != prompt["relation"]]
    if not unseen:
        return
    wrong: list[tuple[str, Example]] = []
    if others:
        wrong.append(("relabelled", rng.choice(others)))
    if shown:
        copied, edited = rng.choice(shown), rng.choice(shown)
        donor = rng.choice([e for e in own if e is not edited] or others or [edited])
        wrong += [("near_copy", near_copy(edited, donor)), ("copy", copied)]
    rng.shuffle(wrong)
    for kind, example in wrong:
        sides = [
            (f"seed:{e.example_id}", completion_of(relations[prompt["relation"]], e, bool(prompt["head"]), chat))
            for e in (rng.choice(unseen), example)
        ]
        if sides[0][1] != sides[1][1]:
            yield _pair(prompt, prompt["prompt_id"], kind, *sides)


def near_copy(example: Example, donor: Example) -> Example:
    """``example`` with the entities of ``donor`` and, where one of :data:`EDITS` fits, one word of its context changed."""
    text, *_ = replaced(example.text, example.head, "\0", example.tail, "\1")  # the edit must not change an entity
    for word, substitute in EDITS:
        text, edited = re.subn(rf"(?<![\w'-]){word}(?![\w'-])", substitute, text, count=1)
        if edited:
            break
    head, tail = text.index("\0"), text.index("\1")
    sentence = replaced(text, (head, head + 1), donor.head_text, (tail, tail + 1), donor.tail_text)
    return Example(*sentence, example.relation, example_id=example.example_id)


def _random(seed: int, name: str) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed}:{name}".encode()).digest())


def _pair(prompt: Row, name: str, kind: str, chosen: tuple[str, str], rejected: tuple[str, str]) -> Row:
    """A row of ``PAIRS`` under the prompt of row ``prompt``; both sides are id and text."""
    values = f"{name}--{kind}", prompt["relation"], prompt["prompt"], chosen[1], rejected[1], kind, chosen[0], rejected[0]
    return dict(zip(PAIRS.names, values, strict=True))


def _pair_table(pairs: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist(sorted(pairs, key=lambda pair: pair["pair_id"]), PAIRS)
