"""Do with every release of Triton that torch >= 2.8 brings what is done with the installed one.

    python -m benchmarks.compile_releases                              # the whole table, for hours
    python -m benchmarks.compile_releases --triton 3.4 3.9 -- --arch sm_90 --channels 64
    python -m benchmarks.compile_releases --page docs/spills.md        # and a page of what spills
    python -m benchmarks.compile_releases --triton 3.6 --module benchmarks.propose -- \\
        --kernel up --arch sm_120

Each release is fetched by pip into a folder of its own and stands before the installed one in the
path; nothing else changes, so the torch that is installed compiles with all of them. What stands
behind ``--`` are the options of the module that is run, :mod:`benchmarks.compile_table` unless one
is named. Its rows are left in ``--out``, a file a release, and the page is made of what is there.
Compiled kernels stay in Triton's cache: what has been broken off goes on where it was. Exit
status: that of the worst.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.compile_table import KINDS, SHARED_LIMIT, Row, capability
from fastht.ops import registry

ROOT = Path(__file__).resolve().parents[1]
# By the name that the table of tile sizes uses: the last of each.
RELEASES = {
    "3.4": "3.4.0",
    "3.5": "3.5.1",
    "3.6": "3.6.0",
    "3.7": "3.7.1",
    "3.8": "3.8.0",
    "3.9": "3.9.0",
}


def environment(version: str, folder: Path) -> dict[str, str]:
    """Return the variables of a process that imports one release of Triton, fetched if need be."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if version == importlib.metadata.version("triton"):
        return variables | {"PYTHONPATH": str(ROOT)}
    place = folder / f"triton-{version}"
    if not (place / f"triton-{version}.dist-info").exists():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile")
        command = (*pip, "--disable-pip-version-check", "--target", str(place))
        subprocess.run((*command, f"triton=={version}"), check=True)
    return variables | {"PYTHONPATH": os.pathsep.join((str(place), str(ROOT)))}


def read(out: Path) -> Iterator[Row]:
    """Yield the rows that have been written, by release."""
    for release in RELEASES:
        path = out / f"{release}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            fields = json.loads(line)
            yield Row(**fields | {"widths": tuple(fields["widths"])})


