"""The kernels on a CPU (``FASTHT_CUDA_SIMULATE=1``), for tests: compiled by the C++ compiler.

Needs a checkout of fastht, whose ``csrc/cuda/simulate.h`` runs a block's threads one after another.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fastht.ops.cuda import kernels, sources
from fastht.ops.cuda.sources import Kernel

# What a plan may use: the limits of compute capability 9.0.
DEVICE = (232_448, 233_472, 132)
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off")


class _Launch(ctypes.Structure):  # csrc/cuda/simulate.h
    _fields_ = (
        ("blocks", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_size_t),
        ("order", ctypes.c_uint64),
        ("truncate", ctypes.c_bool),
    )


def enabled() -> bool:
    """Whether CPU tensors are taken: ``FASTHT_CUDA_SIMULATE=1``."""
    return os.environ.get("FASTHT_CUDA_SIMULATE") == "1"


def launcher(
    wanted: Sequence[Kernel], threads: Sequence[int]
) -> Callable[[int, int, int, int], None]:
    """Return the function that runs kernels by their number in a plan.

    ``FASTHT_CUDA_ORDER`` seeds the order in which threads and blocks take turns (0: by number), and
    ``FASTHT_CUDA_TRUNCATE=1`` rounds products towards zero, as tensor cores do.
    """
    functions = [_function(kernel) for kernel in wanted]

    def launch(kernel: int, blocks: int, shared_bytes: int, params: int) -> None:
        how = _Launch(
            blocks,
            threads[kernel],
            shared_bytes,
            int(os.environ.get("FASTHT_CUDA_ORDER", "0")),
            os.environ.get("FASTHT_CUDA_TRUNCATE") == "1",
        )
        functions[kernel](ctypes.byref(how), ctypes.c_void_p(params))

    return launch


@functools.cache
def _function(kernel: Kernel) -> Callable[..., None]:
    """Return the kernel, compiled now or by an earlier process.

    Raises:
        LookupError: there is no checkout, or no compiler.
    """
    if not (sources.CHECKOUT / "cuda" / "simulate.h").is_file():
        raise LookupError("the CUDA kernels' simulator comes with a checkout of fastht only")
    compiler = os.environ.get("CXX", "c++")
    store = kernels.cache()
    simulator = (sources.CHECKOUT / "cuda" / "simulate.h").read_text(encoding="utf-8")
    key = sources.key(kernel, "simulated", compiler, (*_FLAGS, simulator))
    path = store.path("simulated", kernel.name, key).with_suffix(".so")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
            source.write_text(kernel.source, encoding="utf-8")
            command = [compiler, *_FLAGS, f"-I{sources.CHECKOUT}", str(source), "-o", str(library)]
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except FileNotFoundError:
                raise LookupError(f"no C++ compiler {compiler!r} for the CUDA simulator") from None
            except subprocess.CalledProcessError as error:
                raise RuntimeError(f"{kernel.function}: {error.stderr}") from None
            os.replace(library, path)
    return getattr(ctypes.CDLL(str(path)), kernel.symbol)  # type: ignore[no-any-return]
