"""Small runs of the quick-start task that have got as far as their first prompts."""

from __future__ import annotations

from divray.config import Config
from divray.datasets.stage import run as prepare
from divray.pipeline import held
from divray.prompts import run as prompt
from divray.run_folder import RunFolder


def begin(config: Config, uri: str) -> RunFolder:
    with held(config, uri) as run:
        return run


def begun(config: Config, uri: str) -> RunFolder:
    run = RunFolder(uri)
    prepare(config, run)
    prompt(config, run, 0)
    return run
