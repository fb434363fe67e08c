from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from divray.cli import main
from divray.dedup import files, tables
from divray.dedup.files import deduplicate_files
from divray.dedup.storage import placed
from divray.dedup.tables import DedupSettings
from divray.errors import InputError


def parquet(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("option", ["source", "against"])
def test_no_input_is_written_over(tmp_path: Path, option: str) -> None:
    held = parquet(tmp_path / "acc" / "kept.parquet", text=["a b c"])
    before = Path(held).read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "acc")
    given = {"source": parquet(tmp_path / "new.parquet", text=["d e f"]), option: held}
    for name in (held, str(tmp_path / "acc"), str(tmp_path / "acc" / "*")):
        given[option] = name
        for out in ("acc", "link", "new/../acc"):
            with pytest.raises(InputError, match=f"{re.escape(name)} takes in what is written there"):
                deduplicate_files(out=str(tmp_path / out), **given)
    assert Path(held).read_bytes() == before and [one.name for one in Path(held).parent.iterdir()] == ["kept.parquet"]


def test_a_result_that_the_next_call_would_read_is_refused_at_the_first(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in" / "a.parquet", text=["a b c", "a b c"])
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for name, out in (
        ("in", "in"),
        ("in", "in/new/out"),
        ("in/**", "in/out"),
        ("in/*.parquet", "in"),
        ("link", "in/out"),
        ("in", "link/out"),
    ):
        for given in ({"source": str(tmp_path / name)}, {"source": source, "against": str(tmp_path / name)}):
            with pytest.raises(InputError, match="takes in what is written there"):
                deduplicate_files(out=str(tmp_path / out), **given)
    for name, out in (("in/*.parquet", "in/out"), ("in", "in/_out"), ("in/a*", "in"), ("in", "."), ("in", "in2")):
        for _ in range(2):
            assert deduplicate_files(str(tmp_path / name), str(tmp_path / out))["rows"] == 2
        shutil.rmtree(tmp_path / "in" / "out", ignore_errors=True)
        for written in ("kept", "clusters"):
            (tmp_path / "in" / f"{written}.parquet").unlink(missing_ok=True)


def test_a_result_may_lie_beside_its_input(tmp_path: Path) -> None:
    source = parquet(tmp_path / "texts.parquet", text=["a b c", "a b c"])
    for name in (source, source, str(tmp_path / "text*.parquet")):
        assert deduplicate_files(name, str(tmp_path))["kept"] == 1
    with pytest.raises(InputError, match="columns differ"):
        deduplicate_files(str(tmp_path), str(tmp_path))


def test_hidden_and_temporary_folders_are_left_out(tmp_path: Path) -> None:
    parquet(tmp_path / ".in" / "a.parquet", text=["a b c"])
    parquet(tmp_path / ".in" / "sub" / "b.parquet", text=["d e f"])
    for name in ("_temporary/0/p", ".work-0123/edges", "sub/.hidden", "sub/_x/y"):
        parquet(tmp_path / ".in" / f"{name}.parquet", text=["g h i"])
    for source, rows in ((".in", 2), (".in/*.parquet", 1), (".in/*/*.parquet", 1)):
        assert deduplicate_files(str(tmp_path / source), str(tmp_path / "out"))["rows"] == rows
    assert deduplicate_files(str(tmp_path / ".in" / "_temporary" / "0"), str(tmp_path / "out"))["rows"] == 1


def test_brackets_are_letters_and_what_is_there_is_no_pattern(tmp_path: Path) -> None:
    parquet(tmp_path / "data[1]" / "a.parquet", text=["a b c"])
    parquet(tmp_path / "data1" / "a.parquet", text=["a b c", "d e f"])
    parquet(tmp_path / "two*" / "x?.parquet", text=["a b c"])
    parquet(tmp_path / "two*" / "xy.parquet", text=["d e f"])
    for source, rows in (("data[1]/*.parquet", 1), ("data[1]", 1), ("data?/*.parquet", 2), ("two*/x?.parquet", 1), ("two*", 2)):
        assert deduplicate_files(str(tmp_path / source), str(tmp_path / "out"))["rows"] == rows


def test_an_output_that_cannot_be_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet(tmp_path / "in.parquet", text=["a b c"])
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "taken" / "kept.parquet").mkdir(parents=True)
    monkeypatch.setattr(files, "judge", lambda *_: pytest.fail("compared"))
    for out, said in (
        ("file", "the folder can't be made"),
        ("file/below", "the folder can't be made"),
        ("taken", "a folder, a device or a pipe lies there"),
    ):
        with pytest.raises(InputError, match=said):
            deduplicate_files(source, str(tmp_path / out))


