"""What people say of a run's samples: a blind, shuffled draw, their answers, and the share of right ones.

Reviewers see the relation's description and the sentence with the head in ``[ ]`` and the tail in ``{ }``, and nothing of scores,
rounds or strategies.  Answers are kept in the run folder as they come, so that a review goes on where it was left.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.console import visible
from divray.errors import InputError
from divray.layout import ANSWERS, RELATIONS, SELECTED, score_tables
from divray.run_folder import RunFolder
from divray.scan import Row, first_of_each, rows, scored_rounds
from divray.schemas import NAIVE
from divray.textfiles import read_json
from divray.texts import SENTENCE, marked

QUESTION = "Is it readable, does it state the relation from head to tail, and are both entities whole mentions?"
RIGHT = {"y": True, "n": False, "s": None}


def draw(config: Config, run: RunFolder, number: int, of: str = "selected") -> list[dict[str, str]]:
    """``number`` samples to review, evenly over the relations, in a seeded order: ``sample_id``, ``description``, ``sentence``.

    ``of`` is ``selected``, or ``scored`` for all scored samples of the loop; the gate's threshold needs the latter.

    Raises:
        InputError: The run has no such samples yet.
    """
    tables, name, where = score_tables(config.rounds), "candidate_id", pc.field("strategy") != NAIVE
    if of == "selected":
        tables, name, where = [SELECTED], "sample_id", None

    def rank(row: Row) -> bytes:
        return hashlib.sha256(f"{config.seed}:{row[name]}".encode()).digest()

    groups = first_of_each(rows(run, tables, [name, "relation", *SENTENCE], where), "relation", rank, number)
    if not groups:
        last = "select" if of == "selected" else "score"
        raise InputError(run.uri, f"--of {of}", "no samples to review yet", f"Run the stages up to `{last}`.")
    turns = [sorted(filter(None, turn), key=rank) for turn in zip_longest(*groups.values())]
    descriptions = {relation["name"]: relation["description"] for relation in run.read_json(RELATIONS)}
    return [
        {"sample_id": row[name], "description": visible(descriptions[row["relation"]]), "sentence": visible(marked(row))}
        for row in sorted(list(chain(*turns))[:number], key=rank)
    ]


def _sentences(run: RunFolder, names: Iterable[str]) -> dict[str, str]:
    """Sample -> the sentence shown for it, for those of ``names`` that the run has now."""
    wanted = pa.array(names, pa.string())
    found: dict[str, str] = {}
    for tables, column in (([SELECTED], "sample_id"), ([own.scores for own in scored_rounds(run)], "candidate_id")):
        found |= {row[column]: visible(marked(row)) for row in rows(run, tables, [column, *SENTENCE], pc.field(column).isin(wanted))}
    return found


def review(run: RunFolder, drawn: Sequence[dict[str, str]], reader: str, ask: Callable[[str], str]) -> int:
    """Ask about each sample that ``reader`` has not answered yet; returns how many answers came.

    ``ask`` shows a text and returns the key: ``y`` right, ``n`` wrong, ``s`` skip, ``b`` back, ``q`` quit.
    """
    done = {answer["sample_id"] for answer in read_answers(run) if answer["reader"] == reader}
    left = [sample for sample in drawn if sample["sample_id"] not in done]
    place = given = 0
    while place < len(left):
        sample = left[place]
        text = f"{place + 1} of {len(left)}\n\n{sample['description']}\n\n  {sample['sentence']}\n\n{QUESTION}"
        key = ask(f"{text}\ny yes, n no, s skip, b back, q quit, then Enter: ")
        if key == "q":
            break
        if key == "b":
            place = max(0, place - 1)
        elif key in RIGHT:
            _keep(run, reader, {sample["sample_id"]: RIGHT[key]}, {sample["sample_id"]: sample["sentence"]})
            place, given = place + 1, given + 1
    return given


def _kept(run: RunFolder) -> list[dict[str, Any]]:
    return run.read_json(ANSWERS) if run.exists(ANSWERS) else []


def read_answers(run: RunFolder) -> list[dict[str, Any]]:
    """The answers to samples whose sentence is unchanged: a stage that ran again may have put another sentence under the same id."""
    said = _kept(run)
    now = _sentences(run, {answer["sample_id"] for answer in said}) if said else {}
    return [answer for answer in said if answer.get("sentence") in (None, now.get(answer["sample_id"]))]


def take_answers(run: RunFolder, path: str, reader: str) -> int:
    """Read the file that the page of :func:`page` saves; returns how many samples it answers, each by its last answer.

    Raises:
        InputError: It is no such file, or it is of another run, or a sample has another sentence now.
    """
    mend = "Save it on the page of `divray review RUN --html FILE`."
    answers = read_json(Path(path))
    if not isinstance(answers, list) or not all(isinstance(one, dict) and {"sample_id", "right"} <= one.keys() for one in answers):
        raise InputError(path, "", "no file of answers", mend)
    new = {str(one["sample_id"]): one["right"] for one in answers}
    known = _sentences(run, new)
    for one in answers:
        name, right = str(one["sample_id"]), one["right"]
        if name not in known:
            raise InputError(path, name, "no sample of this run has that id", mend)
        if one.get("sentence") not in (None, known[name]):
            raise InputError(path, name, "the sample has another sentence now", "Make a new page and answer there.")
        if not isinstance(right, bool | None):
            raise InputError(path, f"{name}: right", f"{right!r} is not true, false or null", mend)
    _keep(run, reader, new, known)
    return len(new)


def _keep(run: RunFolder, reader: str, new: dict[str, bool | None], sentences: dict[str, str]) -> None:
    """Save a reader's new answers in place of that reader's older ones to the same samples."""
    kept = [one for one in _kept(run) if one["reader"] != reader or one["sample_id"] not in new]
    given = [{"sample_id": name, "reader": reader, "right": right, "sentence": sentences[name]} for name, right in new.items()]
    run.write_json(ANSWERS, kept + given)


def review_answers(run: RunFolder) -> dict[str, bool]:
    """Sample -> whether most of its readers call it right; a tie is wrong, and skips don't count."""
    votes: dict[str, list[bool]] = defaultdict(list)
    for answer in read_answers(run):
        if answer["right"] is not None:
            votes[answer["sample_id"]].append(answer["right"])
    return {name: 2 * sum(said) > len(said) for name, said in sorted(votes.items())}


