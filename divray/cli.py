"""The ``divray`` command: each subcommand parses, calls one function, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from divray.errors import DivrayError, InputError, own_error

EXAMPLES = """\
examples:
  divray plan examples/semeval2010_task8.yaml task.data=DATA     what would run, without running it
  divray run divray/quickstart/quickstart.yaml --out runs/demo   the whole loop, or the rest of it
  divray run my.yaml --out s3://bucket/runs/1 selection.k=32     settings on the command line win
  divray explain runs/demo SAMPLE_ID                             why one sample was kept or dropped
  divray review runs/demo --number 50                            read samples blind and say which are right
  divray predict runs/demo sentences.jsonl answers.jsonl         the trained RE model at work
  divray dedup texts.parquet --out deduped --threshold 0.7       near-duplicates of any table, without the loop

exit codes: 0 done, 1 failed, 2 bad input, 3 too few resources, 4 the LLM engine gave up
"""

STAGE_COMMANDS = ("prepare", "prompt", "sample", "score", "mine", "align", "select", "tune", "train", "evaluate", "report")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from divray import pipeline

    parser = argparse.ArgumentParser(
        prog="divray",
        description="Turn a list of relations into diverse and correct training samples, and into a trained relation-extraction model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quiet", action="store_true", help="only errors and the summary")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(function=function)
        return command

    def with_config(command: argparse.ArgumentParser) -> None:
        command.add_argument("config", help="YAML file of the run")
        command.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that stand over the file")

    whole = add("run", "Run the whole loop, or what is left of it.", _run)
    with_config(whole)
    whole.add_argument("--out", required=True, help="run folder: a path, s3://… or gs://…")
    with_config(add("plan", "Check settings, data and models, and print what would run. Loads no model.", _plan))
    preview = add("preview", "Show some prompts and what the LLM makes of them. Writes nothing.", _preview)
    with_config(preview)
    preview.add_argument("-n", type=int, default=2, help="samples a relation and strategy (default 2)")
    for name in STAGE_COMMANDS:
        stage = add(name, pipeline.STAGES[name].help, _stage)
        stage.add_argument("run", help="run folder")
        stage.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of engine.* and cluster.* for this call")
        if pipeline.STAGES[name].rounds:
            stage.add_argument("--round", type=int, default=None, help="sampling round (default: the first in which the stage is not done)")
        if name == "prepare":
            stage.add_argument("--config", required=True, help="YAML file of the run, which this begins")
        if name == "sample":
            stage.add_argument("--retry-failed", action="store_true", help="only ask again for the requests that the engine itself failed")
        stage.add_argument("--force", action="store_true", help="do it again although it is done; what came after it counts as not done")
    export = add("export", "Write the data set as one JSONL, Parquet or TACRED-style JSON file.", _export)
    export.add_argument("run", help="run folder")
    export.add_argument("target", help="file: .jsonl, .parquet or .json (TACRED style)")
    export.add_argument("--all", action="store_true", help="every accepted sample, not only the selected ones")
    explain = add("explain", "Show where a sample came from, what stands near it, and why it was kept or dropped.", _explain)
    explain.add_argument("run", help="run folder")
    explain.add_argument("sample_id", help="id of a candidate or of a seed example")
    explain.add_argument("--neighbours", type=int, default=5, metavar="N", help="nearest sentences shown (default 5)")
    explain.add_argument("--json", action="store_true", help="print everything as JSON")
    review = add("review", "Read some of the samples blind and say which are right; report and card then show the share.", _review)
    review.add_argument("run", help="run folder")
    review.add_argument("--number", type=int, default=50, metavar="N", help="samples to read (default 50)")
    review.add_argument("--of", choices=("selected", "scored"), default="selected", help="selected samples, or all that were scored")
    review.add_argument("--reader", default="reader", metavar="NAME", help="who reads; each reader's answers are kept apart")
    review.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a page to read on instead (default RUN/review.html)",
    )
    review.add_argument("--answers", metavar="FILE", help="take in the answers that such a page saved")
    predict = add("predict", "Label sentences with the run's RE model.", _predict)
    predict.add_argument("run", help="run folder, or a model folder")
    predict.add_argument("source", help="JSONL or Parquet: text and spans, or sentences with [head] and {tail} marked")
    predict.add_argument("target", help="file to write, .jsonl or .parquet")
    predict.add_argument(
        "--threshold", type=float, default=0.0, help="leave the relation empty below this probability; see model/README.md"
    )
    dedup = add("dedup", "Drop the near-duplicates of a table of texts; writes OUT/kept.parquet and OUT/clusters.parquet.", _dedup)
    dedup.add_argument("source", help="Parquet file, folder or pattern; a path or URI")
    dedup.add_argument("--out", required=True, help="folder to write to")
    dedup.add_argument("--text-column", default="text", help="column of the texts (default: text)")
    dedup.add_argument("--id-column", help="column of distinct strings or integers (default: rows are numbered from 0)")
    dedup.add_argument("--shingles", default="word:3", help="word:N or char:N (default word:3)")
    dedup.add_argument("--threshold", type=float, default=0.7, help="Jaccard similarity from which texts are near (default 0.7)")
    dedup.add_argument("--rule", choices=("component", "independent"), default="component", help="one row a cluster (default), or more")
    dedup.add_argument("--method", choices=("auto", "exact", "minhash"), default="auto", help="how pairs are found (default auto)")
    dedup.add_argument("--strip-punctuation", action="store_true", help="compare words without the punctuation around them")
    dedup.add_argument("--keep-case", action="store_true", help="tell upper from lower case")
    dedup.add_argument("--near-test", metavar="TEST", help="Parquet of a test set: drop all rows near one of its texts")
    dedup.add_argument("--earlier", metavar="KEPT", help="Parquet of rows that earlier calls kept: drop all rows near one of them, too")
    dedup.add_argument(
        "--index", metavar="FOLDER", help="drop all rows near one in this index too, and add those that stay (made if need be)"
    )
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ``section.key=value`` may stand before and after options."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(parsed, "overrides") or any(part.startswith("-") or "=" not in part for part in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from divray import console

    parsed = parse(arguments)
    if arguments is None:  # as the command, not as a function in somebody's program
        from divray.cluster import divert_native_output

        divert_native_output()
    console.configure(parsed.quiet)
    try:
        parsed.function(parsed)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        console.print_error(DivrayError("interrupted; the same command goes on from here"))
        return 130
    except Exception as error:
        own = own_error(error)
        console.print_error(own)
        return own.exit_code if isinstance(own, DivrayError) else 2 if isinstance(own, OSError) else 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    from divray import console
    from divray.config import load_config
    from divray.pipeline import run_all

    summary = run_all(load_config(arguments.config, arguments.overrides), arguments.out)
    console.print_summary(summary)
    console.log(f"report: {arguments.out}/report.html")


def _plan(arguments: argparse.Namespace) -> None:
    from divray.cluster import check_machine
    from divray.config import load_config
    from divray.pipeline import describe, schedule

    config = load_config(arguments.config, arguments.overrides)
    text = describe(config)
    check_machine(config, dict.fromkeys(stage.name for stage, _ in schedule(config)))
    print(text)


def _preview(arguments: argparse.Namespace) -> None:
    from divray.config import load_config
    from divray.preview import preview

    for block in preview(load_config(arguments.config, arguments.overrides), arguments.n):
        print(block)


def _stage(arguments: argparse.Namespace) -> None:
    from divray import pipeline
    from divray.config import load_config, override_config
    from divray.locks import locked
    from divray.runs import RunFolder

    stage = pipeline.STAGES[arguments.command]
    if stage.name == "prepare":
        config = load_config(arguments.config, arguments.overrides)
        hold: AbstractContextManager[Any] = pipeline.held(config, arguments.run)
    else:
        config = override_config(pipeline.read_config(RunFolder(arguments.run)), arguments.overrides)
        hold = locked(RunFolder(arguments.run))
    with hold:
        run = RunFolder(arguments.run)
        if getattr(arguments, "retry_failed", False):
            pipeline.retry(config, run, arguments.round)
            return
        for round_ in pipeline.due_rounds(config, run, stage, getattr(arguments, "round", None), arguments.force):
            pipeline.undo(config, run, stage, round_)
            pipeline.run_stage(config, run, stage, round_)


def _export(arguments: argparse.Namespace) -> None:
    from divray.export import export

    print(f"{export(arguments.run, arguments.target, arguments.all)} samples -> {arguments.target}")


def _explain(arguments: argparse.Namespace) -> None:
    from divray import console
    from divray.explain import explain

    found = explain(arguments.run, arguments.sample_id, max(arguments.neighbours, 1))
    console.print_explanation(found, arguments.json)


def _review(arguments: argparse.Namespace) -> None:
    from divray import console, pipeline
    from divray.report import review
    from divray.report.summary import run as report
    from divray.runs import RunFolder
    from divray.selection import write_card

    run = RunFolder(arguments.run)
    config = pipeline.read_config(run)
    if arguments.answers:
        given = review.take_answers(config, run, arguments.answers, arguments.reader)
    else:
        drawn = review.draw(config, run, max(arguments.number, 1), arguments.of)
        if arguments.html is not None:
            folder, name = os.path.split(arguments.html) if arguments.html else (arguments.run, "review.html")
            RunFolder(folder or ".").write_text(name, review.page(drawn))
            print(f"{len(drawn)} samples -> {arguments.html or run.path(name)}; then: divray review {arguments.run} --answers answers.json")
            return
        given = review.review(run, drawn, arguments.reader, console.ask_key)
    figures = review.review_figures(run)
    if record := run.record("select"):
        write_card(config, run, record["counts"])
    if run.exists("report.html"):
        report(config, run, config.rounds - 1)
    print(f"{given} answers kept. {review.as_sentence(figures) if figures else 'No selected sample has been read yet.'}")


def _predict(arguments: argparse.Namespace) -> None:
    from divray.extraction.predict import predict
    from divray.runs import RunFolder

    run = RunFolder(arguments.run)
    model = run.full_uri("model") if run.exists("model/config.json") else arguments.run
    if model == arguments.run and not run.exists("config.json"):
        raise InputError(
            arguments.run, "model", "no trained model here", "Give a run folder whose `train` stage is done, or a model folder."
        )
    rows = predict(model, arguments.source, arguments.target, threshold=arguments.threshold)
    print(f"{rows} sentences -> {arguments.target}")


def _dedup(arguments: argparse.Namespace) -> None:
    from divray.dedup import DedupSettings, deduplicate_files

    kind, _, size = arguments.shingles.partition(":")
    if kind not in ("word", "char") or not size.isdecimal():
        raise InputError("command line", "--shingles", f"{arguments.shingles!r} is not word:N or char:N", "Give e.g. word:3.")
    settings = DedupSettings(
        text_column=arguments.text_column,
        id_column=arguments.id_column,
        kind=kind,
        size=int(size),
        lower=not arguments.keep_case,
        strip_punctuation=arguments.strip_punctuation,
        threshold=arguments.threshold,
        rule=arguments.rule,
        method=arguments.method,
    )
    counts = deduplicate_files(
        arguments.source,
        arguments.out,
        settings,
        against=arguments.near_test,
        earlier=arguments.earlier,
        index=arguments.index,
    )
    near = f", {counts['leaked']} near test texts" if arguments.near_test else ""
    near += f", {counts['known']} near earlier rows" if arguments.earlier or arguments.index else ""
    print(f"{counts['rows']} rows: {counts['kept']} stay, {counts['clusters']} clusters{near} -> {arguments.out}")


if __name__ == "__main__":
    sys.exit(main())
