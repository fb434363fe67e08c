"""Small runs of the quick-start task that have got as far as their first prompts, and who kills their engines."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from divray.config import Config, load_config
from divray.datasets.stage import run as prepare
from divray.pipeline import held
from divray.prompts import run as prompt
from divray.quickstart import folder
from divray.run_folder import RunFolder


def quickstart_with(*overrides: str) -> Config:
    return load_config(folder() / "quickstart.yaml", overrides)


def begin(config: Config, uri: str) -> RunFolder:
    with held(config, uri) as run:
        return run


def begun(config: Config, uri: str) -> RunFolder:
    run = RunFolder(uri)
    prepare(config, run)
    prompt(config, run, 0)
    return run


def ready_engines(run: RunFolder) -> list[str]:
    """Those of the pass that have started so far, the last one last."""
    record = run.read_json(run.files("round-00/completions.engines")[-1])
    engines = {name: engine["created_at"] for name, engine in record["engines"].items() if engine["ready_at"]}
    return sorted(engines, key=engines.__getitem__)


def engine_actor(run: RunFolder) -> psutil.Process:
    """The process of the engine actor that became ready last."""
    return psutil.Process(int(ready_engines(run)[-1].rpartition(":")[2]))


def engine_process(run: RunFolder) -> psutil.Process:
    """vLLM's own process under that actor."""
    (core,) = [child for child in engine_actor(run).children(recursive=True) if "EngineCore" in " ".join(child.cmdline())]
    return core


class Strike:
    """Kills the ``victim`` of a pass once, as soon as something is answered."""

    def __init__(self, run: RunFolder, victim: Callable[[RunFolder], psutil.Process]) -> None:
        self.run, self.victim, self.struck = run, victim, False

    def __call__(self, done: int, total: int, note: str) -> None:
        if not self.struck and 8 <= done < total and ready_engines(self.run):
            self.struck = True
            self.victim(self.run).kill()
