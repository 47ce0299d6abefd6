"""Count what Triton kernels load and store, launch by launch and tensor by tensor.

Works in Triton's interpreter (``TRITON_INTERPRET=1`` before triton is imported), where every load
and store passes through Python. For each tensor argument it counts the elements that the programs
ask for, and the distinct ones among them, masked lanes left out.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from triton.runtime import interpreter


@dataclass
class Traffic:
    """What one launch did to one tensor argument, in bytes."""

    requested: int = 0
    touched: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    itemsize: int = 1

    @property
    def distinct(self) -> int:
        """Bytes of distinct elements, loaded or stored."""
        return int(self.touched.sum()) * self.itemsize


@dataclass
class Launch:
    """One kernel launch: its name and the traffic of each tensor, by argument name."""

    kernel: str
    tensors: dict[str, Traffic]


@contextlib.contextmanager
def metered() -> Iterator[list[Launch]]:
    """Collect the launches of the block; the interpreter is as before afterwards."""
    launches: list[Launch] = []
    ranges: list[tuple[int, int, Traffic]] = []
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, executor.__call__

    def count(pointers: Any, mask: Any) -> None:
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        addresses = np.broadcast_to(pointers.data, shape)[np.broadcast_to(mask.data, shape)]
        if addresses.size == 0:
            return
        first = int(addresses.flat[0])
        start, _, traffic = next(entry for entry in ranges if entry[0] <= first < entry[1])
        index = (addresses - np.uint64(start)) // np.uint64(traffic.itemsize)
        # A kernel may look at a tensor by other elements than its own: two 16-bit numbers a word.
        bits = pointers.get_element_ty().primitive_bitwidth
        elements = max(1, bits // 8 // traffic.itemsize)
        traffic.requested += addresses.size * traffic.itemsize * elements
        for element in range(elements):
            traffic.touched[index.astype(np.int64) + element] = True

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        count(pointers, mask)
        return load(self, pointers, mask, *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        count(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def launch(self: Any, *arguments: Any, **options: Any) -> Any:
        names = inspect.getfullargspec(self.fn).args
        record = Launch(self.fn.__name__.removesuffix("_kernel"), {})
        ranges.clear()
        for name, value in zip(names, arguments, strict=False):
            if hasattr(value, "data_ptr") and value.numel():
                steps = zip(value.shape, value.stride(), strict=True)
                extent = 1 + sum((size - 1) * stride for size, stride in steps)
                start, itemsize = value.data_ptr(), value.element_size()
                if any(start == known for known, _, _ in ranges):
                    continue  # the same tensor under another name
                traffic = Traffic(0, np.zeros(extent, dtype=bool), itemsize)
                record.tensors[name] = traffic
                ranges.append((start, start + extent * itemsize, traffic))
        launches.append(record)
        return call(self, *arguments, **options)

    builder.create_masked_load = create_masked_load
    builder.create_masked_store = create_masked_store
    executor.__call__ = launch
    try:
        yield launches
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        executor.__call__ = call
