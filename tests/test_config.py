from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from divray.config import dump_config, load_config, override_config, parse_config, read_config
from divray.errors import InputError
from divray.quickstart import folder
from divray.run_folder import RunFolder
from divray.textfiles import parse_yaml

QUICKSTART = folder() / "quickstart.yaml"


def test_the_command_line_stands_over_the_file_over_the_default() -> None:
    config = load_config(QUICKSTART, ["selection.k=3", "engine.vllm.max_num_seqs=7"])
    assert config.selection.k == 3
    assert config.engine.vllm == {"max_num_seqs": 7}
    assert config.sampling.max_tokens == 96


@pytest.mark.parametrize(
    ("override", "field", "mend"),
    [
        ("selection.kk=3", "selection.kk", "Did you mean `k`?"),
        ("selection.k=0", "selection.k", "It is now 0"),
        ("selection.k=many", "selection.k", "It is now 'many'"),
        ("nonsense=1", "nonsense", "Known keys"),
        ("engine.endpoint={url: http://h/v1, model: m, timout: 1}", "engine.endpoint.timout", "Did you mean `timeout`?"),
        ("selection.k", "selection.k", "Write e.g."),
        ("selection.k=true", "selection.k", "It is now True"),
        ("selection.k=yes", "selection.k", "It is now True"),
        ("sampling.temperature=.inf", "sampling.temperature", "finite number"),
        ("sampling.temperature=[", "sampling.temperature", "no valid YAML"),
        ("prompts.strategies={independent: 1, independent: 2}", "prompts.strategies", "stands there twice"),
        ("prompts.strategies={on: 1}", "prompts.strategies", "should be a valid string"),
    ],
)
def test_a_bad_key_names_field_and_mend(override: str, field: str, mend: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(QUICKSTART, [override])
    assert field in str(caught.value)
    assert mend in str(caught.value)
    assert caught.value.exit_code == 2


TWICE = "selection: {k: 8}\ntask: {name: x}\nselection:\n  diversity_weight: 0.1\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2]", "not a YAML mapping"),
        ("task: [", "line 1: no valid YAML"),
        ("", "the file is empty"),
        ("task: {name: x}", "task.relations: missing"),
        (TWICE, "line 3: no valid YAML .key 'selection' stands there twice"),
        (None, "no such file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"run\.yaml: {problem}"):
        load_config(path)


def test_a_number_with_an_exponent_is_a_number() -> None:
    config = load_config(QUICKSTART, ["alignment.learning_rate=3e-4", "preferences.max_pairs_per_relation=3", "engine.concurrency=[1, 2]"])
    assert (config.alignment.learning_rate, config.preferences.max_pairs_per_relation, config.engine.pool) == (3e-4, 3, (1, 2))


def test_yaml_tags_do_not_run(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: !!python/object/apply:os.system ['touch " + str(tmp_path / "ran") + "']\n")
    with pytest.raises(InputError):
        load_config(path)
    assert not (tmp_path / "ran").exists()


def test_only_how_may_change_in_a_run() -> None:
    config = load_config(QUICKSTART)
    changed = override_config(config, ["engine.batch_size=4"])
    assert changed.engine.batch_size == 4
    assert changed.what() == config.what()
    with pytest.raises(InputError, match="keeps its settings"):
        override_config(config, ["selection.k=4"])


def test_the_page_of_settings_is_the_code_s() -> None:
    file = Path(__file__).parents[1] / "docs" / "configuration.py"
    made = runpy.run_path(str(file))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run: python docs/configuration.py"


@pytest.mark.parametrize(
    "key", ["task.data", "task.relations", "task.test", "task.train", "prompts.pairs_file", "models.llm", "models.encoder"]
)
@pytest.mark.parametrize("path", ["~nosuchuser/x", '"a\\0b"'])
def test_a_path_that_can_be_none_is_refused_by_its_key(key: str, path: str) -> None:
    with pytest.raises(InputError, match=rf"{key}: (no home folder|a null character)"):
        load_config(QUICKSTART, [f"{key}={path}"])


@pytest.mark.parametrize("text", ['task: {name: "x', "- a", "\x00"])
def test_a_damaged_config_of_a_run_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml"):
        read_config(RunFolder(str(tmp_path)))


def test_a_resolved_config_reads_back_the_same_and_texts_that_read_like_numbers_stay_texts() -> None:
    config = load_config(QUICKSTART, ['task.name="1e3"', 'task.none_label="no"'])
    assert parse_config(parse_yaml(dump_config(config), "x"), "x") == config


def test_a_home_folder_is_one_wherever_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("task: {name: t, relations: rel.yaml}")
    assert load_config("~/run.yaml").task.relations == str(tmp_path / "rel.yaml")
