"""The entry scripts under ``ray job submit`` from a clean clone, against a head that was started elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import Submit
from test_endpoint import Handler, Server

from divray.config import Config, dump_config, load_config
from divray.datasets.stage import load_task
from divray.errors import InputError
from divray.pipeline import open_run
from divray.prompts.record import completion_of
from divray.quickstart import folder
from divray.run_folder import RunFolder

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project's files as they are under version control, and nothing else."""
    files = subprocess.run(["git", "ls-files", "-z", "divray", "jobs", "pyproject.toml"], cwd=ROOT, capture_output=True, check=True)
    for name in files.stdout.decode().split("\0")[:-1]:
        if (source := ROOT / name).is_file():
            target = tmp_path / "clone" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return tmp_path / "clone"


@pytest.mark.slow
def test_the_documented_line_runs_from_a_clone_and_a_failed_job_ends_non_zero(submit: Submit, clone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # The same variables that a driver passes on: Ray takes each from one of the two only.
    variables = {"HF_TOKEN": "t", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    options = ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": variables})]
    with ThreadPoolExecutor(2) as jobs:
        stage = ["jobs/stage.py", "prepare", str(out), "--config", "divray/quickstart/quickstart.yaml"]
        wrong = ["jobs/pipeline.py", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "other")]
        good, bad = jobs.map(lambda arguments: submit(*arguments, options=options, cwd=clone), (stage, wrong))
    assert good.returncode == 0, good.stdout + good.stderr
    assert RunFolder(str(out)).record("prepare")["counts"]["seeds"] == 30  # type: ignore[index]
    assert "/working_dir_files/" in (out / "config.yaml").read_text()  # the data that the job brought with it
    assert bad.returncode == 1
    assert "no such file" in bad.stdout + bad.stderr
    assert not (tmp_path / "other").exists()


class Writer(Server):
    """Gives a test sentence of the task, for each request the same; from the answer ``held`` on it waits until ``go`` is set."""

    held = 24

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass, self.go = WriterHandler, threading.Event()
        self.task = load_task(load_config(folder() / "quickstart.yaml"))


class WriterHandler(Handler):
    server: Writer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen[str(body["seed"])] += 1
        if not self.server.go.is_set() and len(self.server.seen) > self.server.held:
            self.server.go.wait()
            return  # who asked is gone
        name = re.findall(r"^Relation: (\w+)$", body["prompt"], re.MULTILINE)[0]
        (relation,) = (relation for relation in self.server.task.relations if relation.name == name)
        examples = [example for example in self.server.task.test if example.relation == name]
        self.complete({"text": completion_of(relation, examples[body["seed"] % len(examples)], False, False).rstrip("\n")})


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.go.set()
        server.shutdown()


SMALL = [
    "models.llm=endpoint",
    "rounds=1",
    "sampling.candidates_per_relation=8",
    "sampling.naive_candidates_per_relation=2",
    "correctness.fluency=null",
    "correctness.reader=embedded:smollm2",
    "correctness.threshold=0",
    "selection.k=2",
    "extraction.trials=0",
    "evaluation.llm=false",
    "evaluation.draws=1",
]


@pytest.mark.slow
@pytest.mark.skipif("DIVRAY_TEST_LOOP" not in os.environ, reason="two whole runs take minutes: set DIVRAY_TEST_LOOP=1")
def test_the_same_line_goes_on_with_a_run_whose_driver_was_lost(submit: Submit, clone: Path, tmp_path: Path, writer: Writer) -> None:
    def sent(out: Path) -> subprocess.CompletedProcess[str]:
        line = ["jobs/pipeline.py", "divray/quickstart/quickstart.yaml", "--out", str(out), *SMALL]
        return submit(*line, f"engine.endpoint={{url: '{writer.url}', model: m}}", options=["--working-dir", "."], cwd=clone, timeout=500)

    lost, whole = tmp_path / "lost", tmp_path / "whole"
    with ThreadPoolExecutor(1) as jobs:
        first = jobs.submit(sent, lost)
        while len(writer.seen) <= writer.held and not first.done():
            time.sleep(0.1)
        (driver,) = (p for p in psutil.Process().children(recursive=True) if p.cmdline()[1:2] == ["jobs/pipeline.py"])
        driver.kill()
        assert first.result().returncode
    assert not (lost / "stages" / "round-00.sample.json").exists()
    writer.go.set()
    for done in map(sent, (lost, whole)):
        assert done.returncode == 0, done.stdout + done.stderr
    runs = [RunFolder(str(out)) for out in (lost, whole)]
    for name in ("round-00/scores", "dataset"):
        one, other = (run.read_table(name) for run in runs)
        assert one.num_rows and one == other, name
    assert runs[0].read_json("evaluation.json") == runs[1].read_json("evaluation.json")


def test_data_that_a_job_brings_may_lie_elsewhere_when_it_is_submitted_again(tmp_path: Path) -> None:
    def brought(session: str, package: str) -> Config:
        place = f"/tmp/ray/{session}/runtime_resources/working_dir_files/_ray_pkg_{package}/mine"
        return load_config(folder() / "quickstart.yaml", [f"task.data={place}", f"task.relations={place}/relations.yaml"])

    first = brought("session_1", "0a")
    RunFolder(str(tmp_path)).write_text("config.yaml", dump_config(first))
    assert open_run(brought("session_2", "0b"), str(tmp_path)).exists("config.yaml")
    with pytest.raises(InputError, match=r"task\.(data|relations): the run was begun with"):
        open_run(load_config(folder() / "quickstart.yaml", ["task.relations=/other/relations.yaml"]), str(tmp_path))
