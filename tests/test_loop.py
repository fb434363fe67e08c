"""The whole loop with every real part, small: killed in the middle of sampling, run again, and looked at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from divray.cli import main
from divray.extraction.model import RelationExtractor
from divray.quickstart import folder
from divray.relations import span_problem
from divray.runs import RunFolder
from divray.schemas import DATASET, PAIRS

pytestmark = pytest.mark.skipif("DIVRAY_TEST_LOOP" not in os.environ, reason="takes ten minutes on two cores: set DIVRAY_TEST_LOOP=1")

SMALL = [
    "sampling.candidates_per_relation=16",
    "sampling.naive_candidates_per_relation=4",
    "preferences.max_pairs_per_relation=2",
    "selection.k=4",
    "extraction.epochs=2",
    "extraction.search.trials=1",
    "extraction.search.epochs=[1, 2]",
    "evaluation.seeds=[0]",
    "evaluation.llm_test_limit=12",
    "engine.batch_size=8",
    "engine.concurrent_batches=2",
]
CANDIDATES = 6 * 16
REQUESTS = 6 * 20


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "divray.cli", "run", str(folder() / "quickstart.yaml"), "--out", str(out), *SMALL]


def completed(out: Path) -> dict[str, float]:
    found = {}
    for file in (out / "round-00" / "completions").glob("*.parquet"):
        try:
            table = pq.read_table(file, columns=["candidate_id", "started_at"])
        except Exception:  # being written just now
            continue
        found.update(zip(table["candidate_id"].to_pylist(), table["started_at"].to_pylist(), strict=True))
    return found


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End the driver as ``kill -9`` does, and the Ray that it had started, which would end by itself more slowly."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    for child in children:
        if child.is_running():
            child.kill()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float], str]:
    """A run that was killed while it sampled and run again: its folder, what was there at the kill, the terminal."""
    import ray

    ray.shutdown()
    out = tmp_path_factory.mktemp("loop") / "run"
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    process = subprocess.Popen(command(out), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 420
    while len(before := completed(out)) < 16 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() is None, "the run ended before it could be killed"
    kill_tree(process)
    before = completed(out)
    assert len(before) >= 16
    again = subprocess.run(command(out), env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    return out, before, again.stdout + again.stderr


@pytest.mark.slow
def test_nothing_is_sampled_twice_and_nothing_is_missing(finished: tuple[Path, dict[str, float], str]) -> None:
    out, before, _ = finished
    run = RunFolder(str(out))
    prompts = run.read_table("round-00/prompts")["candidate_id"].to_pylist()
    completions = run.read_table("round-00/completions")
    assert sorted(completions["candidate_id"].to_pylist()) == sorted(prompts)
    assert len(prompts) == REQUESTS
    after = dict(zip(completions["candidate_id"].to_pylist(), completions["started_at"].to_pylist(), strict=True))
    kept = [name for name, started in before.items() if after[name] == started]
    assert len(before) - len(kept) <= 32  # rows whose file was written, and whose commit was not
    assert kept


@pytest.mark.slow
def test_the_run_folder_is_as_documented(finished: tuple[Path, dict[str, float], str]) -> None:
    out, _, _ = finished
    run = RunFolder(str(out))
    dataset = run.read_table("dataset")
    assert dataset.schema.names == DATASET.names
    assert dataset.num_rows > 0
    for row in dataset.to_pylist():
        head, tail = (row["head_start"], row["head_end"]), (row["tail_start"], row["tail_end"])
        assert span_problem(row["text"], head, tail) == ""
        assert row["text"].rstrip("\"')")[-1] in ".!?"
    assert max(dataset["relation"].to_pylist().count(name) for name in set(dataset["relation"].to_pylist())) <= 4
    pairs = run.read_table("round-00/pairs")
    assert pairs.schema.names == PAIRS.names
    assert all(row["chosen"] != row["rejected"] for row in pairs.to_pylist())
    assert run.exists("dataset/README.md")
    pickled = (".bin", ".pt", ".pth", ".pkl", ".pickle")
    assert not [file for name in ("model", "round-01/policy", "tune") for file in run.files(name) if file.endswith(pickled)]
    assert [file for file in run.files("model") if file.endswith(".safetensors")]
    assert [file for file in run.files("round-01/policy") if file.endswith(".safetensors")]
    assert RelationExtractor.load(f"{out}/model").config.labels
    assert run.files("logs")


@pytest.mark.slow
def test_the_summary_says_what_the_tables_hold(finished: tuple[Path, dict[str, float], str]) -> None:
    out, _, terminal = finished
    run = RunFolder(str(out))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["candidates"] == 2 * CANDIDATES
    scores = [row for r in (0, 1) for row in run.read_table(f"round-{r:02d}/scores", ["strategy", "unique"]).to_pylist()]
    own = [row for row in scores if row["strategy"] != "naive"]
    assert summary["valid"] == len(own)
    assert summary["unique"] == sum(row["unique"] for row in own)
    assert summary["selected"] == run.read_table("dataset").num_rows
    assert summary["valid"] + sum(summary["rejections"].values()) == summary["candidates"]
    assert summary["generated_tokens"] > 0
    assert summary["engine_seconds"] > 0
    assert set(summary["evaluation"]) >= {"seeds", "naive", "round-00", "round-01", "generated", "seeds+generated", "llm"}
    for name in ("vendi_ngram", "vendi_embedding", "distinct_2", "mean_cosine"):
        assert name in summary["diversity"]["round-00"]
    assert {"round-00.sample", "round-01.align", "evaluate"} <= set(summary["seconds"])
    assert summary["versions"]["ray"]
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert "seeds+generated" in terminal
    assert "resuming" in terminal
    assert "(pid=" not in terminal
    assert "INFO " not in terminal


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is_and_serves(finished: tuple[Path, dict[str, float], str], tmp_path: Path) -> None:
    out, _, _ = finished
    source, answers, exported = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "data.json"
    source.write_text((folder() / "test.jsonl").read_text().splitlines()[0] + "\n")
    assert main(["predict", str(out), str(source), str(answers)]) == 0
    assert json.loads(answers.read_text())["relation"]
    assert main(["export", str(out), str(exported)]) == 0
    first = json.loads(exported.read_text())[0]
    assert first["token"][first["subj_start"] : first["subj_end"] + 1]
    assert main(["run", str(folder() / "quickstart.yaml"), "--out", str(out)]) == 2  # other settings
