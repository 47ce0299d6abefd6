"""Hooks of MkDocs: pages that are made from the repository, and links that lead to them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mkdocs.structure.files import File, InclusionLevel

from website import api, errors, tutorials
from website.repository import ROOT, machines, site_paths, source_of, with_links_of_the_site


def on_config(config: Any) -> Any:
    """Put the machines into the navigation."""
    for section in config.nav:
        for title, pages in section.items():
            if title == "Fast":
                place = pages.index("benchmarks.md") + 1
                pages[place:place] = [f"benchmarks/{name}.md" for name in machines()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that lie outside docs/, and those that are made."""
    made = {
        **{f"api/{name}.md": api.page(name) for name in api.REFERENCES},
        **{f"tutorials/{file.stem}.md": tutorials.page(file) for file in tutorials.scripts()},
    }
    for source, site in site_paths().items():
        if site not in made and not source.startswith("docs/"):
            files.append(
                File.generated(
                    config,
                    site,
                    abs_src_path=str(ROOT / source),
                    inclusion=InclusionLevel.INCLUDED,
                )
            )
    for site, text in made.items():
        files.append(File.generated(config, site, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links between files of the repository lead to the pages of the site."""
    paths = site_paths()
    source = source_of(page.file.src_uri, paths)
    if page.file.src_uri == "troubleshooting.md":
        markdown = markdown.replace(errors.PLACE, errors.tables())
    return markdown if source is None else with_links_of_the_site(markdown, source, paths)
