"""The ``divray`` command: each subcommand parses, calls one function, and turns errors into exit codes.

A subcommand's function is found by name, so that only its own libraries load.
"""

import argparse
import pkgutil
import sys
from collections.abc import Sequence

from divray import console
from divray.cluster import divert_native_output
from divray.errors import DivrayError, InputError, own_error
from divray.stages import STAGES

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


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="divray",
        description="Turn a list of relations into diverse and correct training samples, and into a trained relation-extraction model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, function: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(function=f"divray.{function}")
        return command

    def with_config(command: argparse.ArgumentParser) -> None:
        command.add_argument("config", help="YAML file of the run")
        command.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file")

    whole = add("run", "Run the whole loop, or what is left of it.", "commands:run")
    with_config(whole)
    whole.add_argument("--out", required=True, help="run folder: a path, s3://… or gs://…")
    with_config(add("plan", "Check settings, data and models, and print what would run. Loads no model.", "commands:plan"))
    preview = add("preview", "Show some prompts and what the LLM makes of them. Writes nothing.", "commands:preview_samples")
    with_config(preview)
    preview.add_argument("--folder", help="a folder that every machine of the cluster sees, for temporary files")
    preview.add_argument("-n", type=_count, default=2, help="samples a relation and strategy (default 2)")
    for name, what in STAGES.items():
        stage = add(name, what.help, "commands:stage")
        stage.add_argument("run", help="run folder")
        stage.add_argument("overrides", nargs="*", metavar="section.key=value", help="engine.*, cluster.* for this call; for `prepare` any")
        if what.rounds:
            stage.add_argument("--round", type=int, default=None, help="sampling round (default: the first in which the stage is not done)")
        if name == "prepare":
            stage.add_argument("--config", required=True, help="YAML file of the run that this begins")
        if name == "sample":
            stage.add_argument("--retry-failed", action="store_true", help="only ask again for the requests that an engine error lost")
        if name == "evaluate":
            text = "add another tool's answers to the comparison and keep them: JSONL with id (of a test sentence) and relation"
            stage.add_argument("--predictions", metavar="FILE", help=text)
        stage.add_argument("--force", action="store_true", help="do a finished stage again; the stages after it then count as not done")
    export = add("export", "Write the data set as one JSONL or TACRED-style JSON file.", "commands:export_samples")
    export.add_argument("run", help="run folder")
    export.add_argument("target", help="file: .jsonl or .json (TACRED style)")
    export.add_argument("--all", action="store_true", help="every accepted sample, not only the selected ones")
    text = "Show where a sample came from, what stands near it, and why it was kept or dropped."
    explain = add("explain", text, "commands:explain_sample")
    explain.add_argument("run", help="run folder")
    explain.add_argument("sample_id", help="id of a candidate")
    text = "Read some of the samples blind and say which are right; report and card then show the share."
    review = add("review", text, "commands:review_samples")
    review.add_argument("run", help="run folder")
    review.add_argument("--number", type=_count, default=50, metavar="N", help="samples to read (default 50)")
    review.add_argument("--of", choices=("selected", "scored"), default="selected", help="selected samples, or all that were scored")
    review.add_argument("--reader", default="reader", metavar="NAME", help="who reads; each reader's answers are kept apart")
    page = review.add_mutually_exclusive_group()
    page.add_argument("--html", metavar="FILE", help="write an HTML page to review on instead")
    page.add_argument("--answers", metavar="FILE", help="import the answers that such a page saved")
    predict = add("predict", "Label sentences with the run's RE model.", "extraction.predict:command")
    predict.add_argument("run", help="run folder, or a model folder")
    predict.add_argument("source", help="JSONL: text and spans, or sentences with [head] and {tail} marked")
    predict.add_argument("target", help="JSONL file to write")
    text = "leave the relation empty below this probability; see model/README.md"
    predict.add_argument("--threshold", type=float, default=0.0, help=text)
    text = "Drop the near-duplicates of a table of texts; writes OUT/kept.parquet and OUT/clusters.parquet."
    dedup = add("dedup", text, "dedup.files:command")
    dedup.add_argument("source", help="Parquet file, folder or pattern; a path or URI")
    dedup.add_argument("--out", required=True, help="folder to write to")
    dedup.add_argument("--text-column", default="text", help="column of the texts (default: text)")
    dedup.add_argument("--id-column", help="column of distinct strings or integers (default: rows are numbered from 0)")
    dedup.add_argument("--shingles", default="word:3", help="word:N or char:N (default word:3)")
    dedup.add_argument("--threshold", type=float, default=0.7, help="Jaccard similarity from which texts are near (default 0.7)")
    dedup.add_argument("--rule", choices=("component", "independent"), default="component", help="keep one row a cluster (default) or more")
    dedup.add_argument("--method", choices=("auto", "exact", "minhash"), default="auto", help="how pairs are found (default auto)")
    text = "Parquet of a test set, or of what earlier calls kept: drop all rows near one of its texts"
    dedup.add_argument("--against", metavar="REFERENCE", help=text)
    return parser


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or not (number := int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return number


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
    try:
        parsed = parse(arguments)
        if arguments is None:  # as the command, not as a function in somebody's program
            divert_native_output()
        console.configure()
        pkgutil.resolve_name(parsed.function)(parsed)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        console.print_error(DivrayError("interrupted; the same command continues a run from here"))
        return 130
    except Exception as error:
        own = own_error(error)
        if isinstance(own, FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError | PermissionError):
            problem = own.strerror or str(own)
            own = InputError(str(own.filename or "path"), "", problem, "Check the path, and who may read and write there.")
        console.print_error(own, error)
        return own.exit_code if isinstance(own, DivrayError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
