"""Which files of the repository are pages of the site, and where links between them lead."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# Files outside docs/ that are pages, and what the site calls them.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarking.md",
    "csrc/cuda/README.md": "cuda.md",
    "fastht/data/sample/README.md": "sample.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|!?\[[^\]]*\](?:\([^)]*\))?)*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def machines() -> list[str]:
    """Name the machines that have a page of benchmarks."""
    return sorted(page.parent.name for page in RESULTS.glob("*/README.md"))


def site_paths() -> dict[str, str]:
    """Return the page or picture of the site for each file of the repository that is one."""
    paths = dict(PAGES)
    for name in machines():
        paths[f"benchmarks/results/{name}/README.md"] = f"benchmarks/{name}.md"
        for picture in sorted((RESULTS / name).glob("*.png")):
            paths[f"benchmarks/results/{name}/{picture.name}"] = f"benchmarks/{name}/{picture.name}"
    sample = "fastht/data/sample/images"
    text = (ROOT / "fastht/data/sample/README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\(images/(\w+\.jpg)\)", text):
        paths[f"{sample}/{name}"] = f"sample/{name}"
    for file in (ROOT / "docs").rglob("*"):
        inside = file.relative_to(ROOT / "docs").as_posix()
        if file.suffix in (".md", ".png"):
            paths[f"docs/{inside}"] = inside
        elif file.match("tutorials/*.py"):
            paths[f"docs/{inside}"] = inside.removesuffix(".py") + ".md"
    return paths


def source_of(page: str, paths: dict[str, str]) -> str | None:
    """Return the file of the repository that a page of the site is made of."""
    return next((source for source, site in paths.items() if site == page), None)


def with_links_of_the_site(text: str, source: str, paths: dict[str, str]) -> str:
    """Return a page's Markdown with links that lead to the site's own pages.

    A link to a file that is no page becomes its name: the site has no copy of the sources.

    Raises:
        ValueError: a link leads to a file that the repository has not.
    """
    here = paths[source]

    def relative(target: str) -> str | None:
        file = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if file in paths:
            return os.path.relpath(paths[file], os.path.dirname(here) or ".").replace(os.sep, "/")
        if not (ROOT / file).exists():
            raise ValueError(f"{source}: the link to {target} leads nowhere; mend it")
        return None

    def changed(match: re.Match[str]) -> str:
        picture, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        words = _LINK.sub(changed, words)
        if not target or re.match(r"[a-z]+:", target):
            return f"{picture}[{words}]({target}{anchor})"
        site = relative(target)
        return words if site is None else f"{picture}[{words}]({site}{anchor})"

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(changed, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(changed, text[end:])])
