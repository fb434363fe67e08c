"""DPO for real, at a size that trains in seconds: Ray Train, TRL and DeepSpeed on a random two-layer model."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import kill_tree

from divray.alignment import base_model
from divray.alignment import run as align
from divray.alignment.pairs import read_pairs
from divray.config import Config, load_config, parse_config
from divray.errors import InputError
from divray.run_folder import RunFolder
from divray.schemas import PAIRS

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def settings(model: Path, workers: int = 1, **alignment: Any) -> Config:
    values = {"learning_rate": 5e-3, "sft_weight": 0, "precision": "fp32", "pairs_per_step": 4, "max_length": 64, **alignment}
    return parse_config(
        {
            "task": {"name": "t", "relations": "r.yaml"},
            "models": {"llm": str(model)},
            "alignment": values,
            "cluster": {"train_workers": workers, "cpus_per_worker": 0.5},
        },
        "test",
    )


def pairs_table(count: int, chosen: str = " Ann met Bob.\n", rejected: str = " The cat sat.\n") -> pa.Table:
    rows = [
        {
            "pair_id": f"p{i:03d}",
            "relation": "r",
            "prompt": f"Sentence {i % 7}:",
            "chosen": chosen.replace("Ann", f"Ann{i}"),
            "rejected": rejected,
            "kind": "mined",
            "chosen_id": f"c{i}",
            "rejected_id": f"d{i}",
        }
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, PAIRS)


def folder_with(path: Path, table: pa.Table) -> RunFolder:
    run = RunFolder(str(path))
    run.write_table("round-00/pairs", table)
    return run


def curve(run: RunFolder, column: str) -> list[float]:
    return [row[column] for row in run.read_json("round-01/alignment.json")["curve"]]


# pairs ------------------------------------------------------------------------------------------


def test_pairs_of_all_earlier_rounds_in_one_order(tmp_path: Path) -> None:
    run, table = RunFolder(str(tmp_path)), pairs_table(9)
    run.write_table("round-00/pairs", table.slice(4), rows_per_file=2)
    run.write_table("round-01/pairs", table.slice(0, 4))
    assert read_pairs(run, 1)["pair_id"].to_pylist() == [f"p{i:03d}" for i in range(4, 9)]
    assert read_pairs(run, 2)["pair_id"].to_pylist() == [f"p{i:03d}" for i in range(9)]


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (pairs_table(0), "no preference pair"),
        (pairs_table(2).drop_columns(["chosen"]), "chosen"),
    ],
)
def test_unusable_pairs_are_named(tmp_path: Path, table: pa.Table, names: str) -> None:
    run = folder_with(tmp_path, table)
    with pytest.raises(InputError, match=names):
        align(settings(tmp_path), run, 1)
    assert not run.exists("round-01")


def test_no_table_of_pairs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no preference pair"):
        align(settings(tmp_path), RunFolder(str(tmp_path)), 1)
    with pytest.raises(InputError, match="round 0"):
        align(settings(tmp_path), RunFolder(str(tmp_path)), 0)


def test_policy_starts_from_the_round_before(tmp_path: Path) -> None:
    run, config = RunFolder(str(tmp_path)), settings(tmp_path / "llm")
    assert base_model(config.models.llm, run, 2) == str(tmp_path / "llm")
    run.write_json("round-01/policy/config.json", {})
    assert base_model(config.models.llm, run, 1) == str(tmp_path / "llm")
    assert base_model(config.models.llm, run, 2) == str(tmp_path / "round-01/policy")


def test_no_credentials_in_results() -> None:
    from divray.dedup.storage import public_name

    assert public_name("s3://key:secret@bucket/run/policy?endpoint_override=host:1") == "s3://bucket/run/policy"
    assert public_name("owner/name") == "owner/name" and public_name("/a/b?c") == "/a/b?c"


def test_token_ids_split_at_the_prompt(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from divray.alignment.pairs import tokenize_pairs

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    long = pairs_table(1, rejected=" x" * 80)
    rows, left_out = tokenize_pairs(pa.concat_tables([pairs_table(3), long]), tokenizer, 64)
    assert left_out == 1 and len(rows["prompt_ids"]) == 3
    assert tokenizer.decode(rows["prompt_ids"][1]) == "Sentence 1:"
    assert tokenizer.decode(rows["chosen_ids"][1]) == " Ann1 met Bob.\n"
    assert tokenizer.decode(rows["rejected_ids"][1]) == " The cat sat.\n"
    merged, _ = tokenize_pairs(pairs_table(1, chosen="s went.\n", rejected="s stay.\n"), tokenizer, 64)
    assert merged["chosen_ids"][0] != merged["rejected_ids"][0]


TURNS = "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] | trim }}END{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (TURNS.replace("END", "<end_of_turn>\n"), "<end_of_turn>"),
        (TURNS.replace("END", "<|end|>\n") + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", "<|end|>"),
        (TURNS.replace("END", "<|eot_id|>"), "<|eot_id|>"),
        (TURNS.replace("END", "\n"), "<|im_end|>"),
        ("{{ messages[0]['content'] }}<|end|>", "<|im_end|>"),  # it leaves the answer out
        (None, "<|im_end|>"),
    ],
)
def test_a_chat_s_texts_end_as_the_template_ends_a_turn(tiny_model: Path, template: str | None, end: str) -> None:
    from transformers import AutoTokenizer

    from divray.alignment.pairs import tokenize_pairs

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<end_of_turn>", "<|end|>", "<|eot_id|>"], special_tokens=True)
    tokenizer.chat_template = template
    rows, _ = tokenize_pairs(pairs_table(1, chosen='{"a": 1}'), tokenizer, 64, chat=True)
    assert tokenizer.decode(rows["chosen_ids"][0]) == '{"a": 1}' + end
    assert tokenizer.convert_ids_to_tokens(rows["rejected_ids"][0][-1]) == end


# arguments --------------------------------------------------------------------------------------

BILLION = 1_000_000_000


@pytest.mark.parametrize(("method", "given", "rate"), [("lora", None, 5e-5), ("full", None, 5e-7), ("full", 3e-6, 3e-6)])
@pytest.mark.parametrize("parameters", [135_000_000, 7 * BILLION])
def test_rate_and_memory_follow_method_and_size(method: str, given: float | None, rate: float, parameters: int) -> None:
    from divray.alignment.arguments import dpo_arguments

    settings_of = settings(Path("model"), learning_rate=given, method=method, sft_weight=0.5).alignment.model_dump()
    made = dpo_arguments(settings_of, workers=1, gpu=True, bf16=True, parameters=parameters, pairs=9, seed=1, output_dir="out")
    assert (made["loss_type"], made["loss_weights"]) == (["sigmoid", "sft"], [1.0, 0.5])
    assert made["learning_rate"] == pytest.approx(rate) and made["gradient_checkpointing"] is (parameters > BILLION)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("most", [1, 4, 5])
def test_a_step_has_its_pairs_whatever_the_workers(workers: int, most: int) -> None:
    from divray.alignment.arguments import batches

    at_once, times = batches({"pairs_per_step": 24, "batch_size": most}, workers)
    assert at_once * times * workers == 24 and at_once <= most


def test_workers_that_can_not_share_a_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pairs_per_step: 4 pairs a step can't be shared by cluster\.train_workers=3\. Give e\.g\. 3"):
        align(settings(tmp_path, workers=3), folder_with(tmp_path, pairs_table(8)), 1)


@pytest.mark.parametrize("preset", sorted((Path(__file__).parent.parent / "examples" / "gpu").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_trl_and_deepspeed_take_the_arguments_of_gpu_runs(
    preset: Path, zero_stage: int, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig
    from trl import DPOConfig

    from divray.alignment.arguments import dpo_arguments

    config = load_config(preset)
    alignment = {**config.alignment.model_dump(mode="json"), "zero_stage": zero_stage, "method": method}
    for workers in (1, 2, 4, 8):
        made = dpo_arguments(
            alignment, workers=workers, gpu=True, bf16=True, parameters=7 * BILLION, pairs=640, seed=1, output_dir=str(tmp_path)
        )
        assert made["gradient_checkpointing"] is alignment["gradient_checkpointing"] and made["bf16"] and not made["use_cpu"]
        args = DPOConfig(**{**made, "use_cpu": True})  # there is no GPU here to look for
        plan = copy.deepcopy(args.hf_deepspeed_config.config)
        # What the trainer fills in once it knows the group.
        plan["train_batch_size"] = made["per_device_train_batch_size"] * made["gradient_accumulation_steps"] * workers
        monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)
        monkeypatch.setattr("deepspeed.comm.get_world_size", lambda size=workers: size)
        checked = DeepSpeedConfig(plan)
        assert checked.zero_optimization_stage == zero_stage and checked.bfloat16_config.enabled
        assert checked.train_batch_size == alignment["pairs_per_step"]
        assert checked.gradient_accumulation_steps * checked.train_micro_batch_size_per_gpu * workers == alignment["pairs_per_step"]


def test_the_size_of_a_model_is_known_without_its_weights(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    from divray.alignment.arguments import parameters_of

    whole = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    (tiny_model / "model.safetensors").rename(tiny_model / "away")
    try:
        assert parameters_of(str(tiny_model)) == whole
    finally:
        (tiny_model / "away").rename(tiny_model / "model.safetensors")


# prompts computed once --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_shared_prompt_changes_no_state_and_no_gradient(family: str) -> None:
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from divray.alignment.shared_prompt import can_share, pack, share_prompts

    kind, settings_kind = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config),
        "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig),
    }[family]
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    windows = {"head_dim": 8, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]} if family == "gemma3" else {}
    model = kind(settings_kind(vocab_size=50, **sizes, **windows)).double()
    ids = torch.randint(3, 50, (6, 12))
    lengths = torch.tensor([12, 12, 7, 10, 12, 5])
    for row, first, shared in ((1, 0, 12), (3, 0, 6), (4, 2, 7)):  # one is whole within another, one a beginning of one behind it
        ids[row, :shared] = ids[first, :shared]
    mask = (torch.arange(12) < lengths.unsqueeze(1)).long()
    ids = ids * mask
    weights = torch.randn(6, 12, 32, dtype=torch.double) * mask.unsqueeze(-1)

    def states() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        (hidden * weights).sum().backward()
        return hidden.detach() * mask.unsqueeze(-1), model.base_model.layers[0].mlp.up_proj.weight.grad.clone()

    assert can_share(model, 12) and can_share(model, 13) == (family != "gemma3")
    assert pack(ids, mask, torch.float64)[0].shape == ((3, 16))
    plain = states()
    share_prompts(model)
    shared_once = states()
    torch.testing.assert_close(shared_once[0], plain[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(shared_once[1], plain[1], rtol=1e-5, atol=1e-5)  # the norms compute in fp32


def test_two_pairs_of_a_prompt_stand_side_by_side() -> None:
    from divray.alignment.pairs import prompts_together

    prompts = [*"aaaaabbbbccd"]
    order = prompts_together(prompts, 1)
    assert sorted(order) == list(range(12)) and order == prompts_together(prompts, 1) != prompts_together(prompts, 2)
    twos = [{prompts[one], prompts[other]} for one, other in zip(order[::2], order[1::2], strict=True)]
    assert sorted(map(len, twos)) == [1, 1, 1, 1, 1, 2]
    assert prompts_together([*"abcab"], 3)[-1] == 2
    assert prompts_together(prompts, 1, 8) == [*order, *order[:4]] and prompts_together(prompts, 1, 4) == order
    assert prompts_together([*"ab"], 1, 5) == 2 * prompts_together([*"ab"], 1) + prompts_together([*"ab"], 1)[:1]


# training ---------------------------------------------------------------------------------------


EPOCHS, STEPS, FIRST_CHECKPOINT, LATE, LATER = 4, 24, 6, 13, 19
PAIR_COUNT = 21  # the last step of an epoch has one, and is filled with others


@dataclass(frozen=True)
class Trained:
    run: RunFolder
    counts: dict[str, Any]
    told: list[tuple[int, int, str]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, ray_two_cpus: None) -> Trained:
    run, told = folder_with(tmp_path_factory.mktemp("undisturbed"), pairs_table(PAIR_COUNT)), []
    counts = align(settings(tiny_model, epochs=EPOCHS), run, 1, on_progress=lambda *news: told.append(news))
    return Trained(run, counts, told)


@pytest.mark.slow
def test_lora_learns_a_preference_and_leaves_a_clean_policy(tiny_model: Path, undisturbed: Trained) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, counts = undisturbed.run, undisturbed.counts
    assert counts["pairs"] == PAIR_COUNT and counts["steps"] == STEPS and counts["too_long"] == 0
    assert counts["accuracy"] == 1.0
    margins, losses = curve(run, "margin"), curve(run, "loss")
    assert len(losses) == STEPS and losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert margins[-1] > margins[0] + 0.05 and losses[-1] < losses[0]
    assert all(seconds > 0 for seconds in curve(run, "seconds"))
    assert all(1 <= step <= steps == STEPS for step, steps, _ in undisturbed.told)

    names = run.files("round-01")
    assert not [name for name in names if name.endswith(PICKLES)] and not run.exists("round-01/train")
    assert {"round-01/policy/config.json", "round-01/policy/model.safetensors", "round-01/policy/tokenizer.json"} <= set(names)
    policy = AutoModelForCausalLM.from_pretrained(run.path("round-01/policy"))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    changed = {name for name, value in policy.named_parameters() if not torch.equal(value, base.get_parameter(name))}
    assert changed and all("_proj" in name for name in changed)
    adapter = load_file(run.path("round-01/policy/adapter/adapter_model.safetensors"))
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in adapter.items())
    assert run.read_json("round-01/policy/adapter/adapter_config.json")["base_model_name_or_path"] == str(tiny_model)

    tokenizer = AutoTokenizer.from_pretrained(run.path("round-01/policy"))

    def preference(model: Any) -> float:
        def score(text: str) -> float:
            prompt, ids = tokenizer("Sentence 1:")["input_ids"], tokenizer("Sentence 1:" + text)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            return float(logits.gather(1, torch.tensor(ids[1:])[:, None])[len(prompt) - 1 :].sum())

        return score(" Ann1 met Bob.\n") - score(" The cat sat.\n")

    assert preference(policy) > preference(base)


@pytest.mark.slow
def test_two_workers_agree_with_one(tmp_path: Path, tiny_model: Path, undisturbed: Trained) -> None:
    one, two = undisturbed.run, folder_with(tmp_path, pairs_table(PAIR_COUNT))
    align(settings(tiny_model, workers=2, batch_size=1, epochs=EPOCHS), two, 1)  # two pairs each, one after the other
    assert curve(two, "loss")[:LATE] == pytest.approx(curve(one, "loss")[:LATE], abs=2e-4)
    assert curve(two, "margin")[:LATE] == pytest.approx(curve(one, "margin")[:LATE], abs=2e-3)
    assert two.read_json("round-01/alignment.json")["workers"] == 2


@pytest.mark.slow
def test_activations_computed_twice_change_nothing(tmp_path: Path, tiny_model: Path, undisturbed: Trained) -> None:
    run = folder_with(tmp_path, pairs_table(PAIR_COUNT))
    align(settings(tiny_model, gradient_checkpointing=True, epochs=EPOCHS), run, 1)
    assert curve(run, "loss") == pytest.approx(curve(undisturbed.run, "loss"), abs=1e-4)


@pytest.mark.slow
def test_full_training_sharded_and_in_bf16(tmp_path: Path, tiny_model: Path, ray_two_cpus: None) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    run = folder_with(tmp_path, pairs_table(8))
    counts = align(settings(tiny_model, workers=2, method="full", zero_stage=3, precision="bf16"), run, 1)
    assert counts["steps"] == 2
    assert curve(run, "loss")[0] == pytest.approx(0.6931, abs=1e-3)
    assert not [name for name in run.files("round-01") if name.endswith(PICKLES) or "adapter" in name]
    policy = AutoModelForCausalLM.from_pretrained(run.path("round-01/policy"))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert policy.dtype == base.dtype
    assert not torch.equal(policy.model.layers[0].mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight)


def test_pairs_that_are_all_longer_than_the_limit_are_refused_before_a_worker_starts(tmp_path: Path, tiny_model: Path) -> None:
    run = folder_with(tmp_path, pairs_table(4, rejected=" x" * 80))
    with pytest.raises(InputError, match="no pair fits"):
        align(settings(tiny_model), run, 1)
    assert not run.files("round-01")


@pytest.mark.parametrize(("margin", "chosen", "far"), [(9.0, -0.5, False), (12.0, 1.0, True), (9.0, -2.0, True)])
def test_a_policy_far_from_its_base_model_is_told(
    tmp_path: Path, tiny_model: Path, ray_two_cpus: None, monkeypatch: pytest.MonkeyPatch, margin: float, chosen: float, far: bool
) -> None:
    start = {"loss": 0.7, "accuracy": 0.5, "margin": 0.0, "chosen": 0.0, "seconds": 1.0}
    report = {"pairs": 8, "too_long": 0, "steps": 8, "curve": [start] * 6 + [{**start, "margin": margin, "chosen": chosen}] * 2}
    told: list[str] = []
    monkeypatch.setattr("divray.alignment._fit", lambda *_: report)
    monkeypatch.setattr("divray.console.log", told.append)
    assert align(settings(tiny_model), folder_with(tmp_path, pairs_table(8)), 1)["margin"] == margin
    assert [f"margin {margin}, reward of the chosen texts {chosen}" in line for line in told] == [True] * far


# interruptions ----------------------------------------------------------------------------------


def kill_train_workers() -> int:
    """Kill the Ray Train workers that descend from this process."""
    import psutil

    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in "".join(p.cmdline()[:1])]
    for worker in workers:
        worker.kill()
    return len(workers)


ALIGN = """
import sys
from pathlib import Path

