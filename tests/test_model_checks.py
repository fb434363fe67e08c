"""Models are judged before anything is loaded, by the small files that lie beside their weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from divray.cli import main
from divray.config import load_config
from divray.engines.vllm import check_arguments, engine_arguments
from divray.errors import InputError
from divray.models import check_models, context_length, local_model
from divray.pipeline import check
from divray.prompts import chat_renderer
from divray.quickstart import folder

LLM = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 1500}

WORDS = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, "[UNK]"))


def model(path: Path, config: dict[str, Any], tokenizer: dict[str, Any] | None = None, **files: str) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file({"weight": np.zeros(1, np.float32)}, path / "model.safetensors")
    if tokenizer is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        WORDS.save(str(path / "tokenizer.json"))
    for name, text in files.items():
        (path / name).write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 900}, "max_position_embeddings": 5}, 900),
        (
            {
                **LLM,
                "max_position_embeddings": 8000,
                "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            },
            8000,
        ),
        ({"model_type": "gemma3_text", "max_position_embeddings": 8000, "rope_parameters": {"rope_type": "linear", "factor": 8.0}}, 8000),
        (
            {
                **LLM,
                "max_position_embeddings": 8000,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2000},
            },
            8000,
        ),
        ({**LLM, "max_position_embeddings": 1000, "rope_scaling": {"type": "linear", "factor": 4.0}}, 1000),
        ({"model_type": "bloom"}, None),
    ],
)
def test_the_context_is_the_models_own(config: dict[str, Any], context: int | None, tmp_path: Path) -> None:
    reference = model(tmp_path / "m", config, {})
    for most in (2048, 10_000):
        assert context_length(reference, most) == min(most, context or most)
    settings = load_config(folder() / "quickstart.yaml", [f"models.llm={reference}", "engine.vllm.dtype=float32"])
    assert engine_arguments(settings, gpu=False)["max_model_len"] == min(2048, context or 2048)
    assert engine_arguments(settings, gpu=True)["max_model_len"] == -1  # vLLM takes the model's own


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_may_lie_in_either_place(where: str, tmp_path: Path) -> None:
    template = "{{ messages[0].content }}"
    reference = model(tmp_path / "m", LLM, {"chat_template": template} if where == "tokenizer_config.json" else {})
    if where != "tokenizer_config.json":
        Path(reference, where).write_text(template)
    renderer = chat_renderer(load_config(folder() / "quickstart.yaml", [f"models.llm={reference}", "prompts.style=chat"]))
    assert renderer is not None and renderer([{"role": "user", "content": "a b"}]) == "a b"


@pytest.mark.parametrize(
    ("config", "tokenizer", "overrides", "key"),
    [
        (LLM, {}, ["prompts.style=chat"], "prompts.style"),
        (LLM, {}, ["sampling.max_tokens=1500"], "sampling.max_tokens"),
        (LLM, {}, ["prompts.strategies={all_at_once: 1}", "sampling.max_tokens=400"], "sampling.max_tokens"),
        (LLM, None, [], "models.llm: the tokenizer"),
        ({"model_type": "qwen2"}, None, [], r"models.llm: the tokenizer of .*\(no tokenizer"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, {}, [], "models.llm: .* writes text"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, {}, [], "models.llm: .* writes text"),
        ([], {}, [], "models.llm: the configuration"),
    ],
)
def test_a_model_that_cannot_do_it_is_refused(config: Any, tokenizer: Any, overrides: list[str], key: str, tmp_path: Path) -> None:
    reference = model(tmp_path / "m", config, tokenizer)
    with pytest.raises(InputError, match=key) as caught:
        check(load_config(folder() / "quickstart.yaml", [f"models.llm={reference}", *overrides]))
    assert reference in str(caught.value)


def test_a_file_that_is_only_a_pointer_is_refused(tmp_path: Path) -> None:
    reference = model(tmp_path / "m", LLM, {})
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / "m" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(InputError, match=name):
            check_models(load_config(folder() / "quickstart.yaml", [f"models.llm={reference}"]))


FILES = {"config.json": json.dumps(LLM), "tokenizer.json": "{}", "model.safetensors": "weights"}


class Hub(BaseHTTPRequestHandler):
    """A hub that has ``of/llm``, lets nobody into ``of/gated``, is ill about ``of/ill``, and says nothing about ``of/silent``."""

    gone = threading.Event()

    def do_GET(self) -> None:
        _, first, *rest = self.path.partition("?")[0].split("/")
        name = "/".join(rest[1:3] if first == "api" else [first, rest[0]])
        sha = next((part for part in rest if len(part) == 40), "a" * 40)
        if name == "of/silent":
            self.gone.wait(60)
        if name == "of/ill":
            self.answer(500)
        elif name not in ("of/llm", "of/gated"):
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
        elif "no-tag" in rest:
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif "tree" in rest:
            found = [{"type": "file", "path": file, "size": len(text), "oid": "b" * 40} for file, text in FILES.items()]
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(found))
        elif first == "api":
            self.answer(200, {"Content-Type": "application/json"}, json.dumps({"id": name, "sha": sha, "siblings": []}))
        elif name == "of/gated":
            self.answer(403, {"X-Error-Code": "GatedRepo"})
        else:
            text = FILES[rest[-1]]
            self.answer(200, {"X-Repo-Commit": sha, "ETag": f'"{rest[-1]}"'}, text)

    do_HEAD = do_GET

    def answer(self, status: int, headers: dict[str, str] | None = None, text: str = "") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.gone.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    Hub.gone.set()
    server.shutdown()
    server.server_close()


ASK = """
import os, sys
from divray import models
from divray.errors import InputError
from divray.models import context_length
models.HUB_SECONDS = 1.0
for name in sys.argv[1:]:
    try:
        print(name, context_length(name, 2048), *(os.listdir(models.local_model(name)) if "@" in name else ()))
    except InputError as error:
        print(error)
