"""Small runs of the quick-start task that have got as far as their first prompts, and who kills their engines and machines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from divray.config import Config, load_config
from divray.datasets.stage import run as prepare
from divray.pipeline import held
from divray.prompts import run as prompt
from divray.quickstart import folder
from divray.run_folder import RunFolder
from divray.stages import Progress


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


def titles() -> dict[tuple[psutil.Process, str], psutil.Process]:
    """Ray's processes that descend from this one, with the titles of their work -> the raylet of each."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if (title := "".join(process.cmdline()[:1])).startswith("ray::") and (raylet := process.parent()) and raylet.name() == "raylet":
                found[process, title] = raylet
    return found


@contextmanager
def losing_a_machine(work: str, least: int = 0) -> Iterator[Progress]:
    """While the block runs, kill the raylet and the workers of a machine on which ``work`` begins, once ``least`` is done.

    Yields what is to be told how much is done.
    """
    before, over, done = titles(), threading.Event(), [(0, 0)]
    killed: list[psutil.Process] = []

    def strike() -> None:
        while not killed and not over.wait(0.05):
            now = titles() if done[-1][0] >= least else {}
            if raylet := next((now[new] for new in now.keys() - before.keys() if work in new[1]), None):
                killed.extend((raylet, *raylet.children(recursive=True)))
                for one in killed:
                    with suppress(psutil.Error):
                        one.kill()

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield lambda number, total, note: done.append((number, total))
    finally:
        over.set()
        thread.join()
    assert killed and done[-1][0] == done[-1][1]  # the progress goes on, too
