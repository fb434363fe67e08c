"""The commands that show samples: preview, export, explain and review."""

from __future__ import annotations

import os
from argparse import Namespace

from divray import console, review
from divray.config import load_config, read_config
from divray.explain import explain
from divray.export import export
from divray.locks import locked
from divray.preview import preview
from divray.report.summary import run as report
from divray.report.terminal import explanation
from divray.run_folder import RunFolder
from divray.selection import write_card


def preview_samples(arguments: Namespace) -> None:
    for block in preview(load_config(arguments.config, arguments.overrides), arguments.n):
        print(block)


def export_samples(arguments: Namespace) -> None:
    print(f"{export(arguments.run, arguments.target, arguments.all)} samples -> {arguments.target}")


def explain_sample(arguments: Namespace) -> None:
    found = explain(arguments.run, arguments.sample_id, max(arguments.neighbours, 1))
    if arguments.json:
        console.show_json(found)
    else:
        console.show(explanation(found))


def review_samples(arguments: Namespace) -> None:
    """Let a person read samples; report and card then show what was said."""
    run = RunFolder(arguments.run)
    config = read_config(run)
    if arguments.html is not None and not arguments.answers:
        drawn = review.draw(config, run, max(arguments.number, 1), arguments.of)
        folder, name = os.path.split(arguments.html) if arguments.html else (arguments.run, "review.html")
        RunFolder(folder or ".").write_text(name, review.page(drawn))
        print(f"{len(drawn)} samples -> {arguments.html or run.path(name)}; then: divray review {arguments.run} --answers answers.json")
        return
    with locked(run):
        if arguments.answers:
            given = review.take_answers(config, run, arguments.answers, arguments.reader)
        else:
            drawn = review.draw(config, run, max(arguments.number, 1), arguments.of)
            given = review.review(run, drawn, arguments.reader, console.ask_key)
        figures = review.review_figures(run)
        if record := run.record("select"):
            write_card(config, run, record["counts"])
        if run.exists("report.html"):
            report(config, run, config.rounds - 1)
    print(f"{given} answers kept. {review.as_sentence(figures) if figures else 'No selected sample has been read yet.'}")