"""


def asked(names: list[str], cache: Path, **variables: str) -> list[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **variables}
    done = subprocess.run([sys.executable, "-c", ASK, *names], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_commit_of_a_model_is_fetched(hub: str, tmp_path: Path) -> None:
    pinned, other = asked([f"of/llm@{'c' * 40}", "of/llm@no-tag"], tmp_path, HF_ENDPOINT=hub)
    assert pinned.split()[1] == "1500" and {*pinned.split()[2:]} == {*FILES}
    assert [path.name for path in tmp_path.glob("**/snapshots/*")] == ["c" * 40]
    assert "of/llm@no-tag is no folder, and the hub has no such revision of it" in other


def test_a_model_that_the_hub_does_not_give_is_refused_at_once(hub: str, tmp_path: Path) -> None:
    names = ["of/llm", "of/gated", "of/ill", "of/silent", "of/none", "none", "a b/c"]
    began = time.monotonic()
    found, *refused = asked(names, tmp_path, HF_ENDPOINT=hub)
    assert time.monotonic() - began < 60
    assert found == "of/llm 1500"
    assert not list(tmp_path.rglob("*.safetensors"))  # no weight was fetched
    words = ["only to those whom it let in", "out of reach", "out of reach", *["has no such model, or not for you"] * 3]
    assert len(refused) == len(words)
    for name, line, word in zip(names[1:], refused, words, strict=True):
        assert line.startswith(f"config: models.llm: {name} is no folder, and the hub ") and word in line
    offline = asked(["of/llm", "of/none"], tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert offline[0] == found and "offline mode" in offline[1]
    nowhere = asked(["of/llm", "of/none"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert nowhere[0] == found and "out of reach" in nowhere[1]


@pytest.mark.parametrize("key", ["models.llm", "models.encoder", "correctness.reader", "correctness.fluency", "correctness.llm"])
def test_a_model_out_of_reach_is_said_before_anything_is_sampled(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [str(folder() / "quickstart.yaml"), f"{key}=of/none"]
    assert main(["plan", *settings]) == main(["run", *settings, "--out", str(tmp_path / "run")]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert f"config: {key}: of/none is no folder" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": 3}, "is no model that writes text"),
        ({"max_position_embeddings": "x"}, "can't be loaded"),
    ],
)
def test_a_configuration_of_wrong_values_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    reference = model(tmp_path / "m", {**LLM, **change}, {})
    with pytest.raises(InputError, match=rf"models\.llm: .*{words}"):
        check_models(load_config(folder() / "quickstart.yaml", [f"models.llm={reference}"]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["prompts.style=completion"], "a prompt of 6[0-9]{2} tokens and its answer of 96 exceed the 700 of"),
        (["prompts.style=chat"], "a prompt of 6[0-9]{2} tokens and its answer of 96 exceed the 700 of"),
        (["prompts.pairs=first", "sampling.max_tokens=8"], "a prompt of [56][0-9]{2} tokens and its answer of 192 exceed the 700 of"),
        (["prompts.strategies={all_at_once: 1}", "sampling.max_tokens=30"], "and its answer of 120 exceed the 700 of"),
        (["engine.vllm.max_model_len=640", "sampling.max_tokens=8"], "and its answer of 8 exceed the 640 of"),
        (["sampling.max_tokens=8"], ""),
    ],
)
def test_prompts_longer_than_the_context_are_refused_at_plan(overrides: list[str], words: str, tmp_path: Path) -> None:
    reference = model(tmp_path / "m", {**LLM, "max_position_embeddings": 700}, {"chat_template": "{{ messages[0].content }}"})
    spaced = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, "[UNK]"))
    spaced.pre_tokenizer = WhitespaceSplit()
    spaced.save(f"{reference}/tokenizer.json")
    for file in folder().glob("*.*"):
        shutil.copy(file, tmp_path)
    relations = yaml.safe_load((tmp_path / "relations.yaml").read_text())
    relations[2]["description"] += " word" * 500
    (tmp_path / "relations.yaml").write_text(yaml.safe_dump(relations))
    settings = load_config(tmp_path / "quickstart.yaml", [f"models.llm={reference}", "rounds=1", *overrides])
    if not words:
        check(settings)
        return
    with pytest.raises(InputError, match=rf"relations\.yaml: relation {relations[2]['name']}: .*{words}"):
        check(settings)


def test_the_next_fetch_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setenv("DIVRAY_CACHE", str(tmp_path / "cache"))
    killed = "import os; from divray import models; models.pafs.copy_files = lambda *_, **__: os.kill(os.getpid(), 9); "
    command = [sys.executable, "-c", f"{killed}models.local_model({f'file://{tmp_path}/model'!r})"]
    assert subprocess.run(command, check=False).returncode == -9
    there = Path(local_model(f"file://{tmp_path}/model"))
    assert sorted(one.name for one in there.parent.iterdir()) == [there.name, f"{there.name}.lock"]


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    reference = model(tmp_path / "m", LLM, {}, **{"model.safetensors.index.json": json.dumps(index)})
    for written in (reference, f"file://{reference}"):
        with pytest.raises(InputError, match=r"lacks model-00002-of-00002\.safetensors"):
            check_models(load_config(folder() / "quickstart.yaml", [f"models.llm={written}"]))


def test_a_tokenizer_that_is_none_is_refused_at_plan(tmp_path: Path) -> None:
    reference = model(tmp_path / "m", LLM, {}, **{"tokenizer.json": "{}"})
    for key in ("models.llm", "models.encoder", "correctness.fluency"):
        with pytest.raises(InputError, match=rf"{key}: the tokenizer of .* can't be loaded"):
            check(load_config(folder() / "quickstart.yaml", [f"{key}={reference}", "rounds=1"]))


@pytest.mark.parametrize(
    ("key", "rounds", "change"),
    [
        ("models.llm", 1, {"model_type": "nosuchtype"}),
        ("models.llm", 2, {"model_type": 3}),
        ("models.encoder", 1, {"hidden_size": "x"}),
        ("correctness.reader", 1, {"vocab_size": [1]}),
    ],
)
def test_a_configuration_that_cannot_be_loaded_is_refused(key: str, rounds: int, change: dict[str, Any], tmp_path: Path) -> None:
    reference = model(tmp_path / "m", {**LLM, **change}, {})
    settings = load_config(folder() / "quickstart.yaml", [f"{key}={reference}", f"rounds={rounds}"])
    with pytest.raises(InputError, match=rf"{key}: the configuration of .* can't be loaded"):
        check_models(settings)


def test_an_encoder_with_fewer_words_than_its_tokenizer_is_refused_at_plan(tmp_path: Path) -> None:
    reference = model(tmp_path / "m", {"model_type": "bert", "vocab_size": 2}, {})
    with pytest.raises(InputError, match=r"models\.encoder: the tokenizer of .* has 7 words, the model 2"):
        check_models(load_config(folder() / "quickstart.yaml", [f"models.encoder={reference}"]))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("max_num_seq=4", "engine.vllm.max_num_seq: vLLM's engine has no such argument.* See .vllm serve --help"),
        ("model=other", r"engine\.vllm\.model: .* or divray sets it"),
        ("東京=1", "engine.vllm.東京: vLLM's engine has no such argument.* See .vllm serve --help"),
        ("dtype=float8", r"engine\.vllm\.dtype"),
        ("gpu_memory_utilization=90", r"engine\.vllm\.gpu_memory_utilization"),
    ],
)
def test_an_argument_that_vllm_does_not_take_is_refused_at_plan(argument: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(folder() / "quickstart.yaml"), f"engine.vllm.{argument}"]) == 2
    out, err = capsys.readouterr()
    assert re.search(words, err) and err.count("\n") == 1 and not out


def test_further_arguments_of_vllm_pass() -> None:
    check_arguments(load_config(folder() / "quickstart.yaml", ["engine.vllm.kv_cache_dtype=fp8"]))


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ raise_exception('no') }}", "{{ messages[0].nothing.more }}", "{{ 1/0 }}", "a text without the message"]
)
def test_a_chat_template_that_fails_is_refused_at_plan(template: str, tmp_path: Path) -> None:
    copy = tmp_path / "llm"
    shutil.copytree(local_model("embedded:minilm"), copy)  # a tokenizer
    (copy / "config.json").write_text(json.dumps(LLM))
    (copy / "chat_template.jinja").write_text(template)
    settings = load_config(
        folder() / "quickstart.yaml", [f"models.llm={copy}", "prompts.style=chat", "prompts.strategies={independent: 1}"]
    )
    with pytest.raises(InputError, match=r"prompts\.style: the chat template of .* (fails|leaves the message out)"):
        check(settings)
