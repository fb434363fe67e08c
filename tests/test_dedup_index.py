from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray import cli
from divray.dedup import files, index, verify
from divray.dedup.files import deduplicate_files
from divray.dedup.index import TextIndex
from divray.dedup.tables import DedupSettings, near_duplicate_clusters
from divray.errors import DivrayError, InputError

WORDS = st.lists(st.sampled_from("abcdefg"), max_size=9).map(" ".join)
SETTINGS = DedupSettings(id_column="id")


def table(texts: list[str | None], start: int = 0) -> pa.Table:
    return pa.table({"id": pa.array(range(start, start + len(texts)), pa.int32()), "text": pa.array(texts, pa.string())})


def through(folder: str, batch: pa.Table, chosen: DedupSettings = SETTINGS, **options: Any) -> pa.Table:
    held = TextIndex(folder, chosen)
    made = near_duplicate_clusters(batch, chosen, index=held, **options)
    held.commit()
    return made


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.none() | WORDS, max_size=12), min_size=1, max_size=4),
    st.sampled_from([("word", 1), ("word", 2), ("char", 2)]),
    st.sampled_from([0.3, 0.5, 0.7, 1.0]),
    st.sampled_from(["component", "independent"]),
    st.lists(WORDS, max_size=3),
)
def test_an_index_does_what_the_rows_themselves_do(
    batches: list[list[str | None]], shingles: Any, threshold: float, rule: Any, tests: list[str]
) -> None:
    chosen = DedupSettings(id_column="id", kind=shingles[0], size=shingles[1], threshold=threshold, rule=rule)
    kept, against = table([]), pa.table({"text": pa.array(tests, pa.string())})
    with tempfile.TemporaryDirectory() as folder:
        asked = []
        for number, texts in enumerate(batches):
            batch = table(texts, 100 * number)
            made = through(folder, batch, chosen, against=against)
            assert made == near_duplicate_clusters(batch, chosen, against, kept)
            kept = pa.concat_tables([kept, batch.filter(made["kept"])])
            asked.append((batch, made))
        assert len(TextIndex(folder, chosen)) == len(kept.filter(kept["text"].is_valid()))
        for batch, made in asked:  # and once more, each beside those before it
            assert through(folder, batch, chosen, against=against) == made
        assert len(TextIndex(folder, chosen)) == len(kept.filter(kept["text"].is_valid()))


def test_names_of_the_nearest_and_another_threshold(tmp_path: Path) -> None:
    folder = str(tmp_path / "index")
    through(folder, table(["one two three four five", "six seven eight nine ten"]))
    through(folder, table(["one two three four five six seven eight nine"], 10), DedupSettings(id_column="id", threshold=0.9))
    batch = table(["one two three four five six", "one two three four five", "six seven eight nine ten eleven"], 20)
    made = through(folder, batch, DedupSettings(id_column="id", threshold=0.5))
    assert made["reason"].to_pylist() == ["near earlier row 0 (0.75)", "near earlier row 0 (1.00)", "near earlier row 1 (0.75)"]
    assert made["kept"].to_pylist() == [False] * 3


def test_earlier_rows_and_an_index_together(tmp_path: Path) -> None:
    folder = str(tmp_path)
    through(folder, table(["one two three four"]))
    made = through(folder, table(["one two three four", "five six seven", "new words here"], 10), earlier=table(["five six seven"], 5))
    assert made["reason"].to_pylist() == ["near earlier row 0 (1.00)", "near earlier row 5 (1.00)", "kept: no near neighbour"]
    assert len(TextIndex(folder, SETTINGS)) == 2


def test_long_texts_of_common_words(tmp_path: Path) -> None:
    long = " ".join(str(number) for number in range(200_000))
    through(str(tmp_path), table([long, *(f"{number} {number + 1} {number + 2} x{number}" for number in range(500))]))
    made = through(str(tmp_path), table([long + " more", "0 1 2 x0"], 1000))
    assert made["reason"].to_pylist() == ["near earlier row 0 (1.00)", "near earlier row 1 (1.00)"]


def test_too_many_visits_are_an_error_that_can_be_overruled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "EXACT_SETS", 1)
    monkeypatch.setattr(verify, "EXACT_VISITS", 20)
    monkeypatch.setattr(verify, "EXACT_VISITS_PER_SET", 0)
    texts: list[str | None] = [f"a b c {number} {number + 100}" for number in range(50)]
    exact = DedupSettings(id_column="id", threshold=0.3, method="exact")
    through(str(tmp_path), table(texts), exact)
    assert not any(through(str(tmp_path), table(["a b c 0"], 90), exact)["kept"].to_pylist())
    with pytest.raises(InputError, match="more than 20 pairs"):
        through(str(tmp_path), table(["a b c 1"], 90), DedupSettings(id_column="id", threshold=0.3))


def test_an_index_of_other_sets_and_what_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    through(str(folder), table(["a b c"]))
    with pytest.raises(InputError, match="kind is word there, size is 3 there"):
        TextIndex(str(folder), DedupSettings(kind="char", size=5))
    (part,) = folder.iterdir()
    for content in (b"", b"no Arrow file", part.read_bytes()[:-20]):
        (folder / "000001-ab.arrow").write_bytes(content)
        with pytest.raises(InputError, match="not readable as a part of an index"):
            TextIndex(str(folder), SETTINGS)
    whole = pa.ipc.open_file(part).read_all()
    damaged = [whole.drop_columns("ids"), whole.set_column(0, "ids", pa.array([["a", "b"]]))]
    for other in (*damaged, whole.replace_schema_metadata({"divray.index": "[1]"})):
        with pa.ipc.new_file(folder / "000001-ab.arrow", other.schema) as writer:
            writer.write_table(other)
        with pytest.raises(InputError, match="not readable as a part of an index"):
            TextIndex(str(folder), SETTINGS)
    with pytest.raises(InputError, match="no folder"):
        TextIndex(str(part), SETTINGS)