def test_columns_of_views_are_copied(tmp_path: Path) -> None:
    texts, names = pa.array(["a b c", None, "A b c"], pa.string_view()), pa.array(["z", "y", "x"], pa.string_view())
    source = parquet(tmp_path / "in.parquet", text=texts, id=names, raw=pa.array([b"1", None, b"3"], pa.binary_view()))
    chosen = DedupSettings(id_column="id")
    assert deduplicate_files(source, str(tmp_path / "out"), chosen)["kept"] == 2
    kept = pq.read_table(tmp_path / "out" / "kept.parquet")
    assert kept.to_pydict() == {"text": [None, "A b c"], "id": ["y", "x"], "raw": [None, b"3"]}
    assert kept.schema == pq.read_schema(source)
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), pa.array(["a b c", "d"], pa.string_view()))
    assert tables.near_duplicate_clusters(pa.table({"text": coded}))["kept"].to_pylist() == [True, True, False]


def test_columns_of_nested_views_are_copied(tmp_path: Path) -> None:
    nested = pa.array([{"part": "x"}, {"part": None}, None, {"part": "y"}], pa.struct([("part", pa.string_view())]))
    source = parquet(tmp_path / "in.parquet", text=["a b c", "a b c", "d", "e"], more=nested, coded=pa.array("pqrp").dictionary_encode())
    assert deduplicate_files(source, str(tmp_path / "out"))["kept"] == 3
    kept = pq.read_table(tmp_path / "out" / "kept.parquet")
    assert kept["more"].to_pylist() == [{"part": "x"}, None, {"part": "y"}] and kept["coded"].to_pylist() == ["p", "r", "p"]
    assert kept.schema == pq.read_schema(source)


def test_a_killed_call_leaves_the_older_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = parquet(tmp_path / "in.parquet", text=["a b c", "a b c"]), tmp_path / "out"
    deduplicate_files(source, str(out))
    before = (out / "kept.parquet").read_bytes()
    moved: list[str] = []
    placed = files.placed

    @contextlib.contextmanager
    def killed(fs: pafs.FileSystem, target: str) -> Iterator[str]:
        with placed(fs, target) as path:
            yield path
            if moved:
                raise SystemExit
        moved.append(target)

    monkeypatch.setattr(files, "placed", killed)
    with pytest.raises(SystemExit):
        deduplicate_files(source, str(out))
    assert moved == [str(out / "clusters.parquet")] and (out / "kept.parquet").read_bytes() == before