def page(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of a page: how many kernels spill by release and chip, and which do."""
    rows = list(rows)
    releases = [release for release in RELEASES if any(row.triton == release for row in rows)]
    chips = [chip for chip in SHARED_LIMIT if any(row.arch == chip for row in rows)]
    yield "# Which of the Triton kernels spill registers, by release of Triton and chip"
    yield ""
    yield "Compiled, not run. `python -m benchmarks.compile_releases --page docs/spills.md` writes"
    yield "this page of all that there is; it has what was compiled when it was last written. A"
    yield "kernel spills where its machine code stores registers to memory and loads them again."
    yield "None may do so for 16-bit tokens and C up to 64, and with the newest release none at all"
    yield "on sm_80, sm_90 and sm_100. Refused: the release compiles wrong products for that chip,"
    yield "and fastht does not run there with it."
    yield ""
    count, same = alike(rows, "sm_86", "sm_89")
    if count and count == same:
        yield f"sm_86 and sm_89 were alike in all {count} kernels that both were compiled for, in"
        yield "registers, stack, local and shared memory: sm_86 stands for sm_89 where that is left"
        yield "out."
        yield ""
    narrow = [row for row in rows if row.promised_for_all()]
    others = [row for row in rows if row.channels and not row.promised_for_all()]
    losses = [row for row in rows if not row.channels]
    for title, part in (
        ("bfloat16 and float16 tokens, C up to 64", narrow),
        ("All others: C = 128, and float32 tokens, also under autocast or TensorFloat-32", others),
        ("The kernels of the losses", losses),
    ):
        if not part:
            continue
        yield f"## {title}"
        yield ""
        widths = ", ".join(map(str, sorted({width for row in part for width in row.widths})))
        yield f"D or E of {widths}. A cell: how many of the kernels spill; -: not compiled."
        yield ""
        yield from markdown_table(
            ("x > products", "Triton", *chips), _counts(part, releases, chips)
        )
        if found := _spilling(part):
            yield from markdown_table(
                ("kernel", "C", "x > products", "chips: bytes of stack", "Triton"), found
            )


def _what(row: Row) -> str:
    return f"C = {row.channels}, {row.numbers}" if row.channels else row.numbers


def _order(what: str) -> tuple[int, int]:
    *channels, numbers = what.removeprefix("C = ").split(", ")
    return int(channels[0]) if channels else 0, list(KINDS).index(numbers)


def _counts(rows: list[Row], releases: list[str], chips: list[str]) -> Iterator[list[str]]:
    """Yield how many of each kind spill, by chip; releases of which it is the same are one line."""
    for what in sorted({_what(row) for row in rows}, key=_order):
        lines: dict[tuple[str, ...], list[str]] = {}
        for release in releases:
            here = [row for row in rows if (row.triton, _what(row)) == (release, what)]
            if here:
                cells = tuple(_count(here, release, chip) for chip in chips)
                lines.setdefault(cells, []).append(release)
        for cells, same in lines.items():
            yield [what, ", ".join(same), *cells]


def _count(rows: list[Row], release: str, chip: str) -> str:
    here = [row for row in rows if row.arch == chip]
    if registry.miscompiled(capability(chip), RELEASES[release]):
        return "refused"
    return f"{sum(bool(row.local) for row in here)} of {len(here)}" if here else "-"


def alike(rows: Iterable[Row], one: str, other: str) -> tuple[int, int]:
    """Return how many kernels two chips have in common, and of how many they make the same."""
    made: dict[tuple[object, ...], dict[str, Row]] = {}
    numbered: Counter[tuple[object, ...]] = Counter()
    for row in rows:
        key = (row.triton, row.channels, row.numbers, row.kernel, row.options)
        numbered[(*key, row.arch)] += 1  # kernels of one name differ in what no column shows
        made.setdefault((*key, numbered[(*key, row.arch)]), {})[row.arch] = row
    both = [found for found in made.values() if one in found and other in found]
    same = [b for b in both if dataclasses.replace(b[one], arch=other) == b[other]]
    return len(both), len(same)


def _spilling(rows: list[Row]) -> list[list[str]]:
    """Return a line a kernel with its stack on each chip, and the releases that have it so."""
    stacks: dict[tuple[str, int, str, str, str], dict[str, int]] = {}
    for row in rows:
        if row.local:
            key = (row.kernel, row.channels, row.numbers, row.options, row.triton)
            found = stacks.setdefault(key, {})
            found[row.arch] = max(row.stack, found.get(row.arch, 0))
    lines: dict[tuple[str, ...], list[str]] = {}
    for (kernel, channels, numbers, options, release), found in stacks.items():
        chips = ", ".join(f"{chip}: {found[chip]}" for chip in SHARED_LIMIT if chip in found)
        key = (f"`{kernel}` {options}", str(channels or "-"), numbers, chips)
        lines.setdefault(key, []).append(release)
    return [[*key, ", ".join(lines[key])] for key in sorted(lines)]


def markdown_table(header: tuple[str, ...], rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a table of a page."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def main() -> int:
    """Run the module with each release and write the page if one is asked for."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triton", nargs="+", choices=RELEASES, default=list(RELEASES))
    parser.add_argument("--module", default="benchmarks.compile_table")
    parser.add_argument("--out", type=Path, default=Path("runs/compiled"), help="for the rows")
    parser.add_argument("--page", type=Path, help="write the page there")
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path.home() / ".cache/fastht/triton",
        help="where the releases are kept",
    )
    arguments = parser.parse_args(words[:end])
    options = words[end + 1 :]
    arguments.out.mkdir(parents=True, exist_ok=True)
    worst = 0
    for release in arguments.triton:
        extra = []
        if arguments.module == "benchmarks.compile_table":
            rows = arguments.out / f"{release}.jsonl"
            rows.unlink(missing_ok=True)
            extra = ["--problems-only", "--json", str(rows)]
        print(f"== Triton {release}", flush=True)
        done = subprocess.run(
            (sys.executable, "-m", arguments.module, *extra, *options),
            env=environment(RELEASES[release], arguments.environments.resolve()),
            check=False,
        )
        worst = max(worst, abs(done.returncode))
    if arguments.page:
        arguments.page.write_text("\n".join(page(read(arguments.out))), encoding="utf-8")
    return worst


if __name__ == "__main__":
    sys.exit(main())
