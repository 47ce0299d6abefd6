"""What one forward and backward pass needs beside its inputs and parameters, in a fresh process.

    python -m benchmarks.cpu.memory cpu 8x197x768 float32

prints, as JSON, the growth of the resident memory to its peak, the bytes that autograd keeps from
forward to backward, and the seconds that this one call took. Linux only: the kernel's own
high-water mark (VmHWM) is reset just before the call (proc(5), ``clear_refs``). Nothing of that
size has been allocated in the process before, so no memory that an allocator kept can hide what is
needed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu.cases import BACKENDS, SHAPES, Shape, adapter_passes, make_adapter

ROOT = Path(__file__).resolve().parents[2]
RESET_HIGH_WATER_MARK = "5"


def in_fresh_process(contestant: str, shape: str, dtype: str) -> dict[str, Any]:
    """Return what this module prints."""
    command = [sys.executable, "-m", __spec__.name, contestant, shape, dtype]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(contestant: str, shape: Shape, dtype: str) -> dict[str, Any]:
    """Run one forward and backward pass; see the module."""
    # A few tokens first: threads, libraries and what they allocate once are not the pass's.
    few = Shape(1, 2, shape.dim)
    adapter = make_adapter(few, BACKENDS[contestant])
    adapter_passes(few, dtype, adapter, adapter)["both"].once()

    passes = adapter_passes(shape, dtype, adapter, adapter)
    Path("/proc/self/clear_refs").write_text(RESET_HIGH_WATER_MARK)
    before = resident_bytes("VmRSS")
    start = time.perf_counter()
    passes["both"].once()
    seconds = time.perf_counter() - start
    peak = resident_bytes("VmHWM") - before

    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        passes["forward"].once()
    for parameter in adapter.parameters():  # alive anyway
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    return {"seconds": seconds, "peak_bytes": peak, "saved_bytes": sum(saved.values())}


def resident_bytes(field: str) -> int:
    """Return VmRSS (resident now) or VmHWM (at most since the last reset) of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)[1])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], SHAPES[sys.argv[2]], sys.argv[3])))
