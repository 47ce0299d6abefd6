"""Tutorials: scripts that become pages with what they print and draw.

A script has cells: comments that begin with ``# %%`` are text in Markdown, what follows is code.
Its outputs are kept beside it in ``outputs/NAME``, written by

    python -m website.tutorials

which runs every script in a folder of its own and takes pictures from its ``pictures`` folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from website.repository import ROOT

FOLDER = ROOT / "docs" / "tutorials"
OUTPUTS = FOLDER / "outputs"
_CELL = re.compile(r"^# %%\n", re.MULTILINE)


def scripts() -> list[Path]:
    """Return the tutorials' scripts."""
    return sorted(FOLDER.glob("*.py"))


def cells(script: Path) -> list[tuple[str, str]]:
    """Return the text and the code of each cell of a script."""
    pieces = []
    for piece in _CELL.split(script.read_text(encoding="utf-8"))[1:]:
        lines = piece.splitlines()
        text = []
        while lines and lines[0].startswith("#"):
            text.append(lines.pop(0).removeprefix("#").removeprefix(" "))
        pieces.append(("\n".join(text), "\n".join(lines).strip()))
    return pieces


def page(script: Path) -> str:
    """Return a tutorial's Markdown, with the outputs that its last run left."""
    parts = []
    for number, (text, code) in enumerate(cells(script)):
        parts.append(text)
        if code:
            parts.append(f"```python\n{code}\n```")
        printed = OUTPUTS / script.stem / f"{number}.txt"
        if printed.exists():
            parts.append(f"```text\n{printed.read_text(encoding='utf-8').rstrip()}\n```")
    name = script.relative_to(ROOT).as_posix()
    parts.append(f"This page is the script `{name}`, which runs in any folder.")
    return "\n\n".join(parts) + "\n"


def outputs(script: Path) -> dict[str, bytes]:
    """Run a tutorial in a folder of its own; return what it printed and drew, by file names."""
    names, made, here = {"__name__": "__main__"}, {}, os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for number, (_, code) in enumerate(cells(script)):
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(code, f"{script.name}, cell {number}", "exec"), names)
                printed = out.getvalue().replace(f"{folder}/", "").replace(f"{ROOT}/", "")
                if printed.strip():
                    made[f"{number}.txt"] = printed.encode()
        finally:
            os.chdir(here)
        made |= {p.name: p.read_bytes() for p in Path(folder, "pictures").glob("*.png")}
    return made


def keep(script: Path) -> None:
    """Run a tutorial, and keep what it prints and draws for its page."""
    made = outputs(script)
    kept = OUTPUTS / script.stem
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for name, content in made.items():
        (kept / name).write_bytes(content)


def main() -> None:
    """Run the tutorials that are named, or all, and keep their outputs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", help="of scripts, without .py; default: all")
    chosen = parser.parse_args().names
    for script in scripts():
        if not chosen or script.stem in chosen:
            began = time.process_time()
            keep(script)
            print(f"{script.name}: {time.process_time() - began:.0f} s of processor", flush=True)


if __name__ == "__main__":
    main()
