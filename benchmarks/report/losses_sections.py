"""The section about contrastive losses: text and tables, without headings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.report import derive
from benchmarks.report.derive import Group, ratio
from benchmarks.report.results import Entry, Results
from benchmarks.report.tables import mebibytes, milliseconds, table, times

CASE = ("loss", "batch", "width", "dtype")
HEADER = ("loss", "B", "width", "dtype")


def losses(results: Results) -> Iterator[str]:
    """Show times, then peaks, of all contestants by loss and batch."""
    timed = derive.groups(results, "test_losses", *CASE)
    measured = derive.groups(results, "test_losses_memory", *CASE)
    if not timed and not measured:
        return
    yield (
        "Forward and backward of a loss of B images and B texts: gradients of the features and of "
        "the scale. `fused`: fastht's backend, here "
        f"`{results.fused_in('test_losses')}`; `dense`: plain PyTorch that makes the B x B logits "
        "once; `open_clip`: its modules; `chunked`: its SigLIP by chunks of rows; `memeff` and "
        "`siglip-kernel`: public fused kernels. A dash: has no such loss, was not installed, or "
        "was not measured."
    )
    yield ""
    if timed:
        yield "Milliseconds."
        yield ""
        yield from _table(timed, milliseconds, lambda entry: entry.median, rounds=True)
    if measured:
        yield (
            "Peak, in MiB: by how much memory grows above the features during one call in a fresh "
            "process; the median of several where B is small."
        )
        yield ""
        yield from _table(measured, _peak, lambda entry: entry.info["peak_bytes"], rounds=False)


def _table(
    found: dict[tuple, Group],
    shown: Callable[[Entry | None], str],
    value_of: Callable[[Entry], float | None],
    *,
    rounds: bool,
) -> Iterator[str]:
    """Show what each contestant has, and what it has over the fused backend."""
    names = derive.contestants(found)
    rivals = [name for name in names if name != "fused"]
    rows = []
    for case, group in found.items():
        values = {name: value_of(entry) for name, entry in group.items()}
        row = [*case, *(shown(group.get(name)) for name in names)]
        row += [times(ratio(values.get(name), values.get("fused"))) for name in rivals]
        rows.append((*row, *([max(entry.rounds for entry in group.values())] if rounds else [])))
    against = (f"{name} / fused" for name in rivals)
    yield from table((*HEADER, *names, *against, *(["rounds"] if rounds else [])), rows)


def _peak(entry: Entry | None) -> str:
    return mebibytes(None if entry is None else entry.info["peak_bytes"])
