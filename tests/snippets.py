"""Runs what the README and the pages of docs/ show: Python, commands of fastht, YAML.

Blocks of a page run one after the other, in one folder and one namespace. In front of a block may
stand

    <!-- not run: the reason -->            its commands of fastht are parsed all the same
    <!-- run with: --epochs 1 -->           options that make commands short enough for a test

and anywhere in a page, unseen by its readers,

    <!-- for the tests
    Python that makes what the next blocks take for granted
    -->
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from fastht import cli

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "csrc" / "cuda" / "README.md",
    ROOT / "CONTRIBUTING.md",
]
# Without options that cut them short these take minutes.
LONG = {"train", "segment", "classify", "fewshot", "bench"}
_BLOCK = re.compile(
    r"<!-- for the tests\n(?P<setup>.*?)-->"
    r"|(?:<!-- (?P<mark>not run|run with): (?P<words>[^>]*?) -->\n\s*)?"
    r"^[ ]*```(?P<language>\w+)\n(?P<code>.*?)```",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block of code of a page, with what stands in front of it."""

    language: str
    code: str
    reason: str = ""
    options: tuple[str, ...] = ()


def blocks(page):
    """Return the blocks of a page, its unseen ones included."""
    found = []
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match["setup"] is not None:
            found.append(Block("python", match["setup"]))
            continue
        mark, words = match["mark"], match["words"]
        found.append(
            Block(
                match["language"],
                match["code"],
                words if mark == "not run" else "",
                tuple(shlex.split(words)) if mark == "run with" else (),
            )
        )
    return found


def commands(code):
    """Return the commands of a shell block, each as a list of words."""
    lines = code.replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    return [command for command in words if command]


def run_block(block, names, page):
    """Run a block that is not marked; what has no way to be run here has to be."""
    if block.language == "python":
        # No weights can be downloaded in a test: the architecture is the same without.
        code = block.code.replace('pretrained="openai"', "pretrained=None")
        exec(compile(code, page.name, "exec"), names)
    elif block.language == "yaml":
        assert yaml.safe_load(block.code)
    elif block.language == "bash":
        for words in commands(block.code):
            if words[:2] == ["pip", "install"]:
                continue  # the tests of the README look at what is installed
            assert words[0] == "fastht", f"{page.name}: mark `{words[0]}` with the reason"
            long = LONG & set(words[1:2]) and words[2:3] != ["eval"]
            assert block.options or not long, f"{page.name}: {shlex.join(words)} takes minutes"
            assert cli.main([*words[1:], *block.options]) == 0, shlex.join(words)


def parse(words, monkeypatch):
    """Let a command's options be read, without running it; SystemExit if one is wrong."""
    with monkeypatch.context() as patched:
        patched.setattr(cli, "run_to_end", lambda *_, **__: 0)
        return cli.main(words[1:])
