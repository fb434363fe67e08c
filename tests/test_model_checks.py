"""Models are judged before anything is loaded, by the small files that lie beside their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from divray.config import load_config
from divray.engines.arguments import engine_arguments
from divray.errors import InputError
from divray.model_checks import check_models, context_length, facts_of
from divray.quickstart import folder

LLM = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 1500}


def model(path: Path, config: dict[str, Any], tokenizer: dict[str, Any] | None = None, **files: str) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file({"weight": np.zeros(1, np.float32)}, path / "model.safetensors")
    if tokenizer is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (path / "tokenizer.json").write_text("{}")
    for name, text in files.items():
        (path / name).write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 900}, "max_position_embeddings": 5}, 900),
        ({"max_position_embeddings": 1000, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 4000),
        ({"max_position_embeddings": 8000, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 8000),
        ({}, None),
    ],
)
def test_the_context_is_the_models_own(config: dict[str, Any], context: int | None, tmp_path: Path) -> None:
    reference = model(tmp_path / "m", config, {})
    facts = facts_of(reference, "models.llm")
    assert facts is not None and facts.context == context
    assert context_length(reference, 2048) == min(2048, context or 2048)
    settings = load_config(folder() / "quickstart.yaml", [f"models.llm={reference}", "engine.vllm.dtype=float32"])
    assert engine_arguments(settings, gpu=False)["max_model_len"] == min(2048, context or 2048)
    assert engine_arguments(settings, gpu=True)["max_model_len"] == -1  # vLLM takes the model's own


@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_may_lie_in_either_place(where: str, tmp_path: Path) -> None:
    template = "{{ messages[0].content }}"
    reference = model(tmp_path / "m", LLM, {"chat_template": template} if where == "tokenizer_config.json" else {})
    if where != "tokenizer_config.json":
        Path(reference, where).write_text(template)
    check_models(load_config(folder() / "quickstart.yaml", [f"models.llm={reference}", "prompts.style=chat"]))


@pytest.mark.parametrize(
    ("config", "tokenizer", "overrides", "key"),
    [
        (LLM, {}, ["prompts.style=chat"], "prompts.style"),
        (LLM, {}, ["sampling.max_tokens=1500"], "sampling.max_tokens"),
        (LLM, {}, ["prompts.strategies={all_at_once: 1}", "sampling.max_tokens=400"], "sampling.max_tokens"),
        (LLM, {}, ["engine.vllm.max_model_len=1501"], "engine.vllm.max_model_len"),
        (LLM, {}, ["alignment.max_length=2000"], "alignment.max_length"),
        (LLM, None, [], "models.llm"),
        ({"architectures": ["BertForMaskedLM"]}, {}, [], "models.llm"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, {}, [], "models.llm"),
        ([], {}, [], "config.json"),
    ],
)
def test_a_model_that_cannot_do_it_is_refused(config: Any, tokenizer: Any, overrides: list[str], key: str, tmp_path: Path) -> None:
    reference = model(tmp_path / "m", config, tokenizer)
    with pytest.raises(InputError, match=key) as caught:
        check_models(load_config(folder() / "quickstart.yaml", [f"models.llm={reference}", *overrides]))
    assert reference in str(caught.value)


def test_a_file_that_is_only_a_pointer_is_refused(tmp_path: Path) -> None:
    reference = model(tmp_path / "m", LLM, {})
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / "m" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(InputError, match=name):
            check_models(load_config(folder() / "quickstart.yaml", [f"models.llm={reference}"]))