import ray

sys.path.insert(0, sys.argv[1])
from test_alignment import align, RunFolder, settings

ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
align(settings(Path(sys.argv[3]), epochs=float(sys.argv[4])), RunFolder(sys.argv[2]), 1, lambda *news: print(*news, flush=True))
"""


@pytest.mark.slow
def test_a_killed_driver_and_a_killed_worker_are_resumed_exactly(tmp_path: Path, tiny_model: Path, undisturbed: Trained) -> None:
    run = folder_with(tmp_path / "run", pairs_table(PAIR_COUNT))
    arguments = [str(Path(__file__).parent), run.uri, str(tiny_model), str(EPOCHS)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with (
        (tmp_path / "stderr").open("w") as errors,
        subprocess.Popen([sys.executable, "-c", ALIGN, *arguments], stdout=subprocess.PIPE, stderr=errors, env=environment) as driver,
    ):
        assert driver.stdout is not None
        steps = (int(line.split()[0]) for line in driver.stdout if line.strip())
        reached = next((step for step in steps if step >= LATE), None)
        kill_tree(driver)
    assert reached is not None, (tmp_path / "stderr").read_text()
    assert not run.exists("round-01/alignment.json") and run.exists("round-01/train")

    killed: list[int] = []
    told: list[int] = []

    def watch(step: int, steps: int, note: str) -> None:
        told.append(step)
        if step >= LATER and not killed:
            killed.append(kill_train_workers())

    align(settings(tiny_model, epochs=EPOCHS), run, 1, on_progress=watch)
    assert killed == [1] and told[0] > FIRST_CHECKPOINT
    # Each kill comes behind a checkpoint whose report waits until Ray has taken the one before.
    assert run.read_json("round-01/alignment.json")["resumed_from"] >= 2 * FIRST_CHECKPOINT
    assert curve(run, "loss") == pytest.approx(curve(undisturbed.run, "loss"), abs=1e-5)
    assert not run.exists("round-01/train")


def test_checkpoints_whose_record_was_cut_short_are_not_used(tmp_path: Path) -> None:
    from divray.alignment import _drop_torn

    run = RunFolder(str(tmp_path))
    for name, record in (("dpo-cut", '{"chec'), ("dpo-whole", '{"checkpoint_results": []}')):
        run.write_text(f"train/{name}/checkpoint_manager_snapshot.json", record)
        _drop_torn(run, f"train/{name}")
    assert run.files("train") == ["train/dpo-whole/checkpoint_manager_snapshot.json"]
    _drop_torn(run, "train/dpo-new")
    assert run.files("train") == ["train/dpo-whole/checkpoint_manager_snapshot.json"]
