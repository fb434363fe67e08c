from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from divray.cli import main
from divray.dedup.storage import open_uri, placed
from divray.errors import InputError
from divray.models import check_model
from divray.quickstart import folder
from divray.run_folder import RunFolder
from divray.schemas import EXAMPLES


def test_tables_files_and_records(uri: str) -> None:
    run = RunFolder(uri)
    table = pa.table({"a": list(range(10))})
    run.write_table("t", table, rows_per_file=3)
    assert len(run.files("t")) == 4
    assert run.read_table("t") == table
    run.write_table("t", table.slice(0, 2))
    assert run.read_table("t").num_rows == 2
    assert run.record("x") is None
    run.finish("x", 1.23456, {"n": 1})
    assert run.record("x")["seconds"] == 1.235  # type: ignore[index]
    run.delete("t")
    run.delete("t")
    assert run.files("t") == []
    with pytest.raises(InputError, match="t: no such table"):
        run.read_table("t")


def test_a_failed_write_leaves_the_old_file(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(uri)
    run.write_text("f", "old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("divray.dedup.storage.uuid.uuid4", broken)
        with pytest.raises(OSError, match="disk full"):
            run.write_text("f", "new")
    assert run.read_text("f") == "old"


def test_uris_of_names(tmp_path: Path) -> None:
    assert RunFolder(str(tmp_path)).full_uri("a/b") == f"{tmp_path}/a/b"
    run = RunFolder("s3://bucket/run?endpoint_override=127.0.0.1:1&scheme=http")
    assert run.full_uri("a") == "s3://bucket/run/a?endpoint_override=127.0.0.1:1&scheme=http"
    assert run.root == "bucket/run"


@pytest.mark.parametrize("name", ["what?", "a#b", "50%", "50%20", "a b", "Łódź 東京", "[x]*", "s3:", "a&b=c", "x:y"])
def test_any_name_of_a_folder_is_a_path(name: str, tmp_path: Path) -> None:
    for run in (
        RunFolder(str(tmp_path / name)),
        RunFolder(f"{tmp_path}/{name}/"),
        RunFolder(f"file://{quote(str(tmp_path))}/{quote(name)}"),
    ):
        RunFolder(run.full_uri("model")).write_text("f", "x")
        assert (tmp_path / name / "model" / "f").read_text() == "x"
        assert RunFolder(run.full_uri("model")).read_text("f") == "x"
        run.delete("model")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///folder/a b", "/folder/a b"),
        ("file:///folder/what%3F#1", "/folder/what?#1"),
        ("s3://bucket/a b/Łódź#1/50%?region=us-east-1", "bucket/a b/Łódź#1/50%"),
        ("s3://bucket/a%20b/c%3F?region=us-east-1", "bucket/a b/c?"),
    ],
)
def test_what_a_uri_may_not_hold_is_taken_as_it_stands(uri: str, path: str) -> None:
    run = RunFolder(uri)
    assert run.root == path
    assert open_uri(run.full_uri("x y/#"))[1] == f"{path}/x y/#"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "file://x.parquet",
        "file://localhost/x",
        "s4://x/y",
        "https://host/x.parquet",
        "s3:///x",
        "hdfs+x://a",
        "~nobody-here/x",
        "hf://datasets/x",
    ],
)
def test_a_path_that_leads_nowhere_is_one_line(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        open_uri(uri)
    assert "\n" not in str(caught.value) and uri in str(caught.value)


def test_no_key_stands_in_an_error() -> None:
    with pytest.raises(InputError) as caught:
        open_uri("s4://key:secret@bucket/x")
    assert "secret" not in str(caught.value)


def test_folders_go_up_whole(uri: str, tmp_path: Path) -> None:
    local = tmp_path / "model"
    (local / "sub").mkdir(parents=True)
    (local / "config.json").write_text("{}")
    (local / "sub" / "x").write_text("1")
    run = RunFolder(uri)
    run.upload(local, "model")
    assert run.files("model") == ["model/config.json", "model/sub/x"]


def test_models_are_checked_without_loading(tmp_path: Path) -> None:
    check_model("embedded:minilm", "f", "k")
    check_model("owner/name", "f", "k")
    for bad in ("embedded:gpt9", str(tmp_path), "/none", ""):
        with pytest.raises(InputError):
            check_model(bad, "f", "k")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="safetensors"):
        check_model(str(tmp_path), "f", "k")


@pytest.mark.parametrize(("type_name", "clears"), [("local", []), ("hdfs", ["delete_file"])])
def test_files_are_replaced_at_once(tmp_path: Path, type_name: str, clears: list[str]) -> None:
    class Told:
        def __init__(self) -> None:
            self.type_name = type_name
            self.fs, self.calls = pafs.LocalFileSystem(), list[str]()

        def __getattr__(self, name: str) -> Any:
            self.calls.append(name)
            return getattr(self.fs, name)

    (tmp_path / "there").write_text("older")
    fs: Any = Told()
    with placed(fs, str(tmp_path / "there")) as path:
        Path(path).write_text("newer")
    assert fs.calls == ["get_file_info", "open_output_stream", *clears, "move"]
    assert (tmp_path / "there").read_text() == "newer" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["what?", "50% #1 東京", "k=16"])
