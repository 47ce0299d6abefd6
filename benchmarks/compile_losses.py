"""The losses' part of :mod:`benchmarks.compile_table`: the launches of both sweeps, by form.

    python -m benchmarks.compile_table --of losses --arch sm_90 --forms clip semantic

A form is a combination of terms that the kernels are compiled for; those here have every branch in
one of them. E matters only by whether it fills tiles: 1000 stands for those that do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.compile_table import KINDS, OPTIONS, Row, compiling, matrix_unit, resources
from fastht.losses import triton as sweeps
from fastht.losses.sweeps import BOTH, ROWS, Coefficients, Form, Operands
from fastht.ops.triton import configs

DIMS = (256, 512, 640, 768, 1000, 1024)
NUMBERS = ("bf16", "fp16", "tf32", "32")
FORMS = {
    "clip": Form(softmax=BOTH),
    "clip-keys": Form(softmax=BOTH, keys=True),
    "siglip": Form(sigmoid=True),
    "siglip-keys": Form(sigmoid=True, keys=True),
    "labels": Form(kl=ROWS, mse=True),
    "semantic": Form(softmax=BOTH, kl=BOTH, mse=True),
    "shares": Form(softmax=BOTH, kl=BOTH, mse=True, shares=True, keys=True),
}
BATCH = 16384  # of several strips
TAGS, DIMENSIONS = 93, 9  # of the published taxonomy


def sweeps_on_meta(form: Form, dim: int, dtype: torch.dtype) -> None:
    """Launch both sweeps on tensors without storage."""

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    n = BATCH
    operands = Operands(
        new(n, dim, dtype=dtype), new(n, dim, dtype=dtype), new(), new(), 0,
        new(n, dtype=torch.int64), new(n, dtype=torch.int64), new(n, TAGS), new(n, TAGS),
        new(n, DIMENSIONS), new(n, DIMENSIONS), 0.07,
    )  # fmt: skip
    sweeps.forward(form, operands)
    vectors = new(3, n), new(3, n), new(n), new(n), new(n), new(4, n), new(4, n)
    sweeps.backward(form, operands, Coefficients(new(), *vectors))


def compiled(
    arch: str, name: str, numbers: str, dims: tuple[int, ...], only: str = ""
) -> Iterator[Row]:
    """Compile the kernels of one form once each."""
    dtype, _, tf32 = KINDS[numbers]
    found: dict[int, tuple[Any, str, dict[str, Any], set[int]]] = {}
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32

    def keep(kernel: Any, function: Any, grid: Any, values: dict[str, Any]) -> None:
        entry = found.setdefault(id(kernel), (kernel, function.__name__, values, set()))
        entry[3].add(dim)

    try:
        with compiling(arch, keep, only):
            for dim in dims:
                sweeps_on_meta(FORMS[name], dim, dtype)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for kernel, function, values, used in found.values():
        registers, stack, local = resources(kernel.asm["cubin"])
        options = " ".join(f"{key}={values[key]}" for key in OPTIONS if key in values)
        yield Row(
            configs.release(), arch, 0, numbers, f"{name} {function}", options, registers, stack,
            local, kernel.metadata.shared, matrix_unit(kernel.asm["ptx"]), tuple(sorted(used)),
        )  # fmt: skip