def review_figures(run: RunFolder) -> dict[str, Any] | None:
    """The :func:`share` of right samples among the selected ones reviewed, overall and per relation; ``None`` if none is reviewed yet."""
    answers = review_answers(run)
    reviewed = pc.field("sample_id").isin(pa.array(answers, pa.string()))
    read = {row["sample_id"]: row["relation"] for row in rows(run, SELECTED, ["sample_id", "relation"], reviewed)}
    if not read:
        return None
    readers = {one["reader"] for one in read_answers(run) if one["sample_id"] in read and one["right"] is not None}
    relations = {name: share([answers[sample] for sample in read if read[sample] == name]) for name in sorted(set(read.values()))}
    return {**share([answers[name] for name in read]), "readers": len(readers), "relations": relations}


def share(right: Sequence[bool]) -> dict[str, Any]:
    """``number``, how many are ``right``, their ``share``, and ``low`` and ``high`` of Wilson's 95 % interval."""
    from scipy.stats import binomtest

    test = binomtest(sum(right), len(right))
    low, high = (round(float(limit), 4) for limit in test.proportion_ci(0.95, "wilson"))
    return {"number": len(right), "right": sum(right), "share": round(float(test.statistic), 4), "low": low, "high": high}


def as_sentence(figures: dict[str, Any]) -> str:
    """The share of right ones for people to read."""
    who = "A person" if figures["readers"] == 1 else f"{figures['readers']} people"
    low, high = (f"{100 * figures[name]:.0f}" for name in ("low", "high"))
    return f"{who} read {figures['number']} of the selected samples: {100 * figures['share']:.0f} % right [{low}, {high}]."


def reviewed_threshold(scores: Sequence[float], right: Sequence[bool], wanted: float = 0.8) -> float:
    """The lowest score for which at least ``wanted`` of the samples with that score or more are right; the highest score if none is."""
    from sklearn.metrics import precision_recall_curve

    if not any(right):
        return max(scores)
    precision, _, thresholds = precision_recall_curve(right, scores)
    return float(min(thresholds[precision[:-1] >= wanted], default=max(scores)))


def page(drawn: Sequence[dict[str, str]]) -> str:
    """One HTML page that asks for the answers and saves them as a file; the page loads no other files."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.PackageLoader("divray", "report"), autoescape=True)
    return environment.get_template("review.html.j2").render(drawn=drawn, question=QUESTION)
