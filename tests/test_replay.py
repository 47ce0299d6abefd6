"""Calls of the Triton backend that repeat recorded launches, against those that do not.

Without a GPU the kernels run in Triton's interpreter, where nothing is compiled: a stand-in for a
compiled kernel runs the interpreted one on what it finds at the addresses that it is given.
"""

import ctypes
import inspect
import weakref

import pytest
import torch
from engines import DEVICE
from test_ops import case

from fastht.ops.call import Call

pytest.importorskip("triton")
from fastht.ops import registry

if registry._triton_missing() is not None or registry._triton_refuses(DEVICE, torch.float32):
    pytest.skip("the Triton backend does not run here", allow_module_level=True)

from fastht.ops.triton import adapter, calls, launch, replay

if DEVICE == "cuda":
    pytestmark = pytest.mark.gpu
GRID = (2, 3)


class Compiled:
    """Stands for a compiled kernel, started as Triton starts those."""

    packed_metadata, function = (), 0

    def __init__(self, kernel, given):
        self.kernel = kernel
        self.kinds = [
            (v.dtype, v.shape, v.stride()) if isinstance(v, torch.Tensor) else None for v in given
        ]

    def run(self, *everything):
        *grid, _stream, _function, _metadata, _shown, _enter, _exit = everything[:9]
        values = [
            value if kind is None else tensor_at(value, *kind)
            for value, kind in zip(everything[9:], self.kinds, strict=True)
        ]
        self.kernel[tuple(grid)](*values)


class Interpreted:
    """Stands for a function of Triton's compiler; counts its launches."""

    launches = 0

    def __init__(self, kernel):
        self.kernel, self.signature = kernel, inspect.signature(kernel.fn)

    def __getitem__(self, grid):
        def launched(*args, **options):
            Interpreted.launches += 1
            self.kernel[grid](*args, **options)
            known = {k: v for k, v in options.items() if k in self.signature.parameters}
            return Compiled(self.kernel, self.signature.bind(*args, **known).arguments.values())

        return launched


def tensor_at(address, dtype, shape, strides):
    if address == 0:
        return torch.empty(0, dtype=dtype)
    count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


@pytest.fixture(autouse=True)
def recorder(monkeypatch):
    """Start without any record, and record on this machine's device."""
    monkeypatch.setattr(replay, "_known", {})
    if DEVICE == "cuda":
        return
    monkeypatch.setattr(replay, "DEVICES", {"cpu"})
    monkeypatch.setattr(replay, "_streams", lambda: lambda index: 0)
    for module in (adapter, launch):
        for name, kernel in vars(module).copy().items():
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Interpreted(kernel))


def make(number, variant="hybrid", spectral="channel", dropout=0.1, dtype=torch.float32):
    """Return a call's x, dout, parameters, seed and options, all other numbers for each number."""
    x, params, dout, _ = case(
        variant, spectral, batch=2, grid=GRID, dim=16, dtype=dtype, draw=number
    )
    seed = torch.tensor([7 + number], device=DEVICE) if dropout else None
    has_filter, has_gate = "spectral_filter" in params, "noise_gate.0.weight" in params
    call = Call(GRID, 1, has_filter, has_gate, dropout, 1e-5, dtype, False)
    return x, dout, params, seed, call


def both(module, x, dout, params, seed, call, needs=(True, True)):
    """Return all that both passes of one of the modules return."""
    out, *saved = module.forward(x, params, seed, call, True)
    dx, grads = module.backward(dout, x, params, seed, saved, call, *needs)
    return [out, *saved, *([] if dx is None else [dx]), *grads.values()]


def is_same(given, needs=(True, True)):
    wanted = both(adapter, *given, needs)
    found = both(calls, *given, needs)
    layout = [t.stride() for t in found] == [t.stride() for t in wanted]
    # Bits, as a number that is not one equals nothing; the fourth of a gate is nobody's.
    return layout and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, wanted, strict=True)
    )


def recorded():
    return [type(found).__name__ for found in replay._known.values()]


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, (True, True)),
        ({"dtype": torch.bfloat16}, (True, False)),
        ({"variant": "baseline", "dropout": 0.0}, (False, True)),
    ],
)
def test_repeated_calls_have_the_same_bits(options, needs):
    for number in range(3):
        assert is_same(make(number, **options), needs)
    assert recorded() == ["Replay", "Replay"]


@pytest.mark.skipif(DEVICE == "cuda", reason="launches are counted in the interpreter")
def test_repeated_calls_do_not_ask_triton():
    given = make(0)
    both(calls, *given)
    before = Interpreted.launches
    both(calls, *make(1))
    assert before > 0
    assert Interpreted.launches == before


def test_kinds_are_told_apart():
    x, dout, params, seed, call = make(0)
    assert is_same((x, dout, params, seed, call))
    wide = torch.stack([x, x], dim=2)[:, :, 0]
    assert wide.stride() != x.stride()
    assert is_same((wide, dout, params, seed, call))
    expanded = torch.full((1, 1, 1), 0.5, device=DEVICE).expand_as(dout)
    assert is_same((x, expanded, params, seed, call))
    half = {name: p.bfloat16() if name == "up.weight" else p for name, p in params.items()}
    assert is_same((x, dout, half, seed, call))
    assert is_same((x, dout, params, None, call))
    assert len(recorded()) > 6


def test_the_full_filter_is_repeated_forward_alone():
    for number in range(2):
        assert is_same(make(number, spectral="full"))
    assert recorded() == ["Replay", "NoneType"]  # PyTorch adds up the gradient of the filter


def test_addresses_that_triton_compiles_otherwise_for_are_left_to_it():
    x, dout, *rest = make(0)
    odd = torch.empty(x.numel() + 1, device=DEVICE)[1:].view_as(x).copy_(x)
    assert odd.data_ptr() % 16
    assert is_same((odd, dout, *rest))
    assert recorded() == []


def test_one_tensor_in_two_places_is_not_recorded():
    x, _, *rest = make(0)
    assert is_same((x, x, *rest))
    assert recorded() == ["Replay"]  # forward, where there is one x
    assert is_same(make(1))
    assert is_same(make(2))


def test_hooks_see_every_launch(monkeypatch):
    import triton

    assert is_same(make(0))
    runtime = triton.knobs.runtime
    if hasattr(runtime.launch_enter_hook, "add"):
        chain = type(runtime.launch_enter_hook)()
        chain.add(lambda _: None)
    else:
        chain = lambda _: None  # noqa: E731
    monkeypatch.setattr(runtime, "launch_enter_hook", chain)
    assert replay.find(torch.device(next(iter(replay.DEVICES))), "any", [16]) is None


def test_other_releases_of_triton_are_left_alone(monkeypatch):
    monkeypatch.setattr(replay.configs, "release", lambda: "3.99")
    assert is_same(make(0))
    assert recorded() == []


def test_a_record_keeps_no_tensor():
    given = make(0)
    results = both(calls, *given)
    seen = [weakref.ref(t) for t in (*given[:2], *given[2].values(), *results)]
    del given, results
    assert recorded() == ["Replay", "Replay"]
    assert not any(ref() is not None for ref in seen)


def test_records_are_not_kept_without_end(monkeypatch):
    monkeypatch.setattr(replay, "_MOST", 2)
    for dtype in (torch.float32, torch.bfloat16):
        assert is_same(make(0, dtype=dtype))
    assert len(recorded()) == 2
