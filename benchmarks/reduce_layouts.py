"""Which calls add up in the same order, by the layouts of the compiled kernels' reductions.

    python -m benchmarks.reduce_layouts --arch sm_90 --numbers 32 bf16

The tests ask for equal bits of calls that differ in strides or in what is computed. On a GPU the
bits are equal if the threads hold the elements of every ``tt.reduce`` in the same layout, which the
compiler chooses anew for each kind of strides. Compiles the kinds of the tests and compares them
with a contiguous call; ``features slowest``, where another layout is expected, shows that the
comparison sees one. Exit status: 0, or 1 where that is not what is found.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.compile_table import KINDS, SHARED_LIMIT, compiling
from fastht import HTAdapter, HTConfig
from fastht.ops.call import Call
from fastht.ops.triton import adapter

SHAPE = (2, 31, 48)
GRID = (5, 6)
CHANNELS = 16

Layouts = dict[str, list[tuple[str, ...]]]  # of each kernel's compilations, those of its reductions
Change = Callable[[Tensor], Tensor]


def sequence_first(x: Tensor) -> Tensor:
    """Lay the tokens out as ``[N, B, D]``."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


@dataclass(frozen=True)
class Kind:
    """How a call differs from one on contiguous tensors that computes everything."""

    x: Change = lambda x: x
    dout: Change = lambda dout: dout
    save: bool = True
    need_input: bool = True
    need_weights: bool = True


EQUAL = {
    "x sequence first": Kind(x=sequence_first),
    "x sliced": Kind(x=lambda x: torch.stack([x, x], dim=2)[:, :, 1]),
    "dout sequence first": Kind(dout=sequence_first),
    "dout broadcast": Kind(dout=lambda dout: dout[:1, :1, :1].expand(SHAPE)),
    "x frozen": Kind(need_input=False),
    "weights frozen": Kind(need_weights=False),
    "no backward": Kind(save=False),
}
CONTROL = {"features slowest": Kind(x=lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))}


def layouts(arch: str, numbers: str, kind: Kind) -> Layouts:
    """Compile a call and return the layouts of its reductions, in their order."""
    found: Layouts = {}

    def keep(kernel: Any, function: Any, grid: Any, values: dict[str, Any]) -> None:
        here = tuple(reductions(kernel.asm["ttgir"]))
        if here not in found.setdefault(function.__name__, []):
            found[function.__name__].append(here)

    dtype, product_dtype, tf32 = KINDS[numbers]
    config = HTConfig(bottleneck_dim=CHANNELS)
    module = HTAdapter(SHAPE[2], config, grid_size=GRID, device="meta")
    params = {name: p.detach() for name, p in module.named_parameters()}
    x = kind.x(torch.empty(SHAPE, device="meta", dtype=dtype))
    dout = kind.dout(torch.empty(SHAPE, device="meta", dtype=dtype))
    call = Call(GRID, 1, True, True, 0.0, 1e-5, product_dtype, tf32)
    with compiling(arch, keep):
        _, *saved = adapter.forward(x, params, None, call, kind.save)
        if kind.save:
            needs = kind.need_input, kind.need_weights
            adapter.backward(dout, x, params, None, tuple(saved), call, *needs)
    return found


def reductions(ttgir: str) -> Iterator[str]:
    """Yield axis, shape and layout of each ``tt.reduce``, names of layouts being spelled out."""
    names = dict(re.findall(r"^(#\w+) = (.+)$", ttgir, flags=re.MULTILINE))
    for axis, operands in re.findall(
        r'"tt\.reduce"\(.*?\) <\{axis = (\d+) : i32\}> \(\{.*?\}\) : \((.*?)\) ->', ttgir, re.DOTALL
    ):
        while known := [name for name in re.findall(r"#\w+\b", operands) if name in names]:
            operands = re.sub(rf"{known[0]}\b", lambda _, n=known[0]: names[n], operands)
        yield f"axis {axis} of {operands}"


def differing(plain: Layouts, other: Layouts) -> list[str]:
    """Return the kernels of ``other`` with a reduction that the plain call has not in that place.

    A call that computes less has fewer reductions: those that it has must be among the plain
    call's, in their order.
    """
    return [
        kernel
        for kernel, compilations in other.items()
        if not all(any(_within(one, all_) for all_ in plain[kernel]) for one in compilations)
    ]


def _within(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    rest = iter(whole)
    return all(layout in rest for layout in part)


def main() -> int:
    """Print what differs, and whether that is as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=SHARED_LIMIT, default=["sm_90"])
    parser.add_argument("--numbers", nargs="+", choices=KINDS, default=["32", "bf16"])
    arguments = parser.parse_args()
    wrong = 0
    for arch in arguments.arch:
        for numbers in arguments.numbers:
            plain = layouts(arch, numbers, Kind())
            count = sum(len(one) for compilations in plain.values() for one in compilations)
            print(f"{arch} {numbers}: {count} reductions in {len(plain)} kernels", flush=True)
            for name, kind in (EQUAL | CONTROL).items():
                found = differing(plain, layouts(arch, numbers, kind))
                expected = name in EQUAL
                wrong += bool(found) == expected
                print(f"  {name}: {', '.join(found) or 'the same'}", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
