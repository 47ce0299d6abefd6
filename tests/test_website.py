"""What makes the site's pages: messages with their remedies, links, references, tutorials."""

import importlib
import re
import subprocess
import sys

import pytest
import yaml

from website import api, errors, repository, tutorials


def test_every_message_of_fastht_has_a_remedy_and_no_remedy_is_left_over():
    assert errors.problems() == []
    assert len(errors.messages()) > 400


def test_a_message_without_a_remedy_would_be_found(tmp_path):
    package = tmp_path / "fastht"
    package.mkdir()
    (package / "new.py").write_text(
        "LIMIT = 'three'\n"
        "def check(x):\n"
        "    if x > 3:\n"
        "        raise ValueError(f'x is {x}')\n"
        "    if x > 2:\n"
        "        why = f'{x} is over {LIMIT}; ' + 'give a smaller one'\n"
        "        raise ValueError(why)\n"
        "    raise ValueError('it is one' if x else f'it is {x}; add one')\n"
    )
    found = {m.text: m.remedy() for m in errors.messages(package)}
    assert found == {
        "x is …": None,
        "… is over three; give a smaller one": "give a smaller one",
        "it is one": None,
        "it is …; add one": "add one",
    }
    told = errors.problems(package)
    assert sum("fastht.new" in line for line in told) == 2
    assert any("no message of fastht.saved says" in line for line in told)  # and they are stale


def test_the_tables_show_every_message_as_code():
    text = errors.tables()
    assert "| `… has no HT adapters; call fastht.patch(model) first` | Call fastht.patch" in text
    assert "## CheckpointError\n\nA saved adapter is damaged" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)


def test_links_between_files_become_links_between_pages():
    paths = repository.site_paths()
    text = "[a](docs/patch.md#x) [b](LICENSE) [c](https://a.b) "
    text += "[![p](docs/overlays.png)](docs/train.md)"
    assert repository.with_links_of_the_site(text, "README.md", paths) == (
        "[a](patch.md#x) b [c](https://a.b) [![p](overlays.png)](train.md)"
    )
    fenced = "```\n[a](docs/patch.md)\n```"
    assert repository.with_links_of_the_site(fenced, "README.md", paths) == fenced
    with pytest.raises(ValueError, match=r"docs/none\.md leads nowhere"):
        repository.with_links_of_the_site("[a](docs/none.md)", "README.md", paths)


def test_links_of_every_page_lead_somewhere():
    paths = repository.site_paths()
    for source in paths:
        if source.endswith(".md"):
            text = (repository.ROOT / source).read_text(encoding="utf-8")
            repository.with_links_of_the_site(text, source, paths)


def test_the_reference_has_every_public_name_where_it_is_defined():
    for package, *_ in api.REFERENCES.values():
        module = importlib.import_module(package)
        names = api.public_names(package)
        assert set(names) == {n for n in module.__all__ if not n.startswith("__")}
        for name, path in names.items():
            home, _, own = path.rpartition(".")
            assert getattr(importlib.import_module(home), own) is getattr(module, name)


def test_a_tutorial_is_text_code_and_what_it_printed(tmp_path, monkeypatch):
    script = repository.ROOT / "docs" / "tutorials" / "made_up.py"
    monkeypatch.setattr(tutorials, "OUTPUTS", tmp_path)
    monkeypatch.setattr(
        tutorials, "cells", lambda _: [("# Title", "x = 1\nprint(x)"), ("End.", "")]
    )
    tutorials.keep(script)
    assert (tmp_path / "made_up" / "0.txt").read_text() == "1\n"
    assert (
        "# Title\n\n```python\nx = 1\nprint(x)\n```\n\n```text\n1\n```\n\nEnd."
        in tutorials.page(script)
    )


def test_cells_part_text_from_code(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("# %%\n# # Title\n#\n# Words.\nx = 1\n\n# %%\n# More.\n# %%\ny = 2  # two\n")
    assert tutorials.cells(script) == [
        ("# Title\n\nWords.", "x = 1"),
        ("More.", ""),
        ("", "y = 2  # two"),
    ]


def test_the_navigation_is_whole():
    config = yaml.safe_load((repository.ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [p for section in config["nav"] for part in section.values() for p in part]
    made = {f"api/{name}.md" for name in api.REFERENCES}
    assert set(pages) <= {*repository.site_paths().values(), *made}
    assert made <= set(pages)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_what_is_made_for_it(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=repository.ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    def text(page):
        return (tmp_path / page / "index.html").read_text(encoding="utf-8")

    assert "call fastht.patch(model) first" in text("troubleshooting")
    assert errors.PLACE not in text("troubleshooting")
    for name in ("patch", "save_adapter", "HTConfig"):
        assert re.search(rf'id="fastht\.\w+\.{name}"', text("api/adapters")), name
    assert not re.search(r":(func|class|attr|mod):", text("api/adapters"))
    for machine in repository.machines():
        assert f'href="{machine}/"' in text("benchmarks")
        assert (tmp_path / "benchmarks" / machine / "adapter.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", tutorials.scripts(), ids=lambda script: script.stem)
def test_a_tutorial_runs_and_its_page_has_its_outputs(script):
    pytest.importorskip("open_clip")
    kept = sorted(p.name for p in (tutorials.OUTPUTS / script.stem).iterdir())
    assert sorted(tutorials.outputs(script)) == kept, "python -m website.tutorials keeps them anew"


def test_pictures_of_tutorials_are_there():
    for script in tutorials.scripts():
        named = re.findall(r"\((outputs/[^)]+)\)", script.read_text(encoding="utf-8"))
        assert named
        for picture in named:
            assert (script.parent / picture).exists(), picture