def test_a_result_of_which_nothing_stayed_is_an_input_like_any_other(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in.parquet", id=["p", "q"], text=["a b c", "a b c"])
    chosen = DedupSettings(id_column="id")
    assert deduplicate_files(source, str(tmp_path / "none"), chosen, against=source)["kept"] == 0
    none = str(tmp_path / "none" / "kept.parquet")
    assert pq.read_metadata(none).num_row_groups == 0 and pq.read_schema(none) == pq.read_schema(source)
    assert deduplicate_files(source, str(tmp_path / "out"), chosen, against=none)["kept"] == 1
    assert deduplicate_files(none, str(tmp_path / "out"), chosen, against=source)["rows"] == 0
    assert pq.read_schema(tmp_path / "out" / "clusters.parquet").field("id").type == pa.large_string()


def test_the_columns_that_folders_name_are_taken_over(tmp_path: Path) -> None:
    for folder, texts in (
        ("year=2023/lang=de", ["a b c", "d e f"]),
        ("year=2023/lang=fr%20CA", ["A b c"]),
        ("year=2024/lang=de", ["g h i"]),
    ):
        parquet(tmp_path / "hive" / folder / "part-0.parquet", text=texts)
    parquet(tmp_path / "hive" / "year=2025" / "lang=__HIVE_DEFAULT_PARTITION__" / "part-0.parquet", text=["j k l"])
    for source in ("hive", "hive/*/*/*.parquet", "hive/year=*/lang=*/*.parquet"):
        assert deduplicate_files(str(tmp_path / source), str(tmp_path / "out"))["kept"] == 4
        assert pq.read_table(tmp_path / "out" / "kept.parquet").to_pydict() == {
            "text": ["a b c", "d e f", "g h i", "j k l"],
            "year": [2023, 2023, 2024, 2025],
            "lang": ["de", "de", "de", None],
        }
    inner = parquet(tmp_path / "hive" / "year=2024" / "lang=de" / "part-0.parquet", text=["g h i"])
    for source in (inner, str(Path(inner).parent)):
        deduplicate_files(source, str(tmp_path / "out"))
        assert pq.read_schema(tmp_path / "out" / "kept.parquet").names == ["text"]


@pytest.mark.parametrize(
    ("folders", "kept"),
    [
        (["month=1", "year=2023"], {"month": [1, None], "year": [None, 2023]}),
        (["year=2023", "year=x"], {"year": ["2023", "x"]}),
        (["year=2023/year=2024", "year=2025"], {"year": [2023, 2025]}),
        (["k=01", "plain"], {"k": [1, None]}),
    ],
)
def test_folders_that_do_not_fit_together_are_read_as_pyarrow_reads_them(tmp_path: Path, folders: list[str], kept: dict[str, Any]) -> None:
    for number, folder in enumerate(folders):
        parquet(tmp_path / "in" / folder / "p.parquet", text=[f"text {number}"])
    deduplicate_files(str(tmp_path / "in"), str(tmp_path / "out"))
    made = pq.read_table(tmp_path / "out" / "kept.parquet")
    assert made.to_pydict() == {"text": ["text 0", "text 1"], **kept}
    assert made == pads.dataset(tmp_path / "in", partitioning="hive").to_table()


@pytest.mark.parametrize("folder", ["k=__HIVE_DEFAULT_PARTITION__", "k=%ff"])
def test_folders_of_which_pyarrow_makes_no_column_are_refused(tmp_path: Path, folder: str) -> None:
    parquet(tmp_path / "in" / folder / "p.parquet", text=["a b c"])
    with pytest.raises(InputError, match=r"in: not readable \((No non-null segments|Partition segment)"):
        deduplicate_files(str(tmp_path / "in"), str(tmp_path / "out"))
    assert deduplicate_files(str(tmp_path / "in" / folder), str(tmp_path / "out"))["rows"] == 1


def test_a_folder_gives_parquet_files_of_all_their_endings(tmp_path: Path) -> None:
    for number, ending in enumerate(("parquet", "PARQUET", "parq", "pq", "txt")):
        parquet(tmp_path / "in" / "part" / f"{number}.{ending}", text=[f"{ending} {number}"])
    for source in ("in", "in/p*"):
        assert deduplicate_files(str(tmp_path / source), str(tmp_path / "out"))["rows"] == 4


def test_columns_of_folders_serve_as_ids_and_for_all_inputs(tmp_path: Path) -> None:
    for number, text in enumerate(["a b c", "a b c", "d e f"]):
        parquet(tmp_path / "in" / f"name=n{number}" / "p.parquet", text=[text])
    parquet(tmp_path / "known" / "name=n7" / "p.parquet", text=["D e f"])
    settings = DedupSettings(id_column="name")
    counts = deduplicate_files(str(tmp_path / "in"), str(tmp_path / "out"), settings, str(tmp_path / "known"))
    assert (counts["kept"], counts["near_reference"]) == (1, 1)
    clusters = pq.read_table(tmp_path / "out" / "clusters.parquet")
    assert clusters["id"].to_pylist() == ["n0", "n1", "n2"] and clusters["reason"][2].as_py() == "near reference text 0 (1.00)"


def test_a_column_of_the_files_stands_over_that_of_their_folder(tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "year=2023" / "p.parquet", text=["a b c"], year=pa.array([1999], pa.int32()))
    deduplicate_files(str(tmp_path / "in"), str(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out" / "kept.parquet").to_pydict() == {"text": ["a b c"], "year": [1999]}
    parquet(tmp_path / "in" / "year=2023" / "p.parquet", text=["a b c"], year=["of the file"])
    with pytest.raises(InputError, match="Field year has incompatible types"):
        deduplicate_files(str(tmp_path / "in"), str(tmp_path / "out"))


@pytest.mark.parametrize("shingles", ["word:0", "char:99999999999999999999", "word:" + "9" * 5000, "char:³", "word", "byte:3"])
def test_a_size_that_no_shingle_has_is_one_line(shingles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = parquet(tmp_path / "t.parquet", text=["a b c"])
    assert main(["dedup", source, "--out", str(tmp_path / "out"), "--shingles", shingles]) == 2
    assert "shingles" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["source", "out", "against"])
def test_an_empty_path_is_not_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "t.parquet", text=["a b c"])
    with pytest.raises(InputError, match="an empty path"):
        deduplicate_files(**{"source": "t.parquet", "out": "out", name: ""})
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def test_a_uri_of_no_file_system_is_told() -> None:
    with pytest.raises(InputError, match=r"nonsense://bucket/texts: .*Give a path, or a URI"):
        deduplicate_files("nonsense://bucket/texts", "out")


def test_a_mark_of_a_pattern_stands_for_no_slash(tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "a.parquet", text=["a b c"])
    parquet(tmp_path / "in" / "old" / "b.parquet", text=["d e f"])
    for source, rows in (
        ("in/*.parquet", 1),
        ("in/*/*.parquet", 1),
        ("i?/a.parquet", 1),
        ("in", 2),
        ("in/**/*.parquet", 2),
        ("in/**", 2),
        ("in/o*", 1),
    ):
        assert deduplicate_files(str(tmp_path / source), str(tmp_path / "out"))["rows"] == rows


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a b c"]), pa.array([1]), pa.array([2])], names=["text", "y", "y"]), tmp_path / "in.parquet")
    with pytest.raises(InputError, match="duplicate field names"):
        deduplicate_files(str(tmp_path / "in.parquet"), str(tmp_path / "out"))


def test_a_link_stays_one_and_a_file_keeps_its_mode(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    with placed(pafs.LocalFileSystem(), str(link)) as path:
        Path(path).write_text("new")
    assert link.is_symlink() and real.read_text() == "new" and real.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("target", ["", "none/x.txt", "file/x.txt", "pipe", "n" * 256])
def test_what_cannot_be_written_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as caught, placed(pafs.LocalFileSystem(), str(tmp_path / target)):
        pytest.fail("written")
    assert str(tmp_path / target) in str(caught.value) and ".tmp" not in str(caught.value)


def test_a_long_name_is_written(tmp_path: Path) -> None:
    target = tmp_path / ("\u4e2d" * 75 + ".jsonl")
    with placed(pafs.LocalFileSystem(), str(target)) as path:
        Path(path).write_text("new")
    assert target.read_text() == "new"
