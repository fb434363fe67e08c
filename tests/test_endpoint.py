"""The OpenAI-compatible endpoint: against a small server that is busy and broken at first, and against ``vllm serve``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from pydantic import SecretStr

from divray.config import Config, load_config
from divray.datasets.stage import load_task
from divray.engines.complete import complete
from divray.engines.openai import payload
from divray.errors import EngineError, InputError
from divray.models import local_model
from divray.pipeline import check
from divray.prompts import chat_renderer, request_rows, write_prompts
from divray.prompts.record import read_records
from divray.quickstart import folder
from divray.run_folder import RunFolder
from divray.sampling import failure_reason

SECRET = "sk-very-secret"
RECORD = " Ada Varn\nTail (place): Alden\nSentence: Ada Varn saw the lights of Alden."
RECORD_JSON = '{"head": "Ada Varn", "tail": "Alden", "sentence": "Ada Varn saw the lights of Alden."}'


class Server(ThreadingHTTPServer):
    """Answers each prompt with 429, then 500, then a sentence; refuses prompts about ``born_in`` for good."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/page"):
            return self._say(200, "<html>Welcome</html>")
        if not self.path.startswith("/v1"):
            return self._say(404, {"error": {"message": "no such place"}})
        self.server.keys.add(self.headers["Authorization"])
        if SECRET not in self.headers["Authorization"]:
            return self._say(401, {"error": {"message": "no such key"}})
        request = f"{body['seed']}"
        self.server.seen[request] += 1
        chat = self.path.endswith("/chat/completions")
        if "born_in" in (body["messages"][0]["content"] if chat else body["prompt"]):
            return self._say(400, {"error": {"message": "not about that"}})
        if self.server.seen[request] <= 2:
            return self._say(429 if self.server.seen[request] == 1 else 500, {"error": {"message": "later"}})
        self.server.bodies.append(body)
        self.complete({"message": {"role": "assistant", "content": RECORD_JSON}} if chat else {"text": RECORD})

    def complete(self, said: dict[str, Any]) -> None:
        usage = {"prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37, "prompt_tokens_details": {"cached_tokens": 16}}
        choice = {"index": 0, **said, "finish_reason": "stop", "logprobs": None}
        self._say(200, {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage})

    def _say(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "20")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def settings(url: str, *overrides: str) -> Config:
    endpoint = f"engine.endpoint={{url: '{url}', model: m, key_variable: SOME_KEY, concurrency: 8}}"
    return load_config(folder() / "quickstart.yaml", ["models.llm=endpoint", "rounds=1", endpoint, "engine.batch_size=8", *overrides])


def requests(config: Config, uri: str, every: int, count: int) -> RunFolder:
    run, task = RunFolder(uri), load_task(config)
    rows = request_rows(config, task.relations, task.seeds, 0, chat_renderer(config))
    write_prompts(run, "prompts", islice(rows, 0, every * count, every))
    return run


def test_a_busy_and_a_broken_server_are_waited_for(ray_two_cpus: None, uri: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    config = settings(server.url)
    run = requests(config, uri, 10, 32)
    complete(config, run, "prompts", "completions", "endpoint")
    rows = run.read_table("completions").to_pylist()
    assert len({row["candidate_id"] for row in rows}) == len(rows) == 32
    refused = [row for row in rows if row["error"]]
    assert {row["relation"] for row in refused} == {"born_in"}
    assert {failure_reason(row["error"]) for row in refused} == {"rejected_request"}
    good = [row for row in rows if not row["error"]]
    assert good
    assert all((row["generated_tokens"], row["cached_tokens"], row["finish_reason"]) == (7, 16, "stop") for row in good)
    assert all(server.seen[str(row["seed"])] == (1 if row["error"] else 3) for row in rows)
    assert all(body["stop"] == ["\n\n"] and body["min_p"] == 0.1 for body in server.bodies)
    written = b"".join(path.read_bytes() for path in Path(uri).rglob("*") if path.is_file())
    assert SECRET.encode() not in written

    complete(config, run, "prompts", "completions", "endpoint")
    assert sum(server.seen.values()) == sum(1 if row["error"] else 3 for row in rows)  # nothing was asked again

    monkeypatch.setenv("SOME_KEY", "wrong")
    with pytest.raises(EngineError, match="no such key"):
        complete(config, requests(config, f"{uri}-2", 1, 4), "prompts", "completions", "endpoint")


def test_chat_is_asked_in_messages(ray_two_cpus: None, uri: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    config = settings(server.url, "prompts.style=chat")
    run = requests(config, uri, 1, 8)
    complete(config, run, "prompts", "completions", "endpoint")
    assert [row["completion"] for row in run.read_table("completions").to_pylist()] == [RECORD_JSON] * 8
    assert all("Answer in JSON" in body["messages"][0]["content"] for body in server.bodies)
    assert all(json.loads(body["structured_outputs"]["json"])["required"] == ["head", "tail", "sentence"] for body in server.bodies)


@pytest.mark.parametrize(("path", "words"), [("/v2", "no such place"), ("/page", "not a completion")])
def test_a_wrong_address_is_said_at_once(
    ray_two_cpus: None, uri: str, server: Server, monkeypatch: pytest.MonkeyPatch, path: str, words: str
) -> None:
    monkeypatch.setenv("SOME_KEY", SECRET)
    config = settings(server.url.replace("/v1", path))
    run = requests(config, uri, 1, 8)
    with pytest.raises(EngineError, match=words):
        complete(config, run, "prompts", "completions", "endpoint")
    assert not run.files("completions", ".parquet")


def test_what_only_vllm_knows_is_sent_only_to_vllm() -> None:
    row, parameters = {"prompt": "p"}, {"max_tokens": 5, "seed": 1, "min_p": 0.1, "structured_outputs": {"regex": "a"}}
    assert payload(row, parameters, vllm=False, chat=False) == {"prompt": "p", "max_tokens": 5, "seed": 1}
    sent = payload(row, parameters, vllm=True, chat=True)
    assert sent["extra_body"] == {"min_p": 0.1, "structured_outputs": {"regex": "a"}}
    assert sent["messages"] == [{"role": "user", "content": "p"}]
    assert SECRET not in repr(SecretStr(SECRET))


def test_an_endpoint_needs_its_address_and_one_round() -> None:
    with pytest.raises(InputError, match=r"engine\.endpoint"):
        check(load_config(folder() / "quickstart.yaml", ["models.llm=endpoint", "rounds=1"]))
    with pytest.raises(InputError, match="rounds"):
        check(settings("http://127.0.0.1:1/v1", "rounds=2"))


@pytest.mark.slow
@pytest.mark.skipif("DIVRAY_TEST_SERVE" not in os.environ, reason="starts a server for a minute or more: set DIVRAY_TEST_SERVE=1")
def test_a_real_vllm_server(ray_two_cpus: None, uri: str, tmp_path: Path) -> None:
    from divray.engines.vllm import CPU_ENGINE_ARGUMENTS, cpu_environment

    port = free_port()
    options = [
        f"--max-model-len={CPU_ENGINE_ARGUMENTS['max_model_len']}",
        "--no-enable-chunked-prefill",
        "--enforce-eager",
        "--dtype=bfloat16",
    ]
    options += ["--max-num-seqs=32", "--max-num-batched-tokens=4096", "--dtype=bfloat16", "--enable-prompt-tokens-details"]
    # What `vllm serve` runs; that command itself looks for a distribution named `vllm`, which the CPU build is not.
    model = [f"--model={local_model('embedded:smollm2')}", "--served-model-name=m"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *model]
    environment = {**os.environ, **cpu_environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host=127.0.0.1", f"--port={port}", *options], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(1)
        config = settings(f"http://127.0.0.1:{port}/v1")
        run = requests(config, uri, 12, 24)
        complete(config, run, "prompts", "completions", "endpoint")
        rows = run.read_table("completions").to_pylist()
        assert [row["error"] for row in rows] == [""] * 24
        assert all(row["generated_tokens"] > 0 and row["prompt_tokens"] > 50 for row in rows)
        assert sum(len(read_records(row["completion"])) == 1 for row in rows) > len(rows) // 2  # some are cut before
    finally:
        import psutil

        for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            child.kill()
        process.wait()
