"""Phase 6: what the other phases found, as one Markdown page and one JSON file.

    python -m benchmarks.gpu.report OUT PHASES

PHASES is the file in which ``run_gpu.sh`` keeps, for each phase that ran, its name, exit status,
seconds and limit. The page is printed too. Exit status: the number of phases that failed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DRY = os.environ.get("FASTHT_DRY") == "1"
DRY_NOTE = "dry run, no measurement"
PARTS = ("forward", "backward", "both")


def figure(value: float | None, form: str = ".3f") -> str:
    """Return a measured number as text, marked if it is none."""
    if value is None:
        return "-"
    return marked(f"{value:{form}}")


def time_of(found: dict[str, Any]) -> str:
    """Return a median and the range of the rounds that it is of, in milliseconds."""
    low, high = found["range_ms"]
    return marked(f"{found['ms']:.3f} ({low:.3f} to {high:.3f})")


def marked(text: str) -> str:
    """Return a figure with the note that it is none, in a dry run."""
    return f"{text} ({DRY_NOTE})" if DRY else text


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Yield a Markdown table and an empty line."""
    header = list(header)
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        cells = [short(str(cell).replace("|", "/")) for cell in row]
        yield f"| {' | '.join(cells)} |"
    yield ""


def short(text: str) -> str:
    """Return the beginning of a long text; the files beside the summary have the rest."""
    return text if len(text) <= 160 else f"{text[:157]}..."


def read_phases(path: Path) -> list[dict[str, Any]]:
    """Return name, outcome and time of each phase that ran."""
    phases = []
    for line in path.read_text().splitlines() if path.exists() else ():
        name, status, seconds, limit = line.split()
        outcome = {"0": "passed", "124": "out of time", "137": "out of time"}.get(status, "failed")
        phases.append(
            {"name": name, "outcome": outcome, "seconds": int(seconds), "limit": int(limit)}
        )
    return phases


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a phase's results, or ``None`` if it left none."""
    return json.loads(path.read_text()) if path.exists() else None


def last_lines(path: Path, pattern: str) -> list[str]:
    """Return the lines of a log that match, without what ``=`` and spaces surround them."""
    if not path.exists():
        return []
    lines = (line.strip("= \n") for line in path.read_text(errors="replace").splitlines())
    return [line for line in lines if re.search(pattern, line)]


def kernel_tables(kernels: dict[str, Any]) -> Iterator[str]:
    """Show the times of the operator, of its CUDA graph and of its launches."""
    copies = [c["bytes_per_second"] / 1e9 for c in kernels["copy"] if "error" not in c]
    yield (
        f"{kernels['dtype']}; C = {kernels['channels']}; medians over {kernels['rounds']} rounds. "
        "Floor: x in and out out (4 D bytes a token), dout and x in and dx out (6 D). A large copy "
        f"in the same rounds moved {', '.join(figure(c, '.0f') for c in copies) or 'nothing'} GB/s "
        "(read and written)."
    )
    yield ""
    header = ["B, N, D", "operator"]
    for part in PARTS:
        header += [f"{part} ms (range)", "floor GB/s", "of copy"]
    rows = []
    for row in kernels["rows"]:
        cells = [row["shape"], row["name"]]
        if "error" in row:
            rows.append([*cells, row["error"], *["-"] * 8])
            continue
        for part in PARTS:
            cells += [
                time_of(row[part]),
                figure(row[part]["floor_gb_per_s"], ".0f"),
                figure(row[part]["fraction"], ".2f"),
            ]
        rows.append(cells)
    yield from table(header, rows)

    rows = []
    for row in kernels["rows"]:
        for peer in ("eager", "compiled"):
            if speedups := row.get(f"speedup_over_{peer}"):
                cells = [figure(speedups[part], ".2f") for part in PARTS]
                rows.append([row["shape"], peer, *cells])
    yield from table(("B, N, D", "fused is faster by, over", *PARTS), rows)

    graphs = kernels.get("graph", {})
    yield "Forward and backward replayed as one CUDA graph, last shape:"
    yield ""
    rows = [[name, found.get("error") or figure(found["both"])] for name, found in graphs.items()]
    yield from table(("operator", "ms"), rows)

    profile = kernels.get("profile", {})
    yield "Launches of one fused forward and backward, first shape (torch.profiler, warm L2):"
    yield ""
    if "error" in profile:
        yield profile["error"]
    else:
        rows = [
            [f"`{name}`", figure(launches, ".1f"), figure(each, ".1f")]
            for name, launches, each in profile.get("kernels", [])
        ]
        yield from table(("kernel", "launches", "µs each"), rows)