def test_ray_reads_and_writes_in_a_folder_of_any_name(ray_two_cpus: None, name: str, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / name))
    run.write_table("made", pa.table({"a": [1, 2, 3]}), rows_per_file=1)
    run.dataset("made").write_parquet(run.path("copied"), filesystem=run.fs)
    assert run.dataset("copied").to_pandas().sort_values("a").to_dict("list") == {"a": [1, 2, 3]}


@pytest.mark.parametrize("text", [b"", b'[{"name"', b"\xff", b'{"a": 1, "a": 2}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: bytes) -> None:
    run = RunFolder(str(tmp_path))
    run.write_bytes("data/relations.json", text)
    with pytest.raises(InputError, match=r"data/relations\.json"):
        run.read_json("data/relations.json")
    with pytest.raises(InputError, match=r"nothing.json: not readable \(No such file"):
        run.read_json("nothing.json")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("data/relations.json", {"name": "a"}, r"not as divray writes it .* Run `divray prepare` again, with --force"),
        ("data/relations.json", [{"name": "a"}], r"0\.description: not as divray writes it"),
        ("search.json", [], "Run `divray tune` again, with --force"),
        ("search.json", {"best": None, "trials": []}, "best: not"),
        ("search.json", {"best": {"depth": "deep"}, "trials": []}, r"best\.depth"),
        ("evaluation.json", {"seeds": None}, "Run `divray evaluate` again, with --force"),
        ("stages/round-00.sample.json", True, "Put it back, or delete it"),
        ("stages/select.json", {"stage": "select", "finished_at": 3, "seconds": 1.0, "counts": {}}, "finished_at: not"),
        ("round-01/alignment.json", {"curve": [3]}, "Run `divray align` again, with --force"),
        ("round-00/quota.json", {"relations": {"a": {"asked": "3"}}}, "Run `divray sample` again, with --force"),
        ("round-00/completions.engines/1.json", {"engines": []}, "Run `divray sample` again, with --force"),
        ("review/answers.json", [{"sample_id": "a", "reader": "me", "right": 1}], r"0\.right: not"),
        ("summary.json", None, "Run `divray report` again, with --force"),
        ("versions.json", {"python": 3}, "python: not"),
    ],
)
def test_a_record_of_another_shape_names_the_stage_that_writes_it(name: str, value: Any, words: str, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    run.write_json(name, value)
    with pytest.raises(InputError, match=words) as caught:
        run.read_json(name)
    assert str(caught.value).startswith(f"{tmp_path}/{name}: ")


def test_a_damaged_or_missing_table_is_named(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    run.write_bytes("comparison/selected/part-00000.parquet", b"PAR1")
    with pytest.raises(InputError, match=r"comparison/selected: no whole table .* Run `divray select` again, with --force"):
        run.read_table("comparison/selected")
    for read in (run.read_table, run.dataset):
        with pytest.raises(InputError, match=r"dataset/data: no such table\. Run `divray select` again"):
            read("dataset/data")


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (None, r"data/seeds: text: no such column\. Run `divray prepare` again, with --force"),
        ([1], "data/seeds: text: int64, not string as divray writes it"),
        (pa.array([b"\xff"]).view(pa.string()), "data/seeds: no whole table .*Invalid UTF8"),
    ],
)
def test_a_table_of_another_shape_names_its_column(column: Any, words: str, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    table = pa.table({field.name: ["a"] if field.type == pa.string() else pa.array([0], field.type) for field in EXAMPLES})
    table = table.drop_columns("text") if column is None else table.set_column(2, "text", pa.array(column))
    run.write_table("data/seeds", table)
    for read in (run.read_table, lambda name: list(run.scan(name, ["text"]))):
        with pytest.raises(InputError, match=words):
            read("data/seeds")


@pytest.mark.parametrize("uri", ["s3://", "s3:///", "gs://"])
def test_a_uri_without_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match="without a bucket"):
        RunFolder(uri)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file lies there"):
        RunFolder(str(tmp_path / "file"))
    with pytest.raises(InputError, match="the folder can't be made"):
        RunFolder(str(tmp_path)).write_text("file/x.json", "{}")


@pytest.mark.parametrize("name", ["file/run", "x" * 300, "/proc/run"])
def test_a_run_folder_that_cannot_be_made_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["run", str(folder() / "quickstart.yaml"), "--out", str(tmp_path / name)]) == 2
    assert re.search(r"^error: .*(the folder can't be made|File name too long).*\n$", capsys.readouterr().err)
