"""Requests to an object store that answers slowly: few for each file, and several at the same time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from divray.config import Config
from divray.datasets.stage import load_task
from divray.engines.complete import answered, complete
from divray.layout import Round
from divray.models import local_model
from divray.prompts import request_rows, write_prompts
from divray.run_folder import RunFolder
from divray.sampling import forget_completions, forget_failed

OWN = Round.of(0)


class Store:
    """Moto's S3 behind a delay; counts the requests, and those in flight at the same time."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.lock = app, threading.Lock()
        self.requests = self.now = self.most = 0
        self.uri = ""

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self.lock:
            self.requests, self.now = self.requests + 1, self.now + 1
            self.most = max(self.most, self.now)
        time.sleep(0.03)
        try:
            return self.app(environ, start)
        finally:
            with self.lock:
                self.now -= 1

    @contextmanager
    def asked(self, most: int) -> Iterator[None]:
        """The block sends at most ``most`` requests, and does not wait for each before the next."""
        self.requests = self.most = 0
        yield
        assert 0 < self.requests <= most
        assert self.most > 1


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    server = pytest.importorskip("moto.server")
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request

    slow = Store(server.DomainDispatcherApplication(server.create_backend_app))
    http = make_server("127.0.0.1", 0, slow, threaded=True)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    # With keys in the URI, since Ray may have started before this.
    slow.uri = f"s3://test:test@divray/runs/1?endpoint_override=127.0.0.1:{http.port}&scheme=http&region=us-east-1"
    pafs.FileSystem.from_uri(f"{slow.uri}&allow_bucket_creation=true")[0].create_dir("divray")
    yield slow
    http.shutdown()


def test_sampling_asks_little(store: Store, ray_two_cpus: None, quickstart: Config) -> None:
    run, task = RunFolder(store.uri), load_task(quickstart)
    some, count = list(request_rows(quickstart, task.relations, task.seeds, 0)), 1500
    rows = [{**some[number % len(some)], "candidate_id": f"p-{number:06d}"} for number in range(count)]
    files = 47
    done, failed = {"completion": " A"}, {"completion": "", "error": "RuntimeError: a bad moment"}
    with store.asked(files + 4):
        assert write_prompts(run, OWN.prompts, iter(rows)) == count
    assert len(run.files(OWN.prompts)) == files
    with store.asked(3 * files + 4):
        assert run.read_table(OWN.prompts)["candidate_id"].to_pylist() == [row["candidate_id"] for row in rows]
    with store.asked(12 * files + 20):
        complete(
            quickstart, run, OWN.prompts, OWN.completions, "", answer=lambda row: failed if row["candidate_id"].endswith("7") else done
        )
    with store.asked(5 * files + 10):
        assert len(answered(run, OWN.completions)) == count
    with store.asked(5 * files + 10):
        forget_failed(run, OWN)
    kept = run.read_table(OWN.completions)["error"].to_pylist()
    assert kept == [""] * (count * 9 // 10)
    write_prompts(run, OWN.prompts, iter(rows[:640]), "wave-01")
    with store.asked(5 * 20 + 20):
        forget_completions(run, OWN)
    assert len(run.files(OWN.prompts)) == files


def test_a_model_goes_up_and_down_in_large_pieces(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIVRAY_CACHE", str(tmp_path / "cache"))
    for number in range(2):
        (tmp_path / "model" / "part").mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / "part" / f"{number}.safetensors").write_bytes(bytes([number]) * (12 << 20))
    run = RunFolder(store.uri)
    with store.asked(30):
        run.upload(tmp_path / "model", "model")
    with store.asked(10):
        there = Path(local_model(run.full_uri("model")))
    assert (there / "part" / "1.safetensors").read_bytes() == bytes([1]) * (12 << 20)
