"""The sampling stage under the real Ray, with a plain function in the engine's place."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from begun_runs import begun, quickstart_with
from conftest import FASTER

from divray.config import Config
from divray.datasets.stage import load_task
from divray.engines import Answer
from divray.engines.complete import BLOCKS_IN_FLIGHT, answered, complete
from divray.engines.vllm import sampling_parameters
from divray.errors import EngineError, InputError
from divray.pipeline import STAGES, retry, run_stage, undo
from divray.prompts import request_rows
from divray.prompts.parsing import form_of
from divray.prompts.record import labels
from divray.prompts.waves import Tally, first_wave, next_counts, quota_account
from divray.relations import Relation
from divray.run_folder import RunFolder
from divray.sampling import failure_reason, parse_batch, parsed_records
from divray.sampling import run as sample
from divray.schemas import COMPLETIONS, PROMPTS, SCORES

SMALL = [
    *FASTER,
    "sampling.candidates_per_relation=8",
    "sampling.naive_candidates_per_relation=2",
    "engine.batch_size=8",
]
settings = partial(quickstart_with, *SMALL)


def playing(broken: Callable[[str], str] = lambda name: "") -> Answer:
    """An engine that answers by the request's id; ``broken`` names the error of a request, or ``""``."""

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        import hashlib

        name = row["candidate_id"]
        if error := broken(name):
            return {"error": error, "completion": ""}
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        words = ["Anton", "Berta", "Carla", "Doro", "Emil", "Frida", "Gesa", "Hugo", "Ilse", "Jonas", "Karla", "Lutz"]
        verbs = ["saw", "left", "met", "sold", "bought", "praised", "blamed", "found"]
        places = ["harbour", "market", "hall", "tower", "garden", "bridge", "mill", "chapel", "square", "ferry", "inn", "yard"]
        a, b, verb = words[number % 12], places[number // 12 % 12], verbs[number // 144 % 8]
        when = places[number // 1152 % 12]
        head, tail = f"{a} {number % 97}", f"{b} {number % 89}"
        text = f" {head}\nTail (thing): {tail}\nSentence: Near the {when} {head} {verb} the {tail} in {1900 + number % 83}."
        return {"completion": text, "generated_tokens": 9, "prompt_tokens": 40, "finish_reason": "stop"}

    return answer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("ValueError: min_p must be in [0, 1]", "rejected_request"),
        ("VLLMValidationError: The decoder prompt (length 5000) is longer than the maximum model length of 2048", "rejected_request"),
        ("APIConnectionError: Connection error.", "engine_error"),
        ("RuntimeError: out of memory", "engine_error"),
    ],
)
def test_whose_fault_an_error_is(error: str, reason: str) -> None:
    assert failure_reason(error) == reason


