from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divray import cli

ROWS = {"id": [1, 2, 3, 4, 5], "text": ["a b c d e", "a b c d f", "a b c g f", "A B C D E", "a b h g f"]}
"""A chain, 1 to 2 to 3 to 5, and 4, which is 1 but for the case."""


@pytest.mark.parametrize("ray", [[], ["--ray", "local"]])
@pytest.mark.parametrize(
    ("options", "kept", "said"),
    [
        ([], [2], "5 rows: 1 stay, 1 clusters ->"),
        (["--rule", "independent"], [2, 5], "5 rows: 2 stay, 1 clusters ->"),
        (["--method", "exact"], [2], "1 stay"),
        (["--method", "minhash"], [2], "1 stay"),
        (["--keep-case"], [2, 4], "2 stay, 1 clusters ->"),
        (["--near-test", "TEST"], [3], "1 stay, 1 clusters, 3 near test texts ->"),
        (["--earlier", "EARLIER", "--keep-case"], [3, 4], "2 stay, 1 clusters, 2 near earlier rows ->"),
        (["--near-test", "TEST", "--earlier", "EARLIER"], [3], "3 near test texts, 0 near earlier rows ->"),
    ],
)
def test_every_option_reaches_the_join(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ray: list[str],
    options: list[str],
    kept: list[int],
    said: str,
) -> None:
    if ray:
        request.getfixturevalue("ray_two_cpus")
    pq.write_table(pa.table(ROWS), tmp_path / "in.parquet")
    pq.write_table(pa.table({"text": ["a b c d h"]}), tmp_path / "TEST")
    pq.write_table(pa.table({"id": [9], "text": ["a b c d h"]}), tmp_path / "EARLIER")
    given = [str(tmp_path / option) if option.isupper() else option for option in options]
    command = ["dedup", str(tmp_path / "in.parquet"), "--out", str(tmp_path / "out"), "--id-column", "id", "--shingles", "word:1"]
    code = cli.main([*command, "--threshold", "0.5", *given, *ray])
    out, error = capsys.readouterr()
    assert code == 0 and said in out, error
    assert pq.read_table(tmp_path / "out" / "kept.parquet")["id"].to_pylist() == kept
