from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from divray.errors import InputError
from divray.extraction.predict import predict
from divray.extraction.training import SELF_TRAINED, Hyperparameters, fit, train, training_rows, untrained
from divray.models import local_model
from divray.relations import Example, Relation

NAMES = ["Ada Lovelace", "Omar Haddad", "Clara Holt", "Tom Becker", "Rosa Vidal", "Priya Nair"]
PLACES = ["Alden", "Port Selby", "Monte Claro", "Kestrel Bay", "Rome", "Akoma Ridge"]
WORDING = {"born_in": "{h} was born in {t}.", "works_in": "{h} has an office job in {t}."}
LABELS = list(WORDING)
RELATIONS = [Relation("born_in", "The head was born in the tail."), Relation("works_in", "The head has a job in the tail.")]
CLOSED, TUNED = Hyperparameters(), Hyperparameters(learning_rate=3e-4, epochs=4)


def sentence(relation: str, name: str, place: str) -> Example:
    text = WORDING[relation].format(h=name, t=place)
    start = text.index(place)
    return Example(text, (0, len(name)), (start, start + len(place)), relation, "person", "place", f"{relation}-{name}")


TRAINING = [sentence(r, n, p) for r in LABELS for n, p in zip(NAMES[:4], PLACES[:4], strict=True)]
HELD_OUT = [sentence(r, n, p) for r in LABELS for n, p in zip(NAMES[4:], PLACES[4:], strict=True)]


@pytest.fixture(scope="module")
def model():
    return train(TRAINING, RELATIONS, "embedded:minilm", CLOSED, seed=1)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    return folder


def test_learns_two_relations(model):
    found = model.predict(HELD_OUT)
    assert found.labels == [e.relation for e in HELD_OUT]
    assert found.probabilities.shape == (4, 2)
    assert np.allclose(found.probabilities.sum(axis=1), 1, atol=1e-3)


def test_predictions_do_not_depend_on_the_batches(model, monkeypatch):
    whole = model.predict(HELD_OUT).probabilities
    assert np.allclose(model.predict(HELD_OUT[::-1]).probabilities[::-1], whole, atol=1e-4)
    monkeypatch.setattr("divray.extraction.model.BATCH_TOKENS", 1)
    assert np.allclose(model.predict(HELD_OUT).probabilities, whole, atol=5e-3)


def test_the_closed_form_depends_on_the_rows_alone(model):
    again = train(TRAINING[::-1], RELATIONS, "embedded:minilm", CLOSED, seed=2)
    assert np.array_equal(again.predict(HELD_OUT).probabilities, model.predict(HELD_OUT).probabilities)


def test_a_row_counts_as_often_as_its_weight_says(model):
    doubled = train([*TRAINING, TRAINING[0]], RELATIONS, "embedded:minilm", CLOSED, seed=1).predict(HELD_OUT).probabilities
    twice = [replace(TRAINING[0], weight=2.0), *TRAINING[1:]]
    weighed = train(twice, RELATIONS, "embedded:minilm", CLOSED, seed=1).predict(HELD_OUT).probabilities
    wrong = [*TRAINING, *(replace(one, relation="works_in", weight=1e-9) for one in TRAINING[:4])]
    without = train(wrong, RELATIONS, "embedded:minilm", CLOSED, seed=1).predict(HELD_OUT).probabilities
    assert np.allclose(weighed, doubled, atol=0.1)
    assert np.allclose(without, model.predict(HELD_OUT).probabilities, atol=0.02)


@pytest.mark.slow
def test_the_tuned_network_votes_beside_the_closed_form_and_follows_its_seed(model, tmp_path):
    from divray.extraction.model import RelationExtractor

    made = [train(rows, RELATIONS, "embedded:minilm", TUNED, seed) for rows, seed in ((TRAINING, 1), (TRAINING[::-1], 1), (TRAINING, 2))]
    first, again, other = (one.tuned.classifier.weight.tolist() for one in made)
    assert first == again and first != other
    assert made[0].classifier.weight.tolist() == model.classifier.weight.tolist()
    found = made[0].predict(HELD_OUT)
    assert found.labels == [e.relation for e in HELD_OUT]
    made[0].save(tmp_path)
    assert np.array_equal(RelationExtractor.load(str(tmp_path)).predict(HELD_OUT).probabilities, found.probabilities)
    closed = made[0].features(TRAINING) @ made[0].classifier.weight.detach().numpy().T + made[0].classifier.bias.detach().numpy()
    assert np.isclose(made[0].tuned_scores(TRAINING).std(), closed.std(), rtol=0.1)


