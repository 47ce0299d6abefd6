"""Turn results of the suites into a page for each machine, with tables and pictures.

    pytest benchmarks --benchmark-only --benchmark-json runs/cpu.json
    python -m benchmarks.report runs/cpu.json [MORE.json ...]

writes ``README.md``, pictures and ``results.json`` into ``benchmarks/results/<device>/`` and prints
the page's path. The page follows from that ``results.json`` and, where a person wrote one, from
``notes.md`` beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import compare, folder, load, pages, pictures, provenance
from benchmarks.report.load import ReportError
from benchmarks.report.results import Results

RESULTS = Path(__file__).resolve().parents[1] / "results"
LARGEST_CHANGES = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("results", nargs="+", type=Path, help="JSON of pytest-benchmark")
    parser.add_argument("--against", type=Path, metavar="OLD.json", help="compare, write nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write into another folder")
    parser.add_argument("--replace", action="store_true", help="replace the results in the folder")
    chosen = parser.parse_args(arguments)
    if chosen.against and (chosen.out or chosen.replace):
        parser.error("--against writes nothing: leave out --out and --replace")
    try:
        results = load.load(chosen.results)
        for suite, count in results.unknown.items():
            print(f"not shown: {count} of {suite}, which no page knows", file=sys.stderr)
        if chosen.against:
            print(*compare.report(load.load([chosen.against]), results), sep="\n")
        else:
            out = chosen.out or RESULTS / provenance.slug(results)
            write(results, out, replace=chosen.replace)
            print(out / folder.PAGE)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write(results: Results, out: Path, *, replace: bool) -> None:
    """Write the page and what lies beside it.

    Raises:
        ReportError: there are results and they are not to be replaced, or are another machine's,
            or there is something else that would be lost.
    """
    if (out / folder.DATA).exists():
        if not replace:
            raise ReportError(
                f"{out} already holds results: --replace replaces them, --out DIR writes elsewhere"
            )
        old = load.load([out / folder.DATA])
        print(*compare.report(old, results, LARGEST_CHANGES), sep="\n")
    elif strange := [name for name in folder.WRITTEN if (out / name).exists()]:
        raise ReportError(
            f"{out} has {', '.join(strange)} but no {folder.DATA}, so it is no page of results; "
            "--out DIR writes elsewhere"
        )
    notes = out / folder.NOTES
    drawn = pictures.draw(results)
    page = pages.page(results, drawn, notes.read_text("utf-8") if notes.exists() else "")
    data = load.dump(results)
    folder.install(out, {folder.PAGE: page.encode(), folder.DATA: data.encode(), **drawn})


if __name__ == "__main__":
    sys.exit(main())
