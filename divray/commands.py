"""What the commands do: those that run the loop or a part of it, then those that show samples (preview, export, explain, review)."""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager
from textwrap import indent
from typing import Any

from divray import console, review
from divray.cluster import prepare_cluster, release_cluster
from divray.config import Config, load_config, override_config, read_config
from divray.console import visible
from divray.datasets.stage import read_relations, read_seeds
from divray.datasets.stage import run as prepare
from divray.dedup.storage import open_uri
from divray.engines.complete import complete
from divray.explain import explain
from divray.export import export
from divray.extraction.answers import take_in
from divray.layout import REPORT
from divray.locks import locked
from divray.pipeline import check, describe, due_round, held, retry, run_all, run_stage
from divray.prompts import run as prompt
from divray.prompts.parsing import form_of
from divray.report.findings import tables
from divray.report.stage import run as report
from divray.run_folder import RunFolder, write_bytes
from divray.sampling import parsed_records
from divray.selection import write_card
from divray.stages import STAGES
from divray.textfiles import dump_yaml


def run(arguments: Namespace) -> None:
    summary = run_all(load_config(arguments.config, arguments.overrides), arguments.out)
    console.show(tables(summary))
    console.log(f"report: {arguments.out}/report.html")


def plan(arguments: Namespace) -> None:
    print(describe(load_config(arguments.config, arguments.overrides)))


def stage(arguments: Namespace) -> None:
    """One stage of a run, in one round."""
    stage = STAGES[arguments.command]
    if stage.name == "prepare":
        config = load_config(arguments.config, arguments.overrides)
        hold: AbstractContextManager[Any] = held(config, arguments.run)
    else:
        config = override_config(read_config(RunFolder(arguments.run)), arguments.overrides)
        hold = locked(RunFolder(arguments.run))
    with hold:
        run = RunFolder(arguments.run)
        if getattr(arguments, "retry_failed", False):
            retry(config, run, arguments.round)
            return
        if file := getattr(arguments, "predictions", None):
            lacking = take_in(run, file)
            console.log(f"{file}: {lacking or 'no'} test sentences lack an answer")
        round_ = due_round(config, run, stage, getattr(arguments, "round", None), arguments.force)
        if round_ is not None:
            run_stage(config, run, stage, round_)


def preview_samples(arguments: Namespace) -> None:
    for block in preview(load_config(arguments.config, arguments.overrides), arguments.n, arguments.folder):
        print(visible(block))  # an LLM's text must not steer the terminal


def preview(config: Config, count: int, folder: str | None = None, answer: Any = None) -> Iterator[str]:
    """Blocks of text: each relation's prompt for each strategy, and ``count`` completions with their verdicts.

    It writes only to a temporary folder, which it deletes.

    Args:
        folder: Where to make it; every machine of a cluster must see it.
        answer: A function in the engine's place; see :func:`divray.engines.complete.complete`.
    """
    check(config)
    wanted = count * len(config.prompts.strategies)
    sampling = {"candidates_per_relation": wanted, "naive_candidates_per_relation": count, "waves": 1, "quota": None}
    config = config.model_copy(update={"sampling": config.sampling.model_copy(update=sampling), "rounds": 1})
    with tempfile.TemporaryDirectory(prefix="divray-preview-", dir=folder) as temporary:
        run = RunFolder(temporary)
        prepare_cluster(config, run, ["sample"])
        try:
            prepare(config, run)
            prompt(config, run, 0, answer=answer)
            complete(config, run, "round-00/prompts", "completions", config.models.llm, answer=answer)
        finally:
            release_cluster(config)
        completions = run.read_table("completions").sort_by("candidate_id").to_pylist()
        form = form_of(read_seeds(run), read_relations(run))
    shown = ""
    for row in completions:
        if row["prompt_id"] != shown:
            shown = row["prompt_id"]
            yield f"\n=== {row['relation']} / {row['strategy']}\n{row['prompt']}"
        verdicts = ", ".join(parsed.rejection or "valid" for parsed in parsed_records(row, form))
        yield f"  [{verdicts}]\n{indent(row['completion'].strip(), '    ')}"


def export_samples(arguments: Namespace) -> None:
    print(f"{export(arguments.run, arguments.target, arguments.all)} samples -> {arguments.target}")


def explain_sample(arguments: Namespace) -> None:
    """What is known of the sample as YAML, then its prompt and its completion."""
    found = explain(arguments.run, arguments.sample_id)
    texts = {name: found.pop(name) or "" for name in ("prompt", "completion")}
    print(visible(dump_yaml({key: value for key, value in found.items() if value})), end="")
    for name, text in texts.items():
        print(visible(f"\n=== {name}\n{text.strip()}"))


def review_samples(arguments: Namespace) -> None:
    """Ask a person which samples are right; report and card then show the answers."""
    run = RunFolder(arguments.run)
    config = read_config(run)
    if arguments.html:
        drawn = review.draw(config, run, arguments.number, arguments.of)
        write_bytes(*open_uri(arguments.html), review.page(drawn).encode())
        print(f"{len(drawn)} samples -> {arguments.html}; then: divray review {arguments.run} --answers answers.json")
        return
    with locked(run):
        if arguments.answers:
            given = review.take_answers(run, arguments.answers, arguments.reader)
        else:
            drawn = review.draw(config, run, arguments.number, arguments.of)
            given = review.review(run, drawn, arguments.reader, console.ask)
        figures = review.review_figures(run)
        if record := run.record("select"):
            write_card(config, run, record["counts"])
        if run.exists(REPORT):
            report(config, run, config.rounds - 1)
    print(f"{given} answers kept. {review.as_sentence(figures) if figures else 'No selected sample has been read yet.'}")