def test_an_encoder_whose_layers_are_of_several_kinds_is_tuned_and_saved(tmp_path):
    from transformers import AutoModel, AutoTokenizer, ModernBertConfig

    from divray.extraction.model import RelationExtractor

    tokenizer = AutoTokenizer.from_pretrained(local_model("embedded:minilm"))
    marks = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    encoder = AutoModel.from_config(ModernBertConfig(vocab_size=len(tokenizer), **marks, **small))
    for part in (encoder, tokenizer):
        part.save_pretrained(tmp_path / "encoder")
    made = train(TRAINING, RELATIONS, str(tmp_path / "encoder"), TUNED, seed=1)
    made.save(tmp_path / "model")
    found = RelationExtractor.load(str(tmp_path / "model")).predict(HELD_OUT)
    assert np.array_equal(found.probabilities, made.predict(HELD_OUT).probabilities)


def test_an_example_of_a_relation_with_an_inverse_is_one_of_the_inverse_too():
    relations = [Relation("employs", "x", inverse="works_for"), Relation("works_for", "y", inverse="employs"), Relation("other", "z")]
    given = [sentence("born_in", n, p) for n, p in zip(NAMES[:3], PLACES[:3], strict=True)]
    given = [replace(one, relation=r.name, weight=w) for one, r, w in zip(given, relations, [1.0, 0.5, 1.0], strict=True)]
    rows = training_rows(given, relations)
    assert rows.targets.tolist() == [0, 1, 2, 1, 0]
    assert rows.weights.tolist() == [1.0, 0.5, 1.0, 1.0, 0.5] and rows.origin.tolist() == [0, 1, 2, 0, 1]
    assert [(one.head_text, one.tail_text, one.head_type) for one in rows.examples[3:]] == [
        (PLACES[0], NAMES[0], "place"),
        (PLACES[1], NAMES[1], "place"),
    ]


def test_descriptions_tell_apart_what_the_rows_do_not():
    swapped = [RELATIONS[0], Relation("works_in", RELATIONS[0].description)]
    rows = [replace(one, relation="works_in") for one in TRAINING[:4]] + TRAINING[:4]  # the same sentences for both
    found = train(rows, swapped, "embedded:minilm", CLOSED, 0).predict(HELD_OUT[:2]).probabilities
    assert np.allclose(found, 0.5, atol=1e-3)
    told = train(rows, RELATIONS, "embedded:minilm", CLOSED, 0).predict([HELD_OUT[0], HELD_OUT[2]]).probabilities
    assert told[0, 0] > told[1, 0]


def test_unlabelled_sentences_are_taken_in_where_the_model_is_surest(monkeypatch):
    monkeypatch.setattr("divray.extraction.training.SUREST", 1)
    few = [TRAINING[0], TRAINING[1], TRAINING[4]]  # two of born_in, one of works_in
    unlabelled = [replace(example, relation="") for example in [*TRAINING[5:], *HELD_OUT]]
    own = untrained(RELATIONS, "embedded:minilm", CLOSED)
    rows, _ = fit(own, [*unlabelled, *few], RELATIONS, CLOSED, own.features)
    examples = rows.examples
    assert examples[:3] == few and rows.weights.tolist() == [1.0] * 3 + [SELF_TRAINED] * 3
    assert Counter(example.relation for example in examples[3:]) == {"born_in": 2, "works_in": 1}
    assert {replace(example, relation="", weight=1.0) for example in examples[3:]} <= set(unlabelled)
    repeated = [replace(example, relation="") for example in few]
    fewer = [*few[:2], replace(few[2], weight=0.5)]  # of the none that count in full there is no room for more
    again = fit(own, [*fewer, *repeated, *unlabelled], RELATIONS, CLOSED, own.features)[0].examples
    assert {example.text for example in again[3:]}.isdisjoint(example.text for example in few)
    assert {example.relation for example in again[3:]} == {"born_in"}
    wording = {example.text: example.relation for example in [*TRAINING, *HELD_OUT]}
    assert all(wording[example.text] == example.relation for example in examples[3:])
    assert train([*unlabelled, *few], RELATIONS, "embedded:minilm", CLOSED, seed=1).predict(HELD_OUT).labels == [
        e.relation for e in HELD_OUT
    ]


def test_training_leaves_the_callers_generator_and_threads_alone():
    import torch

    torch.manual_seed(5)
    threads, expected = torch.get_num_threads(), torch.random.get_rng_state()
    train(TRAINING[:2], RELATIONS, "embedded:minilm", TUNED, 0)
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert torch.get_num_threads() == threads