def training_table(training: dict[str, Any]) -> Iterator[str]:
    """Show the training steps."""
    yield (
        f"{training['model']}, batch {training['batch']}, torch.autocast to bfloat16, "
        f"{training['rounds']} rounds; frozen weights float32 unless the row says bf16. Forward, "
        "cross-entropy, backward, fused AdamW."
    )
    yield ""
    lora = {
        (row["compiled"], row["base"]): row["ms"]
        for row in training["rows"]
        if row["method"] == "lora" and "error" not in row
    }
    rows = []
    for row in training["rows"]:
        if "error" in row:
            rows.append([row["name"], row["error"], *["-"] * 3])
            continue
        peak, peer = row["peak_bytes"], lora.get((row["compiled"], row["base"]))
        rows.append(
            [
                row["name"],
                time_of(row),
                figure(peer and row["ms"] / peer, ".2f"),
                figure(peak and peak / 2**30, ".2f"),
                marked(f"{row['trainable']:,}"),
            ]
        )
    header = ("", "ms a step (range)", "of LoRA's alike", "peak GiB", "trainable")
    yield from table(header, rows)


def page(out: Path, phases: list[dict[str, Any]], found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the summary."""
    yield "# fastht on a GPU" + (f": {DRY_NOTE}" if DRY else "")
    yield ""
    if environment := found["environment"]:
        device = environment["gpu"].get("name", "no GPU")
        smi = environment["gpu"].get("nvidia_smi", {})
        packages = environment["packages"]
        yield (
            f"{environment['date']}, {device}, driver {smi.get('driver_version')}, "
            f"torch {packages['torch']}, triton {packages['triton']}, "
            f"fastht {environment['fastht']} at {environment['commit']}"
        )
        yield ""
    rows = [[p["name"], p["outcome"], f"{p['seconds']} of {p['limit']}"] for p in phases]
    yield from table(("phase", "outcome", "seconds"), rows)
    for name in ("tests", "sanitizer"):
        if lines := found[name]:
            yield f"## {name}"
            yield ""
            yield from (f"- {short(line)}" for line in lines[-40:])
            yield ""
    for name, show in (("kernels", kernel_tables), ("training", training_table)):
        if results := found[name]:
            yield f"## {name}" + (f": {DRY_NOTE}" if DRY else "")
            yield ""
            yield from show(results)


def main() -> int:
    """Write summary.md and summary.json, and print the page."""
    out, phases = Path(sys.argv[1]), read_phases(Path(sys.argv[2]))
    found: dict[str, Any] = {
        name: read_json(out / f"{name}.json") for name in ("environment", "kernels", "training")
    }
    found["tests"] = last_lines(
        out / "tests.log", r"^(FAILED|ERROR) |\d (passed|failed|error)|^no "
    )
    pattern = r"^case .*INCORRECT|SUMMARY|exit status|compute-sanitizer is not|^no time|^\w+Error"
    found["sanitizer"] = last_lines(out / "sanitizer.log", pattern)
    text = "\n".join(page(out, phases, found))
    (out / "summary.md").write_text(text + "\n")
    content = {"note": DRY_NOTE} if DRY else {}
    content |= {"phases": phases, **found}
    (out / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    print(text)
    return sum(phase["outcome"] != "passed" for phase in phases)


if __name__ == "__main__":
    sys.exit(main())
