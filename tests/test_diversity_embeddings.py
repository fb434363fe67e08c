from __future__ import annotations

import logging
import types

import numpy as np
import pyarrow as pa
import pytest

from divray.diversity import runtimes
from divray.diversity.embeddings import Encoder, embedding_column, embedding_matrix
from divray.diversity.runtimes import open_runtime
from divray.models import local_model

TEXTS = [
    "The engine was built by the company in 1998 .",
    "A cat slept on the warm roof of the old barn while the rain fell and nobody came to look for it until late .",
    "",
    "Rome",
    "The company built the engine in 1998 .",
    *(f"Sentence number {i} has {'some ' * (i % 9)}words ." for i in range(80)),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder("embedded:minilm", device="cpu")


def test_embeddings_do_not_depend_on_their_company(encoder: Encoder) -> None:
    whole = encoder.encode(TEXTS)
    assert whole.shape == (len(TEXTS), encoder.dimension) and whole.dtype == np.float32
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert (encoder.encode([TEXTS[i] for i in order]) == whole[order]).all()
    assert (np.concatenate([encoder.encode(TEXTS[:3]), encoder.encode(TEXTS[3:7])]) == whole[:7]).all()


def test_embeddings_are_the_mean_of_the_last_hidden_states(encoder: Encoder) -> None:
    import torch

    made = encoder.encode(TEXTS[:2])
    model = encoder.runtime.model  # type: ignore[attr-defined]
    for text, vector in zip(TEXTS[:2], made, strict=True):
        with torch.inference_mode():
            hidden = model(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        assert np.abs(vector - wanted).max() < 2e-6
    assert float(made[0] @ encoder.encode([TEXTS[4]])[0]) > float(made[0] @ made[1]) + 0.3


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_half_precision_is_near_and_does_not_depend_on_company(encoder: Encoder, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    half = Encoder("embedded:minilm", device="cpu", precision="bf16", runtime=runtime)
    made = half.encode(TEXTS)
    assert (made * encoder.encode(TEXTS)).sum(axis=1).min() > 0.999
    order = np.random.default_rng(1).permutation(len(TEXTS))
    assert (half.encode([TEXTS[i] for i in order]) == made[order]).all()
    assert (half.encode(TEXTS[5:8]) == made[5:8]).all()


def test_a_missing_runtime_falls_back(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local_model("embedded:minilm")
    monkeypatch.setattr(runtimes, "importlib", types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None)))
    runtime = open_runtime(folder, "cpu", "auto", "openvino")
    assert type(runtime).__name__ == "TorchRuntime" and "OpenVINO is not installed" in caplog.text


def test_threads_are_put_back(encoder: Encoder) -> None:
    import torch

    before = torch.get_num_threads()
    encoder.encode(["a"])
    assert torch.get_num_threads() == before


def test_tables_get_a_column_of_masked_embeddings(encoder: Encoder) -> None:
    text = "Ann was born in Rome ."
    row = {"text": text, "head_start": 0, "head_end": 3, "tail_start": 16, "tail_end": 20}
    table = encoder(pa.Table.from_pylist([row]))
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    assert (embedding_matrix(table["embedding"]) == encoder.encode(["HEAD was born in TAIL ."])).all()
    assert encoder(table).column_names.count("embedding") == 1
    assert encoder(table.slice(0, 0)).num_rows == 0


def test_long_texts_are_cut() -> None:
    short = Encoder("embedded:minilm", max_length=12, device="cpu")
    long = "one two three four five six seven eight nine ten"
    assert (short.encode([long + " eleven"]) == short.encode([long + " twelve thirteen"])).all()


def test_columns_and_matrices() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    column = embedding_column(matrix)
    assert (embedding_matrix(column) == matrix).all()
    assert (embedding_matrix(pa.chunked_array([column.slice(1)])) == matrix[1:]).all()
    assert embedding_matrix(column.slice(0, 0)).shape == (0, 0)


@pytest.mark.slow
def test_as_an_actor_of_ray_data(encoder: Encoder) -> None:
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = pa.table({"text": TEXTS[:20], "at": list(range(20))})
    made = (
        ray.data.from_arrow([table.slice(0, 7), table.slice(7)])
        .map_batches(
            Encoder,
            fn_constructor_kwargs={"reference": "embedded:minilm", "mask_entities": False, "device": "cpu"},
            batch_format="pyarrow",
            batch_size=5,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0.5,
        )
        .to_pandas()
        .sort_values("at")
    )
    assert (np.stack(made["embedding"].to_list()) == encoder.encode(TEXTS[:20])).all()
