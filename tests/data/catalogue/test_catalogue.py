"""Descriptions of the known sets: complete, true to the readers, and what the docs say."""

import re
from pathlib import Path

import pytest

from fastht.cli import main
from fastht.data.catalogue.pages import markdown
from fastht.data.catalogue.sets import SETS, KnownSet
from fastht.data.layouts import LAYOUTS
from fastht.data.source import DataSource

PAGE = Path(__file__).parents[3] / "docs" / "data-sets.md"


def test_the_page_of_the_docs_is_made_from_the_descriptions() -> None:
    remedy = "fastht data list --markdown > docs/data-sets.md"
    assert PAGE.read_text(encoding="utf-8") == markdown(), remedy


def test_every_layout_is_described() -> None:
    general = {"table", "folder", "json", "parquet"}
    assert {known.layout for known in SETS} | general == set(LAYOUTS)


@pytest.mark.parametrize("known", SETS, ids=lambda known: known.name)
def test_a_description_is_complete_and_its_options_are_the_layouts(known: KnownSet) -> None:
    for name in KnownSet.__annotations__:
        assert getattr(known, name), name
    named = {option.replace("-", "_") for option in re.findall(r"--([a-z-]+)", known.use)}
    allowed = {"data", *LAYOUTS[known.layout].options}
    assert named <= allowed
    assert named <= set(DataSource.__dataclass_fields__)


def test_listing_and_one_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    text = capsys.readouterr().out
    for known in SETS:
        assert f"\n{known.name} " in f"\n{text}"
    assert main(["data", "list", "bus cot"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "pools eleven public sets" in text
    assert "--exclude-origin BUSI BUSBRA" in text
    assert main(["data", "list", "nothing"]) == 1
    assert "no set 'nothing' is known; there are sample, BUSI" in capsys.readouterr().err
