"""Text files and tables as every reader gets them; test_records.py holds the rest."""

from pathlib import Path

import pytest

from fastht.data import DataError
from fastht.data.tables import read_table, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_keeps_its_line_ends(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("eins\r\nzwölf\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "eins\r\nzwölf\n"


def test_unreadable_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("zwölf".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 .*; save it as UTF-8"):
        read_text(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"b\.txt: cannot be read \(No such file"):
        read_text(tmp_path / "b.txt")


def test_rows_know_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a, b\n1,"2\n3"\n\n4\n')
    columns, rows = read_table(tmp_path / "a.csv")
    assert columns == ["a", "b"]
    assert rows == [(3, {"a": "1", "b": "2\n3"}), (5, {"a": "4", "b": ""})]
