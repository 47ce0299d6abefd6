"""What NVRTC makes of every kernel computes what the simulator computes of its source."""

import ctypes
import os
import re

import numpy as np
import pytest
import torch
from ptx_machine import Machine, Memory, parse

from benchmarks import byte_model
from fastht.ops.cuda import kernels, native, nvrtc, simulated

try:
    NVRTC = nvrtc.load()
except LookupError:
    NVRTC = None
pytestmark = [
    pytest.mark.skipif(NVRTC is None, reason="needs NVRTC"),
    pytest.mark.skipif(native is None, reason="needs the native extension with CUDA"),
]
if native is not None:
    from cuda_calls import SmallCall, raw


@pytest.fixture(autouse=True)
def _compiled_quickly(monkeypatch):
    """The calls are small: to optimise what computes them takes longer than they do."""
    monkeypatch.setattr(simulated, "_FLAGS", (*simulated._FLAGS, "-O0"))


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    # One for the module and for all workers of pytest-xdist, or what is named to be shared with
    # others: g++ takes seconds for each kernel.
    if "FASTHT_CACHE" in os.environ:
        return
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    monkeypatch.setenv("FASTHT_CACHE", str(folder / "simulated"))


def differences(machine, simulator, dtype):
    """Return which share of the numbers has other bits, and the largest relative difference."""
    a, b = (torch.frombuffer(bytearray(each), dtype=dtype).double().numpy()
            for each in (machine, simulator))  # fmt: skip
    both_nan = np.isnan(a) & np.isnan(b)
    share = np.mean((a != b) & ~both_nan)
    scale = np.nanmax(np.abs(b), initial=0.0)
    worst = np.max(np.where(both_nan, 0.0, np.abs(a - b)), initial=0.0)
    return share, worst / scale if scale else worst


def compare(call, needs, arch, change=lambda name, ptx: ptx, only=None):
    """Run a pass, each launch by the machine and by the simulator.

    Returns for each launch which arrays differ and how, what the machine counted, and how many
    bytes of each array it moved; ``only``: the kernels that the machine runs, all of them by
    default.
    """
    seen = {}

    def observe(kernel, blocks, threads, shared, params, simulate):
        if only is not None and kernel.name not in only:
            return simulate()
        arrays, memory = call.arrays(), Memory()
        arrays = {name: tensor for name, tensor in arrays.items() if tensor.numel()}
        for tensor in arrays.values():
            memory.place(raw(tensor), tensor.data_ptr())
        ptx = kernels.compile_kernel(NVRTC, kernel, arch, ptx=True).decode()
        program = parse(change(kernel.name, ptx))
        given = ctypes.string_at(params, program.parameter_bytes)
        memory.meter()
        counted = Machine(program, memory).run(blocks, threads, shared, given)
        moved = {name: memory.distinct(tensor.data_ptr()) for name, tensor in arrays.items()}
        simulate()
        report = {}
        for name, tensor in arrays.items():
            mine, theirs = memory.read(tensor.data_ptr()), raw(tensor)
            if not np.array_equal(mine, theirs):
                dtype = torch.float32 if name == "workspace" else tensor.dtype
                report[name] = differences(mine, theirs, dtype)
        name = kernel.name
        while name in seen:
            name += " again"
        seen[name] = (report, counted, moved)

    call.run(needs, observe)
    return seen


def check(seen, products):
    """Bits are equal but where exp and erf, which the device computes otherwise, decide them."""
    step = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2e-6}[products]
    for name, (report, counted, _) in seen.items():
        assert counted.undefined == set(), name
        for array, (share, worst) in report.items():
            # The workspace holds maps in the products' format beside float32 sums.
            if array == "workspace":
                assert worst <= 1e-6, (name, array)
            else:
                assert share <= 1e-3 or worst <= 1e-6, (name, array)
                assert worst <= step, (name, array)


