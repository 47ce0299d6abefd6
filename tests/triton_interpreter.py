"""Triton's interpreter with its arithmetic mended, so that kernels can be tested without a GPU.

It multiplies bfloat16 matrices as if their bits were integers, and truncates where a GPU rounds.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_DTYPES = {tl.float32: torch.float32, tl.float16: torch.float16, tl.bfloat16: torch.bfloat16}
_HOST = {tl.float32: np.float32, tl.float16: np.float16, tl.bfloat16: np.uint16}


def _to_torch(handle):
    data = np.ascontiguousarray(handle.data)
    if handle.dtype.scalar == tl.bfloat16:
        return torch.from_numpy(data.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(data.copy())


def _to_handle(value, dtype):
    if dtype == tl.bfloat16:
        data = value.contiguous().view(torch.int16).numpy().view(np.uint16)
    else:
        data = value.numpy()
    return interpreter.TensorHandle(data, dtype)


def mend():
    """Replace the interpreter's float casts and its matrix product."""
    builder = interpreter.InterpreterBuilder
    original_cast, original_dot = builder.cast_impl, builder.create_dot

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source in _DTYPES and target in _DTYPES:
            return _to_handle(_to_torch(src).to(_DTYPES[target]), target)
        return original_cast(self, src, dst_type)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        a, b = (self.cast_impl(operand, tl.float32) for operand in (a, b))
        return original_dot(self, a, b, d, input_precision, max_num_imprecise_acc)

    builder.cast_impl = cast_impl
    builder.create_dot = create_dot
