"""Turns relations and demonstrations into request rows.

A strategy turns one relation and a random generator into a draft (:mod:`divray.prompts.strategies`); the rest is the same for all:
counts (:mod:`divray.prompts.waves`), the pairs to write about (:mod:`divray.prompts.pairs`), the form of a record
(:mod:`divray.prompts.record`), ids, seeds and rendering (:mod:`divray.prompts.rows`).
"""

from typing import Any

from divray.config import Config
from divray.datasets.stage import read_relations, read_seeds, stated
from divray.dedup.storage import first_line
from divray.engines import ENDPOINT, Answer
from divray.engines.complete import complete
from divray.engines.vllm import CPU_ENGINE_ARGUMENTS, engine_arguments, sampling_parameters
from divray.errors import InputError
from divray.layout import ENTITY_PAIRS, PAIR_COMPLETIONS, PAIR_PROMPTS, Round
from divray.models import MOST, context_length, local_model, small_files
from divray.prompts.pairs import pair_rows, pairs_wanted, pool_of, read_pairs, read_pool
from divray.prompts.parsing import form_of
from divray.prompts.rows import Renderer, accepted_samples, request_rows, write_prompts
from divray.prompts.strategies import GROWING, STRATEGIES, Draft
from divray.prompts.waves import Wave, first_wave
from divray.relations import Example, Relation
from divray.resources import uses_gpu
from divray.run_folder import RunFolder
from divray.schemas import NAIVE, SENTENCES
from divray.stages import Progress

__all__ = ["GROWING", "STRATEGIES", "Draft", "chat_renderer", "request_rows", "run", "write_prompts", "write_wave"]


def run(
    config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None, answer: Answer | None = None
) -> dict[str, Any]:
    """The ``prompt`` stage: write ``round-XX/prompts`` (all, or the first wave).  If prompts give pairs, round 0 also writes
    ``data/entity_pairs.json``, from the user's file or the LLM.

    Args:
        answer: A function that replaces the engine and writes the pool of pairs; see :func:`divray.engines.complete.complete`.

    Returns:
        Counts: ``requests``, and ``pairs`` where prompts give them.
    """
    seeds = read_seeds(run)
    relations = stated(read_relations(run), config.task.none_label)
    form = form_of(seeds, relations)
    if round == 0 and config.prompts.pairs_file:
        run.write_json(ENTITY_PAIRS, read_pairs(config.prompts.pairs_file, relations, form))
    elif round == 0 and config.prompts.pairs == "first" and not run.exists(ENTITY_PAIRS):
        write_prompts(run, PAIR_PROMPTS, pair_rows(config, relations, seeds, chat_renderer(config)))
        complete(config, run, PAIR_PROMPTS, PAIR_COMPLETIONS, config.models.llm, on_progress=on_progress, answer=answer)
        run.write_json(ENTITY_PAIRS, pool_of(run.read_table(PAIR_COMPLETIONS).to_pylist(), form, pairs_wanted(config)))
    accepted = accepted_samples(run, range(round)) if GROWING & config.prompts.strategies.keys() else {}
    run.delete(Round.of(round).waves)
    counts = {"requests": write_wave(config, run, round, first_wave(config, relations, round, accepted))}
    pool = read_pool(run)
    return {**counts, "pairs": sum(map(len, pool.values()))} if pool else counts


def write_wave(config: Config, run: RunFolder, round: int, wave: Wave) -> int:
    """Write the prompts of one wave of a round; returns how many."""
    relations = stated(read_relations(run), config.task.none_label)
    rows = request_rows(config, relations, read_seeds(run), round, chat_renderer(config), wave, read_pool(run))
    return write_prompts(run, Round.of(round).prompts, rows, f"wave-{wave.number:02d}" if wave.number else "part")


def check_lengths(config: Config, relations: list[Relation], seeds: list[Example]) -> None:
    """Refuse relations and seeds if a prompt of any strategy, with its answer, exceeds the LLM's context.  An endpoint, or an embedded
    model that is not made yet, is not checked.
    """
    if config.models.llm == ENDPOINT or (folder := small_files(config.models.llm, "models.llm")) is None:
        return
    chat, context = chat_renderer(config), context_length(config.models.llm, MOST)
    counts = dict.fromkeys([*config.prompts.strategies, *([NAIVE] if config.sampling.naive_candidates_per_relation else [])], SENTENCES)
    rows = {
        row["prompt_id"]: row for row in request_rows(config, relations, seeds, 0, chat, Wave(0, {one.name: counts for one in relations}))
    }
    if config.prompts.pairs == "first" and not config.prompts.pairs_file:
        rows |= {f"pairs of {row['relation']}": row for row in pair_rows(config, relations, seeds, chat)}
    # A token has at least one byte, so a prompt has no more tokens than bytes.
    least = min(context, config.engine.vllm.get("max_model_len", CPU_ENGINE_ARGUMENTS["max_model_len"]))
    asked = {name: int(sampling_parameters(config, row, False)["max_tokens"]) for name, row in rows.items()}
    if not (long := [name for name, row in rows.items() if len(row["prompt"].encode()) + asked[name] > least]):
        return
    from transformers import AutoTokenizer

    most, tokenizer = engine_arguments(config, uses_gpu(config))["max_model_len"], AutoTokenizer.from_pretrained(folder)
    most = context if most == -1 else most
    for name in long:
        if (tokens := len(tokenizer(rows[name]["prompt"], verbose=False).input_ids)) + asked[name] > most:
            where, place = str(config.task.train or config.task.relations), f"relation {rows[name]['relation']}"
            problem = f"a prompt of {tokens} tokens and its answer of {asked[name]} exceed the {most} of {config.models.llm}"
            mend = "Shorten description or examples, lower prompts.demonstrations or sampling.max_tokens, or set engine.vllm.max_model_len."
            raise InputError(where, place, problem, mend)


def chat_renderer(config: Config) -> Renderer | None:
    """The model's chat template as a function, or ``None`` for completion style."""
    if config.prompts.style == "completion":
        return None
    if config.models.llm == ENDPOINT:  # the server has the template
        return lambda messages: "\n".join(message["content"] for message in messages) + "\n"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_files(config.models.llm, "models.llm") or local_model(config.models.llm))
    if not tokenizer.chat_template:
        problem = f"{config.models.llm} has no chat template"
        raise InputError("config", "prompts.style", problem, "Set prompts.style: completion, or give a chat model.")
    # Engine and trainer add the BOS token themselves where the tokenizer says so.
    bos = tokenizer.bos_token if tokenizer.bos_token and tokenizer("").input_ids else ""

    def render(messages: list[dict[str, str]]) -> str:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return text.removeprefix(bos)

    try:
        written, fault = render([{"role": "user", "content": "Hello"}]), "leaves the message out"
    except Exception as error:  # a template may raise anything
        written, fault = "", f"fails ({first_line(error)})"
    if "Hello" not in written:
        problem = f"the chat template of {config.models.llm} {fault}"
        raise InputError("config", "prompts.style", problem, "Set prompts.style: completion, or fix the template.")
    return render
