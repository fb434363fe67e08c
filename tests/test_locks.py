"""One run folder, one process: the second is refused by name, and a lock that outlived its process is taken over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
import pytest
from begun_runs import begin

from divray import locks, pipeline
from divray.cli import main
from divray.config import Config, read_config
from divray.errors import InputError
from divray.locks import locked
from divray.quickstart import folder
from divray.run_folder import RunFolder

HOLD = """
import sys, time
from divray.locks import locked
from divray.run_folder import RunFolder
with locked(RunFolder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
OTHER = {"host": "elsewhere", "process": 1, "since": "2030-01-01T00:00:00+00:00"}


def holder(uri: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, uri], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def store(path: Path) -> RunFolder:
    """A folder in a file system of which only ``pyarrow.fs`` is known."""
    run = RunFolder(str(path))
    run.fs, run.root = pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), run.root.lstrip("/")
    run.fs.create_dir(run.root, recursive=True)
    return run


def test_a_second_process_is_refused_with_the_first_ones_name(quickstart: Config, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    process = holder(uri)
    try:
        assert main(["run", str(folder() / "quickstart.yaml"), "--out", uri]) == 2
        assert main(["prepare", uri, "--config", str(folder() / "quickstart.yaml")]) == 2
        for line in capsys.readouterr().err.splitlines():
            assert f"another run is at work here: process {process.pid} on {socket.gethostname()} since 20" in line
        assert not RunFolder(uri).exists("config.yaml")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    begin(quickstart, uri)  # taken over
    assert not Path(uri, ".lock.json").exists()


def test_two_readers_do_not_write_at_once(quickstart: Config, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    begin(quickstart, uri)
    RunFolder(uri).write_json("answers.json", [])
    process = holder(uri)
    try:
        for how in ([], ["--of", "scored"], ["--answers", f"{uri}/answers.json"]):
            assert main(["review", uri, *how]) == 2
        for line in capsys.readouterr().err.splitlines():
            assert f"at work here: process {process.pid} on" in line
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(["review", uri, "--answers", f"{uri}/answers.json"]) == 0


def test_reading_needs_no_lock(quickstart: Config, uri: str) -> None:
    begin(quickstart, uri)
    with locked(RunFolder(uri)):
        assert read_config(RunFolder(uri)) == quickstart
        with pytest.raises(InputError, match="another run"), pipeline.held(quickstart, uri):
            pass
    begin(quickstart, uri)


def test_a_lock_goes_with_a_block_that_fails(uri: str) -> None:
    for run in (RunFolder(uri), store(Path(uri))):
        for _ in range(2):
            with pytest.raises(KeyError), locked(run):
                raise KeyError
    assert [name for name in RunFolder(uri).files("") if name != ".lock"] == []


def test_claims_in_a_store_exclude_each_other(tmp_path: Path) -> None:
    run = store(tmp_path / "run")
    with locked(run), pytest.raises(InputError, match=f"process {os.getpid()} on {socket.gethostname()}"), locked(store(tmp_path / "run")):
        pass
    assert run.files("") == []
    inside, most, refused = 0, 0, 0
    turn = threading.Barrier(6)

    def work() -> None:
        nonlocal inside, most, refused
        turn.wait()
        try:
            with locked(store(tmp_path / "run")):
                inside += 1
                most = max(most, inside)
                time.sleep(0.05)
                inside -= 1
        except InputError:
            refused += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 1 and refused >= 5


def test_a_claim_that_outlived_its_process_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store(tmp_path / "run")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run.write_json(".lock.old", {**OTHER, "host": socket.gethostname(), "process": gone.pid})
    with locked(run):
        assert not run.exists(".lock.old")
    run.write_text(".lock.other", "")  # being written
    with pytest.raises(InputError, match="a process that has not named itself yet"), locked(run):
        pass
    run.write_json(".lock.other", OTHER)
    monkeypatch.setattr(locks, "LEASE", -1.0)
    with locked(run):
        assert not run.exists(".lock.other")


def test_a_claim_of_another_host_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, looks = store(tmp_path / "run"), 0

    def look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        time.sleep(0.01)
        if looks == 5:
            run.write_json(".lock.other", OTHER)  # a beat

    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr("divray.locks.time", SimpleNamespace(sleep=look))
    run.write_json(".lock.other", OTHER)
    with pytest.raises(InputError, match="process 1 on elsewhere since 2030"), locked(run):
        pass
    assert looks == 5 and capsys.readouterr().err.count("to see whether the run of elsewhere still lives") == 1
    monkeypatch.setattr(locks, "LEASE", 1.0)
    run.write_json(".lock.other", OTHER)
    with locked(run):
        assert looks > 6 and not run.exists(".lock.other")


def test_a_claim_is_written_anew_and_a_process_that_lost_it_ends(tmp_path: Path) -> None:
    """It is not ours to end in good order."""
    script = HOLD.replace("with locked", "from pathlib import Path; import divray.locks, test_locks; divray.locks.BEAT = 0.01\nwith locked")
    script = script.replace("RunFolder(sys.argv[1])", "test_locks.store(Path(sys.argv[1]))")
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    (claim,) = (tmp_path / "run").iterdir()
    first = claim.stat().st_mtime_ns
    while claim.stat().st_mtime_ns == first:
        time.sleep(0.01)
    while process.poll() is None:  # a beat may be writing it just now
        claim.unlink(missing_ok=True)
        time.sleep(0.05)
    assert process.returncode == 2 and "another run took this folder over" in process.communicate()[1]


def test_a_folder_of_something_else_gets_no_lock(quickstart: Config, uri: str) -> None:
    RunFolder(uri).write_text("notes.txt", "mine")
    with pytest.raises(InputError, match="holds no run"), pipeline.held(quickstart, uri):
        pass
    assert RunFolder(uri).files("") == ["notes.txt"]


def test_a_claim_that_goes_while_it_is_read_names_nobody() -> None:
    class Store(RunFolder):
        def read_json(self, name: str) -> Any:
            raise OSError("AWS Error INTERNAL_FAILURE during GetObject operation")

    assert locks._holder(Store("nowhere"), ".lock.x") == {}
