"""What the pages show runs as it stands, or says why not; the site holds together."""

import re

import pytest
import yaml
from snippets import PAGES, ROOT, blocks, commands, parse, run_block

pytest.importorskip("open_clip")
pytest.importorskip("tyro")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_snippets_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTHT_CACHE", str(tmp_path / "cache"))
    names = {}
    for block in blocks(page):
        if not block.reason:
            run_block(block, names, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_of_a_page_has_options_that_exist(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language == "bash":
            for words in commands(block.code):
                if words[0] == "fastht":
                    assert parse(words, monkeypatch) == 0, words


def test_a_wrong_option_and_an_unmarked_command_would_be_found(monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        parse(["fastht", "train", "--no-such-option", "1"], monkeypatch)
    page = tmp_path / "page.md"
    for command in ("make all", "fastht train --data captions.csv"):
        page.write_text(f"```bash\n{command}\n```\n")
        (block,) = blocks(page)
        with pytest.raises(AssertionError, match=r"page\.md"):
            run_block(block, {}, page)


def test_python_of_pages_really_runs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- for the tests\nx = 1\n-->\n\n```python\ny = x + 1\n```\n")
    names = {}
    for block in blocks(page):
        run_block(block, names, page)
    assert names["y"] == 2


def test_every_page_has_a_place_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = {
        p for section in yaml.safe_load(text)["nav"] for part in section.values() for p in part
    }
    pages = {p.name for p in (ROOT / "docs").glob("*.md")}
    assert pages <= named, "add it to nav in mkdocs.yml"


def test_no_page_names_a_place_of_somebody_s_machine():
    for page in PAGES:
        found = re.findall(r"(?<![\w.])/(?:home|root|tmp|work|Users)/\S+", page.read_text())
        assert not found, (page, found)
