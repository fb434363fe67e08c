"""The whole loop with every real part, small: killed in one stage after the other, on an object store, as a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from begun_runs import begin
from conftest import FASTER, Submit, kill_tree
from made_examples import span_problem

from divray import pipeline
from divray.cli import main
from divray.config import load_config
from divray.extraction.model import RelationExtractor
from divray.quickstart import folder
from divray.run_folder import RunFolder
from divray.schemas import DATASET, PAIRS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("DIVRAY_TEST_LOOP" not in os.environ, reason="takes half an hour on two cores: set DIVRAY_TEST_LOOP=1"),
]

SMALL = [
    *FASTER,
    "sampling.candidates_per_relation=16",
    "sampling.naive_candidates_per_relation=4",
    "preferences.max_pairs_per_relation=2",
    "selection.k=4",
    "extraction.trials=2",
    "evaluation.llm_test_limit=12",
    "engine.batch_size=8",
    "engine.vllm={max_num_seqs: 8}",
]
CANDIDATES = 6 * 16
REQUESTS = 6 * 20
IN_FLIGHT = 16
"""Twice ``max_num_seqs``, in batches."""

CONFIG = str(folder() / "quickstart.yaml")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle")
RESULTS = ("round-00/scores", "round-00/pairs", "round-01/scores", "dataset")


def completed(out: Path, round_: int = 0) -> dict[str, float]:
    """Candidate -> start of its completion, of the whole files there are."""
    found = {}
    for file in (out / f"round-{round_:02d}" / "completions").glob("*.parquet"):
        try:
            table = pq.read_table(file, columns=["candidate_id", "started_at"])
        except Exception:  # being written just now
            continue
        found.update(zip(table["candidate_id"].to_pylist(), table["started_at"].to_pylist(), strict=True))
    return found


@dataclass(frozen=True)
class Kill:
    """Ends the driver ``after`` seconds after ``when`` first holds of the run folder; ``stage`` is what then goes on."""

    stage: str
    when: Callable[[Path], bool]
    after: float = 0.0


def recorded(stage: str) -> Callable[[Path], bool]:
    return lambda out: (out / "stages" / f"{stage}.json").is_file()


KILLS = (
    Kill("round-00.sample", lambda out: len(completed(out)) >= 16),
    Kill("round-00.score", recorded("round-00.sample"), 8),
    Kill("round-00.mine", recorded("round-00.score")),
    Kill("round-01.align", recorded("round-00.mine"), 20),
    Kill("round-01.sample", lambda out: len(completed(out, 1)) >= 16),
    Kill("select", recorded("round-01.score")),
    Kill("tune", lambda out: any((out / "tune").glob("*")), 8),
    Kill("train", recorded("tune"), 3),
    Kill("evaluate", lambda out: any((out / "evaluation" / "parts").glob("*/*.parquet"))),
)


def command(out: str) -> list[str]:
    return [sys.executable, "-m", "divray.cli", "run", CONFIG, "--out", out, *SMALL]


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_worker_niceness": "0"}


def run_and_kill(out: Path, kill: Kill) -> None:
    with (out.parent / "killed.log").open("ab") as log:
        process = subprocess.Popen(command(str(out)), env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 900
        while not kill.when(out) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(kill.after)
        assert process.poll() is None, f"the run ended before it could be killed in {kill.stage}"
        kill_tree(process)
    assert not recorded(kill.stage)(out), f"{kill.stage} had ended before the kill"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float], str]:
    """A run that was killed in every stage: its folder, what was sampled at the first kill, the last call's terminal."""
    import ray

    ray.shutdown()
    out = tmp_path_factory.mktemp("loop") / "run"
    before: dict[str, float] = {}
    for kill in KILLS:
        run_and_kill(out, kill)
        before = before or completed(out)
    assert len(before) >= 16
    again = subprocess.run(command(str(out)), env=environment(), capture_output=True, text=True, timeout=1200, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    return out, before, again.stdout + again.stderr


def test_nothing_is_sampled_twice_and_nothing_is_missing(finished: tuple[Path, dict[str, float], str]) -> None:
    out, before, _ = finished
    run = RunFolder(str(out))
    prompts = run.read_table("round-00/prompts")["candidate_id"].to_pylist()
    completions = run.read_table("round-00/completions")
    assert sorted(completions["candidate_id"].to_pylist()) == sorted(prompts)
    assert len(prompts) == REQUESTS
    assert sorted(run.read_table("round-01/completions")["candidate_id"].to_pylist()) == sorted(
        run.read_table("round-01/prompts")["candidate_id"].to_pylist()
    )
    after = dict(zip(completions["candidate_id"].to_pylist(), completions["started_at"].to_pylist(), strict=True))
    kept = [name for name, started in before.items() if after[name] == started]
    assert kept
    assert len(before) - len(kept) <= 2 * IN_FLIGHT  # rows whose file was written, and whose commit was not


def assert_documented(out: str) -> None:
    run = RunFolder(out)
    dataset = run.read_table("dataset")
    assert dataset.schema.names == DATASET.names
    assert dataset.num_rows > 0
    for row in dataset.to_pylist():
        head, tail = (row["head_start"], row["head_end"]), (row["tail_start"], row["tail_end"])
        assert span_problem(row["text"], head, tail) == ""
        assert row["text"].rstrip("\"')")[-1] in ".!?"
    selected = run.read_table("comparison/selected")
    assert max(selected["rank"].to_pylist()) <= 4 and selected.num_rows == sum(rank <= 4 for rank in dataset["rank"].to_pylist())
    pairs = run.read_table("round-00/pairs")
    assert pairs.schema.names == PAIRS.names
    assert all(row["chosen"] != row["rejected"] for row in pairs.to_pylist())
    assert run.exists("dataset/README.md")
    assert not [file for name in ("model", "round-01/policy", "tune") for file in run.files(name) if file.endswith(PICKLES)]
    assert [file for file in run.files("model") if file.endswith(".safetensors")]
    assert [file for file in run.files("round-01/policy") if file.endswith(".safetensors")]
    assert run.files("logs")
    assert_summary(run)


def assert_summary(run: RunFolder) -> None:
    summary = run.read_json("summary.json")
    assert summary["candidates"] == 2 * CANDIDATES
    scores = [row for r in (0, 1) for row in run.read_table(f"round-{r:02d}/scores", ["strategy", "unique"]).to_pylist()]
    own = [row for row in scores if row["strategy"] != "naive"]
    assert summary["valid"] == len(own)
    assert summary["unique"] == sum(row["unique"] for row in own)
    assert summary["selected"] == run.read_table("comparison/selected").num_rows
    assert summary["valid"] + sum(summary["rejections"].values()) == summary["candidates"]
    assert summary["generated_tokens"] > 0
    assert summary["engine_seconds"] > 0
    assert set(summary["evaluation"]) >= {"seeds", "naive", "round-00", "round-01", "generated", "seeds+generated", "llm"}
    for name in ("vendi_ngram", "vendi_embedding", "distinct_2", "seed_names"):
        assert name in summary["diversity"]["round-00"]
    assert set(summary["seconds"]) >= {"round-00.sample", "round-01.align", "evaluate"}
    assert summary["versions"]["ray"]
    page = run.read_text("report.html")
    assert "<svg" in page
    assert "<script" not in page


def test_the_run_folder_is_as_documented(finished: tuple[Path, dict[str, float], str]) -> None:
    out, _, terminal = finished
    assert_documented(str(out))
    assert RelationExtractor.load(f"{out}/model").config.labels
    assert "seeds+generated" in terminal
    assert "resuming" in terminal
    assert "(pid=" not in terminal
    assert "INFO " not in terminal


def test_the_same_completions_give_the_same_data(finished: tuple[Path, dict[str, float], str], tmp_path: Path) -> None:
    """Played back in another order and other files, on an undisturbed run, without the policy."""
    import ray

    out, _, _ = finished
    config, before = load_config(CONFIG, SMALL), RunFolder(str(out))
    run = begin(config, str(tmp_path / "played"))
    try:
        for stage, round_ in pipeline.schedule(config):
            if stage.name == "align":
                run.finish(pipeline.record_name(stage, round_), 0, {})
                continue
            if stage.name == "sample":
                name = f"round-{round_:02d}/completions"
                run.write_table(name, before.read_table(name).sort_by([("completion", "descending")]), rows_per_file=7)
            pipeline.run_stage(config, run, stage, round_)
            if stage.name == "select":
                break
    finally:
        ray.shutdown()
    for name in RESULTS:
        assert run.read_table(name).equals(before.read_table(name)), name


def test_a_finished_run_is_left_as_it_is_and_serves(finished: tuple[Path, dict[str, float], str], tmp_path: Path) -> None:
    out, _, _ = finished
    source, answers, exported = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "data.json"
    source.write_text((folder() / "test.jsonl").read_text().splitlines()[0] + "\n")
    assert main(["predict", str(out), str(source), str(answers)]) == 0
    assert json.loads(answers.read_text())["relation"]
    assert main(["export", str(out), str(exported)]) == 0
    first = json.loads(exported.read_text())[0]
    assert first["token"][first["subj_start"] : first["subj_end"] + 1]
    assert main(["run", CONFIG, "--out", str(out)]) == 2  # other settings


def test_the_whole_loop_on_an_object_store(bucket: str) -> None:
    done = subprocess.run(command(bucket), env=environment(), capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_documented(bucket)


def test_the_whole_loop_as_a_job(submit: Submit, tmp_path: Path) -> None:
    job = str(Path(__file__).parent.parent / "jobs" / "pipeline.py")
    done = submit(job, CONFIG, "--out", str(tmp_path / "run"), *SMALL, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert_documented(str(tmp_path / "run"))