def test_a_label_without_examples_stays_an_output(tmp_path):
    model = train(TRAINING, [*RELATIONS, Relation("lives_in", "The head lives in the tail.")], "embedded:minilm", CLOSED, seed=1)
    assert model.predict(HELD_OUT).probabilities.shape == (4, 3)
    assert model.config.labels == [*LABELS, "lives_in"]


def test_saved_model_predicts_the_same_and_holds_no_pickles(model, saved):
    from divray.extraction.model import RelationExtractor

    loaded = RelationExtractor.load(str(saved))
    assert loaded.config.labels == LABELS
    assert np.array_equal(loaded.predict(HELD_OUT).probabilities, model.predict(HELD_OUT).probabilities)
    names = {file.name for file in saved.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert all(name.endswith((".safetensors", ".json", ".txt")) for name in names)
    assert json.loads((saved / "config.json").read_text())["id2label"] == {"0": "born_in", "1": "works_in"}


def test_predict_file_of_marked_sentences_and_spans(saved, tmp_path):
    rows = [
        {"text": "[Rosa Vidal] was born in {Rome}.", "head_type": "person", "tail_type": "place", "note": 1},
        {"text": "Tom Becker has an office job in Rome.", "head": [0, 10], "tail": [32, 36], "relation": "gold"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    assert predict(str(saved), str(source), str(tmp_path / "out" / "found.jsonl")) == 2
    found = [json.loads(line) for line in (tmp_path / "out" / "found.jsonl").read_text().splitlines()]
    assert [row["relation"] for row in found] == LABELS
    assert found[0]["note"] == 1 and found[1]["given_relation"] == "gold"
    assert all(0 <= row["probability"] <= 1 for row in found)


def test_predict_abstains_below_the_threshold(saved, tmp_path):
    source = tmp_path / "in.jsonl"
    texts = ["[Rosa Vidal] was born in {Rome}.", "[Tom Becker] and {Rome}"]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert predict(str(saved), str(source), str(tmp_path / "found.jsonl"), threshold=0.95) == 2
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["relation"] for row in found] == ["born_in", None]
    assert 0 < found[1]["probability"] < 0.95


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "Rosa was born in {Rome}."}', "line 1: no head and tail, and not one of each marked"),
        ('{"text": "Rosa was born in Rome.", "head": [0, 4], "tail": [17, 99]}', "line 1, tail: .17, 99. does not lie in the text"),
        ('{"text": "Rosa was born in Rome.", "head": [0, 4]}', "line 1, tail"),
        ('{"sentence": "x"}', "line 1, text: missing"),
        ("{", "line 1: no valid JSON"),
        ("", "no rows"),
    ],
)
def test_predict_names_the_bad_row_and_writes_nothing(saved, tmp_path, line, problem):
    (tmp_path / "in.jsonl").write_text(line)
    with pytest.raises(InputError, match=problem):
        predict(str(saved), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def test_predict_refuses_another_kind_of_model_and_file(saved, tmp_path):
    (tmp_path / "in.jsonl").write_text("{}")
    with pytest.raises(InputError, match="not a relation extractor"):
        predict("embedded:minilm", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    for source, target in (("in.jsonl", "out.csv"), ("in.parquet", "out.jsonl")):
        with pytest.raises(InputError, match=r"(out\.csv|in\.parquet): no \.jsonl file.*to_json"):
            predict(str(saved), str(tmp_path / source), str(tmp_path / target))
    with pytest.raises(InputError, match=r"none\.jsonl: not readable .No such file"):
        predict(str(saved), str(tmp_path / "none.jsonl"), str(tmp_path / "out.jsonl"))


def test_bad_input_is_refused_before_torch_is_loaded(saved, tmp_path):
    (tmp_path / "in.jsonl").write_text("{}")
    code = "import sys; from divray.cli import main; print(main(sys.argv[1:]), sorted({'torch', 'transformers'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, "predict", str(saved), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n" and "line 1, text: missing" in done.stderr


def lacking_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("classifier.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def of_another_release(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "born_in"}, "label2id": {"born_in": 0}}))


def with_settings(**changed):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))

    return spoil


def with_weights_of_nan(folder):
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no whole relation extractor .no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "no whole relation extractor"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: line 1: no valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: no JSON object"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json: line 1: invalid UTF-8"),
        (lambda folder: (folder / "config.json").write_text(""), "config.json: the file is empty"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no .*safetensors"),
        (lacking_a_weight, "no whole relation extractor .no weights of classifier.weight"),
        (of_another_release, "no whole relation extractor"),
        (with_weights_of_nan, "no whole relation extractor .*finite"),
        *((with_settings(layer=value), "no whole relation extractor") for value in (99, "3", 1.5, None)),
        *((with_settings(max_tokens=value), "no whole relation extractor") for value in (0, -5, 513, 96.5, "96", None)),
        *((with_settings(view_weights=value), "no whole relation extractor") for value in ([1], [1, 1, 1, float("nan")], "1111", None)),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json: no model_type, not a relation extractor"),
    ],
)
def test_a_model_that_is_not_whole_is_one_line(saved, tmp_path, spoil, problem):
    folder = shutil.copytree(saved, tmp_path / "model")
    spoil(folder)
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "[Rosa Vidal] was born in {Rome}."}))
    with pytest.raises(InputError, match=problem) as caught:
        predict(str(folder), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


MARKED = "[Rosa Vidal] was born in {Rome}."


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_predict_keeps_columns_that_begin_late_and_numbers_that_widen(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("divray.extraction.predict.BATCH", 16)
    rows = [{"text": MARKED, "score": 1} for _ in range(20)]
    rows += [{"text": MARKED, "score": 2.5, "late": {"a": None}}, {"text": MARKED, "score": None, "late": {"a": 1, "b": [2]}}]
    source = lines(tmp_path / "in.jsonl", rows)
    assert predict(str(saved), source, str(tmp_path / "out.jsonl")) == 22
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in row if key not in ("relation", "probability")} for row in found] == rows


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"relation": "a", "given_relation": "b"}], "given_relation: stands there beside relation"),
        ([{"probability": 1}, {"given_probability": 2}], "given_probability: stands there beside probability"),
    ],
)
def test_predict_refuses_a_name_that_it_needs(saved, tmp_path, rows, problem):
    source = lines(tmp_path / "in.jsonl", [{"text": MARKED, **row} for row in rows])
    with pytest.raises(InputError, match=problem):
        predict(str(saved), source, str(tmp_path / "out.jsonl"))
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"text": "%s"}\n{"text": "%s", "n": "\\ud83d"}', "line 2: no valid JSON .*surrogates not allowed"),
        ('{"text": "Rosa is in Rome.", "head": [0, 4], "tail": [2, 6]}', "line 1, head, tail: overlapping entities"),
        ('{"text": "Rosa is in Rome.", "head": [0, 4], "tail": [4, 5]}', "line 1, head, tail: blank entity"),
        ('{"text": "Rosa is in Rome.", "head": [0, true], "tail": [4, 5]}', "line 1, head: .0, True. is no span"),
    ],
)
def test_predict_reads_jsonl_as_the_tasks_do(saved, tmp_path, text, problem):
    (tmp_path / "in.jsonl").write_text(text.replace("%s", MARKED))
    with pytest.raises(InputError, match=problem):
        predict(str(saved), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))


