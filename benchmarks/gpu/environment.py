"""What the phases run on, written before any of them.

python -m benchmarks.gpu.environment OUT/environment.json
python -m benchmarks.gpu.environment --chip             # prints what to compile for: sm_90
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.common import DRY, ROOT, write_json
from fastht.bench.machine import describe


def commit() -> str | None:
    """Return the state of the checkout, if it is one; the tree may hold changes of no commit."""
    command = ("git", "describe", "--always", "--dirty")
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def main() -> int:
    """Write the file; without a GPU there is nothing to write, but in the dry mode."""
    if not (DRY or torch.cuda.is_available()):
        print("torch sees no CUDA GPU here; --dry tries the script without one", file=sys.stderr)
        return 1
    if sys.argv[1] == "--chip":
        print("sm_90" if DRY else "sm_{}{}".format(*torch.cuda.get_device_capability()))
        return 0
    now = datetime.datetime.now(datetime.timezone.utc)
    write_json(
        Path(sys.argv[1]),
        {
            "date": now.isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": describe("cpu" if DRY else "cuda"),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
