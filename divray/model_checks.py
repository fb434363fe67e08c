"""What a run's models must be, by the small files that lie beside their weights; no weight is read.

The context is found as vLLM finds it: the least of the keys of ``config.json`` that may say it, times a RoPE factor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from divray.config import Config
from divray.errors import InputError
from divray.models import check_model, small_files
from divray.schemas import SENTENCES
from divray.textfiles import read_json

_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length", "max_seq_length")
_OWN_SCALES = ("default", "llama3", "longrope", "su", "mrope")
"""Kinds of RoPE whose factor is in the context already."""
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class Facts(NamedTuple):
    """What a model's files say: the tokens that it takes at most (``None``: nothing says so), whether it is a decoder that writes
    text, whether its tokenizer has a chat template, and its ``model_type``, or ``""``."""

    context: int | None
    generates: bool
    template: bool
    kind: str


def facts_of(reference: str, field: str, where: str = "config") -> Facts | None:
    """What the files of a model say; ``None`` where it is an endpoint, or embedded and not made yet.

    Raises:
        InputError: A file is missing, or none of its kind.
    """
    if (reference, field) == ("endpoint", "models.llm") or (folder := small_files(reference, field)) is None:
        return None
    names = {file.name for file in folder.iterdir()}
    if "config.json" not in names:
        raise InputError(where, field, f"{reference} holds no config.json", "Give a model saved with transformers.")
    config = _object(folder / "config.json")
    if names.isdisjoint(_TOKENIZERS):
        raise InputError(where, field, f"{reference} holds no tokenizer", "Save the tokenizer beside the model.")
    if "tokenizer.json" in names:
        try:
            json.loads((folder / "tokenizer.json").read_bytes())
        except ValueError:
            place = str(folder / "tokenizer.json")
            raise InputError(place, "", "no whole JSON file", "Fetch it again; a Git LFS pointer is none.") from None
    tokenizer = _object(folder / "tokenizer_config.json") if "tokenizer_config.json" in names else {}
    kinds = config.get("architectures") or []
    generates = not kinds or any(str(kind).endswith(_GENERATES) for kind in kinds)
    return Facts(
        context=_context(config),
        generates=generates and not config.get("is_encoder_decoder"),
        template=bool(tokenizer.get("chat_template")) or any(name.startswith("chat_template") for name in names),
        kind=str(config.get("model_type") or ""),
    )


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(str(path), "", "no JSON object", "Save the model again.")
    return value


def _context(config: dict[str, Any]) -> int | None:
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    found = [config[key] for key in _CONTEXT if isinstance(config.get(key), int)]
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    factor = rope.get("factor") if isinstance(rope, dict) and (rope.get("rope_type") or rope.get("type")) not in _OWN_SCALES else None
    return int(min(found) * (factor or 1)) if found else None


def context_length(reference: str, most: int) -> int:
    """Tokens of prompt and completion: ``most``, or fewer where the model takes fewer."""
    facts = facts_of(reference, "models.llm")
    return min(most, facts.context or most) if facts else most


def check_models(config: Config) -> None:
    """Refuse models that can't do what the settings ask of them; loads none.

    Raises:
        InputError: A model is missing or of another kind, has no chat template, or takes fewer tokens than the settings say.
    """
    own = config.correctness
    llms = {
        "models.llm": config.models.llm,
        "correctness.reader": own.reader,
        "correctness.fluency": own.fluency,
        "correctness.llm": own.llm,
    }
    for field, reference in llms.items():
        if reference is None:
            continue
        if reference == "endpoint" and field in ("models.llm", "correctness.llm"):
            if config.engine.endpoint is None:
                raise InputError("config", "engine.endpoint", f"`{field}: endpoint` needs a url and a model", "Give url and model.")
            continue
        check_model(reference, "config", field)
        facts = facts_of(reference, field)
        if facts and not facts.generates:
            raise InputError("config", field, f"{reference} is no model that writes text", "Give a causal language model.")
        if facts and field == "models.llm":
            _check_llm(config, facts)
    check_model(config.models.encoder, "config", "models.encoder")
    facts_of(config.models.encoder, "models.encoder")


def _check_llm(config: Config, facts: Facts) -> None:
    def refuse(key: str, problem: str, mend: str) -> InputError:
        return InputError("config", key, f"{config.models.llm} {problem}", mend)

    if config.prompts.style == "chat" and not facts.template:
        raise refuse("prompts.style", "has no chat template", "Set prompts.style: completion, or give a chat model.")
    if facts.context is None:
        return
    given = config.engine.vllm.get("max_model_len", facts.context)
    lengths = {"alignment.max_length": config.alignment.max_length} if config.rounds > 1 else {}
    for key, length in {"engine.vllm.max_model_len": given, **lengths}.items():
        if length > facts.context:
            raise refuse(key, f"takes {facts.context} tokens at most", f"It is now {length}.")
    asked = config.sampling.max_tokens * (SENTENCES if "all_at_once" in config.prompts.strategies else 1)
    if asked >= given:
        problem = f"has a context of {given} tokens, of which {asked} leave no prompt any room"
        raise refuse("sampling.max_tokens", problem, "Lower it.")