def test_predict_takes_a_byte_order_mark_and_every_form_of_a_span(saved, tmp_path):
    text = "Rosa Vidal was born in Rome."
    forms = [
        {"head": {"text": "Rosa Vidal"}, "tail": {"start": 23, "end": 27}},
        {"head_start": 0, "head_end": 11, "tail": [22, 27]},
    ]
    rows = "".join(json.dumps({"text": text, **form}) + "\r\n" for form in forms)
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert predict(str(saved), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")) == 2
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found[0]["probability"] == found[1]["probability"] and {row["relation"] for row in found} == {"born_in"}


def test_the_threshold_compares_the_probability_that_is_written(saved, tmp_path):
    source = lines(tmp_path / "in.jsonl", [{"text": "[Tom Becker] and {Rome}"}])
    written, bar = [], 0.0
    for above in (0.0, 0.0, 1e-9):
        predict(str(saved), source, str(tmp_path / "out.jsonl"), threshold=bar + above)
        written.append(json.loads((tmp_path / "out.jsonl").read_text()))
        bar = written[0]["probability"]
    assert 0.5 <= bar < 0.95 and bar == round(bar, 4)
    assert [row["relation"] for row in written] == [written[0]["relation"]] * 2 + [None]


def test_predict_passes_numbers_through_that_json_has_not(saved, tmp_path):
    (tmp_path / "in.jsonl").write_text(f'{{"text": "{MARKED}", "x": [NaN, -Infinity]}}')
    predict(str(saved), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"))
    assert '"x": [NaN, -Infinity]' in (tmp_path / "out.jsonl").read_text()