def test_failed_requests_are_listed_and_only_the_engines_own_are_tried_again(
    ray_two_cpus: None, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings()
    run = begun(config, uri)
    asked = run.read_table("round-00/prompts").to_pylist()
    run.write_table("round-00/prompts", run.read_table("round-00/prompts"), 16)
    flaky, refused, names = asked[1]["candidate_id"], asked[2]["candidate_id"], [row["candidate_id"] for row in asked]

    def errors(name: str) -> str:
        said = {
            flaky: "RuntimeError: a bad moment",
            refused: "ValueError: no",
            names[0]: "BadRequestError: longer than the maximum model length",
        }
        return said.get(name, "")

    counts = sample(config, run, 0, answer=playing(errors))
    assert counts["candidates"] == len(asked)
    rejected = {row["candidate_id"]: row["rejection"] for row in run.read_table("round-00/samples").to_pylist() if row["rejection"]}
    assert rejected == {names[0]: "rejected_request", flaky: "engine_error", refused: "rejected_request"}
    before = {row["candidate_id"]: row for row in run.read_table("round-00/completions").to_pylist()}

    run.finish("round-00.sample", 1.0, counts)
    still = playing(lambda name: "RuntimeError: again" if name == flaky else "RuntimeError: asked twice")
    monkeypatch.setattr("divray.sampling.run", partial(sample, answer=still))
    retry(config, run, None)
    assert "1 candidates tried again, 0 mended" in capsys.readouterr().err

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    again = playing(lambda name: "" if name == flaky else "RuntimeError: asked twice")
    monkeypatch.setattr("divray.sampling.run", partial(sample, answer=again))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("divray.sampling.parse_round", killed)
        retry(config, run, None)
    assert run.record("round-00.sample") is None
    run.finish("round-00.sample", 1.0, sample(config, run, 0, answer=playing(lambda name: "RuntimeError: asked twice")))
    retry(config, run, None)
    assert "0 candidates tried again, 0 mended" in capsys.readouterr().err
    counts = (run.record("round-00.sample") or {})["counts"]
    assert counts["rejections"] == {"rejected_request": 2}
    after = {row["candidate_id"]: row for row in run.read_table("round-00/completions").to_pylist()}
    assert after.keys() == before.keys()
    assert [name for name in names if after[name] != before[name]] == [flaky]
    undisturbed = playing()({"candidate_id": flaky})
    assert after[flaky]["completion"] == undisturbed["completion"]
    assert run.read_table("round-00/completions").schema.equals(COMPLETIONS)
    samples = run.read_table("round-00/samples")
    assert samples["candidate_id"].to_pylist() == sorted(names)
    assert Counter(samples["rejection"].to_pylist())[""] == len(names) - 2


def test_what_is_done_again_takes_what_came_after_off_the_record(ray_two_cpus: None, uri: str) -> None:
    config = settings()
    run = begun(config, uri)
    sample(config, run, 0, answer=playing())
    for name in ("prepare", "round-00.prompt", "round-00.sample", "round-00.score", "select"):
        run.finish(name, 1.0, {})
    undo(config, run, STAGES["score"], 0)
    assert run.record("round-00.sample") is not None
    assert run.record("round-00.score") is None and run.record("select") is None
    undo(config, run, STAGES["score"], 0)  # not on record: nothing to undo
    assert run.files("round-00/completions")
    undo(config, run, STAGES["prompt"], 0)
    assert run.record("round-00.sample") is None
    assert not run.files("round-00/completions")

    other = playing(lambda name: "RuntimeError: this time")
    assert sample(config, run, 0, answer=other)["valid"] == 0  # every candidate was asked for again


def test_lost_completions_are_asked_for_again(ray_two_cpus: None, uri: str) -> None:
    config = settings()
    run = begun(config, uri)
    run.write_table("round-00/prompts", run.read_table("round-00/prompts"), rows_per_file=16)
    counts = sample(config, run, 0, answer=playing())
    samples = run.read_table("round-00/samples")
    lost, cut, *_ = run.files("round-00/completions", ".parquet")
    run.delete(lost)
    run.write_bytes(cut, run.read_bytes(cut)[:-100])
    assert sample(config, run, 0, answer=playing()) == counts
    assert run.read_table("round-00/samples") == samples
    assert run.read_table("round-00/completions").num_rows == run.read_table("round-00/prompts").num_rows


def test_a_completion_that_is_lost_on_the_way_is_missed(ray_two_cpus: None, uri: str) -> None:
    config = settings()
    run = begun(config, uri)
    prompts = run.read_table("round-00/prompts")
    run.write_table("round-00/prompts", prompts, rows_per_file=16)

    def lose(*_: Any) -> None:  # called once more after the last file is written
        for file in run.files("round-00/completions", ".parquet")[:1]:
            run.delete(file)

    ask = partial(complete, config, run, "round-00/prompts", "round-00/completions", config.models.llm, answer=playing())
    with pytest.raises(EngineError, match=rf"\d+ of {prompts.num_rows} completions are missing .* the same command"):
        ask(on_progress=lose)
    ask()
    assert len(answered(run, "round-00/completions")) == prompts.num_rows


def test_a_pool_of_engines_starts_as_one_and_gets_blocks_for_each(ray_two_cpus: None, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.data

    in_flight: list[int] = []

    def strategy(**options: int) -> Any:
        in_flight.append(options["max_tasks_in_flight_per_actor"])
        return real(**options)

    real = ray.data.ActorPoolStrategy
    monkeypatch.setattr(ray.data, "ActorPoolStrategy", strategy)
    config = settings("engine.concurrency=4", "engine.cpus=0.25")
    run, play = begun(config, uri), playing()

    def once_all_are_there(row: dict[str, Any]) -> dict[str, Any]:
        import json
        import time

        records = list(Path(uri, "round-00", "completions.engines").glob("*.json"))
        for _ in range(600):
            if records and len(json.loads(records[0].read_text())["engines"]) == 4:
                return play(row)
            time.sleep(0.1)
            records = list(Path(uri, "round-00", "completions.engines").glob("*.json"))
        raise TimeoutError("the pool is not full")

    assert sample(config, run, 0, answer=once_all_are_there)["candidates"] == 60
    (record,) = (run.read_json(name) for name in run.files("round-00/completions.engines"))
    assert len(record["engines"]) == 4 and in_flight == [4 * BLOCKS_IN_FLIGHT]


def test_a_round_that_is_not_sampled_yet_has_nothing_to_try_again(uri: str) -> None:
    run = RunFolder(uri)
    with pytest.raises(InputError, match=r"round-00\.sample"):
        retry(settings(), run, None)


@pytest.fixture
def small_disk(uri: str) -> Iterator[Callable[[str], None]]:
    """The table of completions on a disk of its own, which has room for a part of it; the function changes its size."""
    place = Path(uri, "round-00", "completions")
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o"]
    if shutil.which("mount") is None or subprocess.run([*mount, "size=24k", "divray", place], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield lambda size: subprocess.run([*mount, f"remount,size={size}", "divray", place], check=True) and None
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_nothing_half_written_that_counts(ray_two_cpus: None, uri: str, small_disk: Callable[[str], None]) -> None:
    config = settings()
    run = begun(config, uri)
    prompts = run.read_table("round-00/prompts")
    run.write_table("round-00/prompts", prompts, rows_per_file=8)
    total = prompts.num_rows
    with pytest.raises(Exception, match="No space left"):
        complete(config, run, "round-00/prompts", "round-00/completions", config.models.llm, answer=playing())
    assert len(answered(run, "round-00/completions")) < total
    small_disk("10m")
    counts = sample(config, run, 0, answer=playing())
    names = run.read_table("round-00/completions")["candidate_id"].to_pylist()
    assert len(names) == len(set(names)) == total == counts["candidates"]


RECORDS = (
    " The storm\nTail (place): coast\nSentence: The storm hit the coast at dawn.\n",
    " flood\nTail (place): town\nSentence: A flood came to the town then.\n",
    " gale\nTail (place): mast\nSentence: The gale broke the mast in two.\n",
)
FORM = form_of([], [])


def test_several_records_in_one_completion_are_candidates_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divray.prompts.strategies.SENTENCES", 3)
    config = settings("prompts.strategies={all_at_once: 1}", "prompts.candidates_per_prompt=8")
    task = load_task(config)
    requests = [row for row in request_rows(config, task.relations, task.seeds, 0) if row["strategy"] == "all_at_once"]
    assert [row["sentences"] for row in requests[:3]] == [3, 3, 2]
    assert [row["candidate_id"][-6:] for row in requests[:3]] == ["000000", "000003", "000006"]
    relation = task.relations[0]
    kinds = [record.replace("(place)", f"({relation.tail_type})") for record in RECORDS]
    two, three = (f"\n{labels(relation)[0]}".join(kinds[:count]) for count in (2, 3))
    assert [bool(re.fullmatch(row["pattern"], three)) for row in requests[:3]] == [True, True, False]
    assert [bool(re.fullmatch(row["pattern"], two)) for row in requests[:3]] == [False, False, True]
    parameters = sampling_parameters(config, requests[0], greedy=False)
    assert (parameters["max_tokens"], "stop" in parameters) == (3 * config.sampling.max_tokens, False)

    came = {"completion": two, "generated_tokens": 20, "finish_reason": "stop", "error": ""}
    types = {relation.name: ("", "") for relation in task.relations}
    samples = parse_batch(pa.Table.from_pylist([{**row, **came} for row in requests], COMPLETIONS), types, FORM).to_pylist()
    assert len({row["candidate_id"] for row in samples}) == len(samples) == 6 * 8
    assert Counter(row["rejection"] for row in samples) == {"": 6 * 6, "not_written": 6 * 2}
    assert samples[1]["text"] == "A flood came to the town then."


def rejections(completion: str, asked: int = 1, given: tuple[str, str] = ("", ""), **other: Any) -> list[str]:
    row = {
        "relation": "r",
        "completion": completion,
        "sentences": asked,
        "head": given[0],
        "tail": given[1],
        "error": "",
    }
    return [parsed.rejection for parsed in parsed_records({**row, "finish_reason": "stop", **other}, FORM)]


@pytest.mark.parametrize(
    ("completion", "asked", "finish_reason", "reasons"),
    [
        (" ", 2, "stop", ["empty"] * 2),
        ("Sure, here it comes.", 1, "stop", ["no_record"]),
        ("Sure, here it comes.", 2, "stop", ["not_written"] * 2),
        ("Sure, here it", 1, "length", ["truncated"]),
        (RECORDS[0], 2, "stop", ["", "not_written"]),
        (f"{RECORDS[0]}\nHead (event):{RECORDS[1][:-9]}", 3, "length", ["", "truncated", "truncated"]),
        (f"{RECORDS[0]}\nHead (event): A fl", 3, "length", ["", "truncated", "truncated"]),
        (f"{RECORDS[0]}\nHead (event):{RECORDS[1]}\nHead (event):{RECORDS[2][:-9]}", 2, "length", ["", ""]),
        (f"{RECORDS[0]}\nHead: x\nTail: y\nSentence: z", 2, "stop", ["", "missing_head"]),
        ('{"head": "storm", "tail": "coast", "sentence": "The storm hit the coast twice."}', 1, "stop", [""]),
        (
            '[{"head": "storm", "tail": "coast", "sentence": "The storm hit the coast twice."}, {"head": "a fl',
            2,
            "length",
            ["", "truncated"],
        ),
    ],
)
def test_only_what_was_not_written_whole_is_lost(completion: str, asked: int, finish_reason: str, reasons: list[str]) -> None:
    assert rejections(completion, asked, finish_reason=finish_reason) == reasons


def test_of_a_failed_request_every_candidate_has_its_reason() -> None:
    assert rejections("", 2, error="ValueError: no") == ["rejected_request"] * 2


def test_the_finish_reason_says_whether_a_record_is_whole() -> None:
    assert rejections(RECORDS[0].rstrip(), finish_reason="stop") == [""]
    assert rejections(RECORDS[0].rstrip(), finish_reason="length") == ["truncated"]


def test_a_given_pair_is_found_in_the_sentence_alone() -> None:
    assert rejections(" The storm hit the coast twice.", given=("storm", "coast")) == [""]
    assert rejections(" The storm hit the land twice.", given=("storm", "coast")) == ["missing_tail"]
    assert rejections(" The storm hit the coast tw", given=("storm", "coast"), finish_reason="length") == ["truncated"]


@pytest.mark.parametrize(
    ("overrides", "given", "pattern", "stop"),
    [
        ([], "", "", ["\n\n"]),
        ([], "Ada", "", ["\n"]),
        (["prompts.style=chat"], "", '{"type": "object"}', None),
        (["prompts.style=chat"], "Ada", '{"type": "object"}', None),
    ],
)
def test_a_record_ends_at_its_last_line_and_a_chats_answer_by_itself(overrides: list[str], given: str, pattern: str, stop: Any) -> None:
    row = {"strategy": "independent", "seed": 5, "sentences": 1, "head": given, "pattern": pattern}
    parameters = sampling_parameters(settings(*overrides), row, greedy=False)
    assert parameters.get("stop") == stop
    assert parameters.get("structured_outputs") == ({"json": pattern} if pattern else None)


def opening_counts(config: Config, relations: list[str]) -> dict[str, int]:
    """Relation -> candidates in the first wave of a round after round 0."""
    wave = first_wave(config, [Relation(name, "The head and the tail.") for name in relations], 1)
    return {name: sum(counts.values()) for name, counts in wave.count.items()}


def test_waves_without_a_quota_spread_the_candidates() -> None:
    config = settings("sampling.waves=3", "sampling.candidates_per_relation=10")
    asked = opening_counts(config, ["a", "b"])["a"]
    counts = [asked]
    for wave in (1, 2):
        wanted = next_counts(config, {"a": Tally(asked, 0)}, wave)
        counts.append(wanted["a"])
        asked += wanted["a"]
    assert counts == [3, 4, 3]
    assert next_counts(config, {"a": Tally(10, 0)}, 3) == {}


def test_the_budget_goes_to_the_relations_that_are_short() -> None:
    config = settings("sampling.quota=10", "sampling.candidates_per_relation=40")
    assert opening_counts(config, ["full", "half", "poor"]) == {"full": 20, "half": 20, "poor": 20}
    tallies = {"full": Tally(20, 11), "half": Tally(20, 5), "poor": Tally(20, 1)}
    wanted = next_counts(config, tallies, 1)
    assert wanted.keys() == {"half", "poor"}
    assert wanted["half"] < wanted["poor"]
    assert sum(wanted.values()) <= 3 * 40 - 60
    assert next_counts(config, {"full": Tally(20, 11)}, 1) == next_counts(config, tallies, 6) == {}


def test_the_candidates_of_a_round_end_it() -> None:
    config = settings("sampling.quota=10", "sampling.candidates_per_relation=20")
    tallies = {"full": Tally(20, 11), "half": Tally(20, 5), "poor": Tally(20, 1)}
    assert next_counts(config, tallies, 1) == {}


def test_the_account_of_a_quota_says_what_is_missing() -> None:
    account = quota_account(10, {"full": Tally(20, 11), "poor": Tally(60, 4)})
    assert account["relations"]["poor"] == {"asked": 60, "accepted": 4, "missing": 6}
    assert (account["quota"], account["missing"]) == (10, 6)


def score_by_id(run: RunFolder, round: int = 0) -> None:
    """In place of the score stage, which has tests of its own: two thirds of the valid samples are accepted."""
    rows = [row for row in run.read_table(f"round-{round:02d}/samples").to_pylist() if not row["rejection"]]
    scored = [{**row, "unique": True, "correct": sum(row["candidate_id"].encode()) % 3 > 0, "correctness": 0.5} for row in rows]
    run.write_table(f"round-{round:02d}/scores", pa.Table.from_pylist(scored, SCORES))


def in_waves(config: Config, run: RunFolder, answer: Answer) -> dict[str, Any]:
    """Sample round 0, and score it where the stage asks for that."""
    while (counts := sample(config, run, 0, answer=answer)).get("then") == "score":
        score_by_id(run)
    return counts


def test_a_stage_that_needs_another_goes_on_after_it(ray_two_cpus: None, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, ran = settings(), []
    run = begun(config, uri)

    def sampled(*_: Any) -> dict[str, Any]:
        ran.append("sample")
        return {"candidates": 3} if "score" in ran else {"candidates": 2, "then": "score"}

    monkeypatch.setattr("divray.sampling.run", sampled)
    monkeypatch.setattr("divray.scoring.stage.run", lambda *_: ran.append("score"))
    assert run_stage(config, run, STAGES["sample"], 0) == {"candidates": 3}
    assert ran == ["sample", "score", "sample"]
    assert run.record("round-00.sample") is not None and run.record("round-00.score") is None


@pytest.mark.slow
def test_a_quota_is_met_in_waves_that_a_kill_does_not_change(ray_two_cpus: None, uri: str) -> None:
    overrides = ["sampling.quota=6", "sampling.waves=3", "sampling.candidates_per_relation=20", "sampling.naive_candidates_per_relation=0"]
    config = settings(*overrides, "prompts.strategies={one_by_one: 1}")
    run = begun(config, uri)
    broken = playing(lambda name: "ValueError: no" if "born" in name and name < "r00-born-in-one_by_one-000008" else "")
    counts = in_waves(config, run, broken)
    account = run.read_json("round-00/quota.json")
    prompts = run.read_table("round-00/prompts").to_pylist()
    assert {name: entry["asked"] for name, entry in account["relations"].items()} == Counter(row["relation"] for row in prompts)
    assert len({row["candidate_id"] for row in prompts}) == len(prompts) == counts["candidates"] <= 6 * 20
    assert account["relations"]["born_in"]["asked"] == max(entry["asked"] for entry in account["relations"].values()) > 12
    assert (account["missing"], counts["missing"]) == (0, 0)
    later = [row for row in prompts if "-w01-" in row["prompt_id"]]
    assert any(name.startswith("r00-") for row in later for name in row["demonstrations"])

    # As after a kill while the second wave's prompts were being written: they are planned again, and come out the same.
    other = begun(config, f"{uri}-2")
    complete(config, other, "round-00/prompts", "round-00/completions", config.models.llm, answer=broken)
    stray = pa.Table.from_pylist([{**later[0], "candidate_id": "stray"}], PROMPTS)
    other.write_parquet("round-00/prompts/wave-01-part-000007.parquet", stray)
    assert in_waves(config, other, broken) == counts
    assert other.read_table("round-00/prompts") == run.read_table("round-00/prompts")
    assert other.read_table("round-00/samples") == run.read_table("round-00/samples")
    assert other.read_json("round-00/quota.json") == account
