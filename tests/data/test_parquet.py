"""Parquet tables with images inside: cells, groups of rows, damage."""

from pathlib import Path

import fresh
import more_sets
import pytest

from fastht.data import DataError, load_cases, read_case_image
from fastht.data.cases import split_part
from fastht.data.parquet import cell_name, image_columns, read_cell, read_rows

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


@pytest.fixture
def table(tmp_path: Path) -> Path:
    more_sets.parquet_rows(tmp_path)
    return tmp_path / "data" / "train-00000-of-00001.parquet"


def test_cells_over_groups_of_rows(table: Path) -> None:
    assert parquet.ParquetFile(table).metadata.num_row_groups == 2
    assert image_columns(table) == ("image",)
    whole = parquet.read_table(table).column("image").to_pylist()
    for row in (2, 0, 1):
        assert read_cell(cell_name(table, "image", row)) == whole[row]["bytes"]
    assert "image" not in read_rows(table, frozenset({"image"}))[0]


def test_a_cell_is_an_image_by_itself(table: Path) -> None:
    """Without patients, splits and intervals go by files: cells of one table are not one."""
    name = cell_name(table, "image", 1)
    assert split_part(name) == (name, None)


def test_what_is_missing_is_named(table: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the table has 3 rows; was it replaced"):
        read_cell(cell_name(table, "image", 3))
    with pytest.raises(DataError, match="no column 'picture'"):
        read_cell(cell_name(table, "picture", 0))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(DataError, match=r"bad\.parquet: not a sound Parquet file"):
        load_cases(tmp_path / "bad.parquet", task="image")
    rows = [{"image": {"bytes": None, "path": "x"}, "label": 0}]
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ]
    )
    parquet.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "empty.parquet")
    found = load_cases(tmp_path / "empty.parquet", task="image")
    with pytest.raises(DataError, match="the cell holds no image"):
        read_case_image(found.cases[0])


def test_several_columns_of_images_are_not_guessed(tmp_path: Path) -> None:
    row = {"a": {"bytes": b"1", "path": ""}, "b": {"bytes": b"2", "path": ""}}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "two.parquet")
    with pytest.raises(DataError, match="columns of images are a, b; name one by --image-key"):
        load_cases(tmp_path / "two.parquet", task="image")
    found = load_cases(tmp_path / "two.parquet", task="image", image_key="b")
    assert read_cell(found.cases[0].image) == b"2"


def test_without_pyarrow_the_extra_is_named(table: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from fastht.data import load_cases\n"
        f"load_cases({str(table)!r}, task='image')"
    )
    ended = fresh.run(code)
    assert 'Parquet needs pyarrow: pip install "fastht[parquet]"' in ended.stderr