def check_bytes(seen, call):
    """Tokens and saved maps are moved once a launch, as the byte model has it.

    What a pass keeps to itself lies in one workspace, which is not told apart.
    """
    c = call.configuration
    tokens = c.batch * call.tokens
    shape = byte_model.Shape(
        tokens, c.dim, native.padded_channels(c.channels), call.dtype.itemsize,
        call.saved["u"].element_size(),
    )  # fmt: skip
    passes = byte_model.forward(shape, "cuda") | byte_model.backward(shape, "cuda", rebuild=True)
    workspace = {"contract": 2, "mix_back": 2, "expand": 2}  # maps: z, dv; dv, du; du, z
    for name, (_, _, moved) in seen.items():
        if name not in passes:
            continue
        expected = passes[name] - workspace.get(name, 0) * shape.narrow
        expected -= shape.pair if name in ("mix_back", "expand") else 0  # the row means
        found = sum(moved[array] for array in ("x", "out", "dout", "dx", "u", "u_norm", "stats"))
        assert found == expected, (name, moved)


BACKWARD = None
try:
    SmallCall(torch.bfloat16, torch.bfloat16).run((True, True), lambda *_: None)
except (ValueError, NameError) as error:
    BACKWARD = str(error)
needs_backward = pytest.mark.skipif(BACKWARD is not None, reason=str(BACKWARD))
PASSES = [None, pytest.param((True, True, True), marks=[needs_backward, pytest.mark.slow])]
NUMBERS = {
    "bf16": (torch.bfloat16, torch.bfloat16, False),
    "fp16": (torch.float16, torch.float16, False),
    "tf32": (torch.float32, torch.float32, True),
    "32": (torch.float32, torch.float32, False),
}


def passes(numbers, arch, *marks, backward=()):
    """Return the cases of both passes, with their marks."""
    backward = (needs_backward, *marks, *backward)
    return [
        pytest.param(numbers, arch, None, marks=marks, id=f"{numbers}-{arch}-forward"),
        pytest.param(numbers, arch, (True, True), marks=backward, id=f"{numbers}-{arch}-backward"),
    ]


@pytest.mark.parametrize(
    ("numbers", "arch", "needs"),
    [
        *passes("bf16", "sm_80", backward=[pytest.mark.slow]),
        *passes("32", "sm_90a", pytest.mark.slow),
        *passes("bf16", "sm_90a", pytest.mark.sweep),
        *passes("fp16", "sm_80", pytest.mark.sweep),
        *passes("tf32", "sm_80", pytest.mark.sweep),
    ],
)
def test_the_compiled_kernels_compute_what_their_source_says(numbers, arch, needs):
    dtype, products, tf32 = NUMBERS[numbers]
    call = SmallCall(dtype, products, tf32=tf32, dim=64, grid=(3, 5), batch=1)
    if needs is not None:
        call.run(None)
    seen = compare(call, needs, arch)
    assert len(seen) >= 3
    check(seen, products)
    check_bytes(seen, call)


@pytest.mark.parametrize("needs", PASSES, ids=["forward", "backward"])
def test_the_compiled_full_filter_computes_what_its_source_says(needs):
    """The backward pass makes x of the output, too."""
    call = SmallCall(
        torch.bfloat16, torch.bfloat16, dim=64, channels=32, grid=(3, 4), spectral="full"
    )
    if needs is not None:
        call.run(None)
    only = ("spectral", "row_means", "mix_up") if needs else ("spectral",)
    seen = compare(call, needs, "sm_80", only=only)
    backward = ["spectral", "mix_up", "spectral again", "row_means"]
    assert list(seen) == (backward if needs else ["spectral"])
    check(seen, torch.bfloat16)
    if needs:
        moved = seen["mix_up"][2]
        assert moved["out"] == moved["dx"] == call.out.nbytes
        assert moved["x"] == moved["dout"] == 0


def test_a_fault_in_the_machine_code_is_seen():
    def swapped(name, ptx):
        """Exchange the two words of B in the first product of mix_up."""
        if name != "mix_up":
            return ptx
        head, mma, rest = ptx.partition("mma.sync")
        assert mma
        operands, end, rest = rest.partition(";")
        changed = re.sub(r"\{(%r\d+), ?(%r\d+)\}", r"{\2,\1}", operands)
        assert changed != operands
        return head + mma + changed + end + rest

    call = SmallCall(torch.bfloat16, torch.bfloat16, dim=64, grid=(3, 5), batch=1)
    seen = compare(call, None, "sm_80", swapped, only=("mix_up",))
    assert "out" in seen["mix_up"][0]
    with pytest.raises(AssertionError):
        check(seen, torch.bfloat16)
