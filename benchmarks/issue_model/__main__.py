"""Print what the launches of one adapter call would take, modelled.

    python -m benchmarks.issue_model                          # the main shape on an H100
    python -m benchmarks.issue_model --card H200              # measured too, with faster memory
    python -m benchmarks.issue_model --shape 64 24 1024 --channels 128
    python -m benchmarks.issue_model --backend cuda --json
    python -m benchmarks.issue_model --keep output            # backward makes x of the output
    python -m benchmarks.issue_model --hazards                # no times: products in flight

No GPU is needed, and none is asked: the times are those of :mod:`benchmarks.issue_model.simulate`.
"""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.issue_model import hazards, table
from benchmarks.issue_model.launches import BACKENDS, Shape
from benchmarks.issue_model.machine import CARDS, MACHINES
from fastht.ops.plain import KEEP


def main() -> int:
    """Model one call and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, default="triton")
    parser.add_argument(
        "--shape", nargs=3, type=int, default=(256, 14, 768), metavar=("BATCH", "SIDE", "DIM")
    )
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--numbers", choices=table.DTYPE_BYTES, default="16")
    parser.add_argument("--keep", choices=KEEP, default="auto")
    parser.add_argument("--arch", choices=MACHINES, default="sm_90")
    parser.add_argument("--card", choices=CARDS, help="one of sm_90; H100 unless named")
    parser.add_argument("--only", default="", help="kernels with this in their names")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--hazards", action="store_true", help="matrix products in flight instead")
    arguments = parser.parse_args()
    shape = Shape(*arguments.shape, arguments.channels, arguments.numbers, arguments.keep)
    if arguments.hazards and arguments.backend == "cuda":
        parser.error("the CUDA kernels have no products in flight: mma.sync takes registers")
    if arguments.hazards:
        found = hazards.check(BACKENDS[arguments.backend](shape, arguments.arch, arguments.only))
        print("\n".join(map(str, found)))
        return int(any(hazard.problem() for hazard in found))
    if arguments.card and arguments.arch != "sm_90":
        parser.error(f"{arguments.card} is sm_90, not {arguments.arch}")
    machine = CARDS[arguments.card] if arguments.card else MACHINES[arguments.arch]
    rows = table.rows(shape, arguments.arch, arguments.backend, arguments.only, machine)
    if arguments.json:
        print(json.dumps(table.summary(shape, rows, machine)))
    else:
        print(table.text(shape, rows, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
