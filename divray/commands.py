"""The commands that run the loop or a part of it."""

from __future__ import annotations

from argparse import Namespace
from contextlib import AbstractContextManager
from typing import Any

from divray import console
from divray.cluster import check_machine
from divray.config import load_config, override_config, read_config
from divray.extraction import external
from divray.locks import locked
from divray.pipeline import describe, due_rounds, held, retry, run_all, run_stage, undo
from divray.report.findings import tables
from divray.run_folder import RunFolder
from divray.stages import STAGES


def run(arguments: Namespace) -> None:
    summary = run_all(load_config(arguments.config, arguments.overrides), arguments.out)
    console.show(tables(summary))
    console.log(f"report: {arguments.out}/report.html")


def plan(arguments: Namespace) -> None:
    config = load_config(arguments.config, arguments.overrides)
    text = describe(config)
    check_machine(config)
    print(text)


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
        for file in getattr(arguments, "predictions", ()):
            missing = external.take_in(run, file)
            console.log(f"{file}: {missing} test sentences have no answer" if missing else f"{file}: every test sentence has an answer")
        for round_ in due_rounds(config, run, stage, getattr(arguments, "round", None), arguments.force):
            undo(config, run, stage, round_)
            run_stage(config, run, stage, round_)