def write(path: Path, texts: list[str | None], start: int = 0) -> str:
    pq.write_table(table(texts, start), path)
    return str(path)


def test_files_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "1.parquet", ["one two three four", "five six seven"])
    second = write(tmp_path / "2.parquet", ["Five six SEVEN", "eight nine ten"], 10)
    for source, said in ((first, "2 stay"), (second, "1 stay, 0 clusters, 1 near earlier rows"), (second, "1 stay"), (first, "2 stay")):
        command = ["dedup", source, "--out", str(tmp_path / "out"), "--id-column", "id", "--index", str(tmp_path / "index")]
        assert cli.main(command) == 0
        assert said in capsys.readouterr().out
    assert len(TextIndex(str(tmp_path / "index"), SETTINGS)) == 3
    assert cli.main([*command, "--shingles", "word:2"]) == 2
    assert "size is 3 there" in capsys.readouterr().err


def test_rows_count_with_their_result_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, folder = write(tmp_path / "1.parquet", ["a b c", "d e f"]), tmp_path / "out", tmp_path / "index"

    def broken(*_: Any) -> Any:
        raise OSError("disk full")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(files, "_staying", broken)
        with pytest.raises(OSError, match="disk full"):
            deduplicate_files(source, str(out), SETTINGS, index=str(folder))
        assert not out.exists() and not list(folder.glob("*.arrow"))
    with monkeypatch.context() as patch:
        patch.setattr(index.pa.ipc, "new_file", broken)
        with pytest.raises((OSError, TypeError, AttributeError)):
            deduplicate_files(source, str(out), SETTINGS, index=str(folder))
        assert not out.exists() and not list(folder.glob("*.arrow"))
    left = folder / f".000000-abc.arrow.{'0f' * 16}.tmp"
    left.write_bytes(b"half")
    assert deduplicate_files(source, str(out), SETTINGS, index=str(folder))["kept"] == 2
    assert not left.exists() and len(TextIndex(str(folder), SETTINGS)) == 2


HOLDER = """
import sys, time
from divray.dedup.index import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_dead_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, folder = write(tmp_path / "1.parquet", ["a b c", "d e f"]), tmp_path / "out", tmp_path / "index"
    command = ["dedup", source, "--out", str(out), "--id-column", "id", "--index", str(folder)]
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert cli.main(command) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert f"in use by process {holder.pid} on {platform.node()}, {datetime.now().year}-" in error
        assert not out.exists() and not list(folder.glob("*.arrow"))
        holder.kill()
    assert cli.main(command) == 0 and len(TextIndex(str(folder), SETTINGS)) == 2


def test_two_calls_at_once_keep_no_text_twice(tmp_path: Path) -> None:
    texts: list[str | None] = [f"w{i} x{i} y{i} z{i}" for i in range(2000)]
    sources = [write(tmp_path / "1.parquet", texts), write(tmp_path / "2.parquet", texts[::-1], 5000)]
    command = [sys.executable, "-m", "divray.cli", "dedup", "--id-column", "id", "--index", str(tmp_path / "index")]
    calls = [subprocess.Popen([*command, one, "--out", f"{one}.out"], stderr=subprocess.PIPE, text=True) for one in sources]
    ended = [(call.communicate()[1], call.returncode) for call in calls]
    for number, (error, code) in enumerate(ended):  # whoever was refused comes again
        assert code == 0 or (code == 2 and "in use by process" in error), error
        if code == 2:
            assert cli.main([*command[3:], sources[number], "--out", f"{sources[number]}.out"]) == 0
    kept = [pq.read_metadata(f"{one}.out/kept.parquet").num_rows for one in sources]
    assert sorted(kept) == [0, 2000] and len(TextIndex(str(tmp_path / "index"), SETTINGS)) == 2000


@pytest.mark.parametrize("when", ["before", "after"])
def test_where_there_is_no_lock_a_call_that_was_overtaken_adds_nothing(tmp_path: Path, when: str) -> None:
    folder = str(tmp_path / "index")
    slow, fast = TextIndex(folder, SETTINGS), TextIndex(folder, SETTINGS)
    for held, texts in ((slow, ["a b c"]), (fast, ["d e f"])):
        near_duplicate_clusters(table(texts), SETTINGS, index=held)
    if when == "before":
        fast.commit()
    else:  # both find the folder empty; the other's file comes while this one's is written
        check, seen = slow._check_alone, []

        def checked(known: set[str]) -> None:
            check(known)
            if not seen:
                seen.append(known)
                fast.commit()

        slow._check_alone = checked  # type: ignore[method-assign]
    with pytest.raises(DivrayError, match=rf"process {os.getpid()} on .* has added a batch meanwhile, nothing was added"):
        slow.commit()
    assert len(TextIndex(folder, SETTINGS)) == len(list((tmp_path / "index").iterdir())) == 1
