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

from fastht.ops.triton import adapter, calls, expansion, launch, replay

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
    for module in (adapter, expansion, launch):
        for name, kernel in vars(module).copy().items():
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Interpreted(kernel))


def make(
    number, variant="hybrid", spectral="channel", dropout=0.1, dtype=torch.float32, channels=8
):
    """Return a call's x, dout, parameters, seed and options, all other numbers for each number."""
    shape = {"batch": 2, "grid": GRID, "dim": 16, "channels": channels}
    x, params, dout, _ = case(variant, spectral, dtype=dtype, draw=number, **shape)
    seed = torch.tensor([7 + number], device=DEVICE) if dropout else None
    has_filter, has_gate = "spectral_filter" in params, "noise_gate.0.weight" in params
    call = Call(GRID, 1, has_filter, has_gate, dropout, 1e-5, dtype, False)
    return x, dout, params, seed, call


def passes(module, x, dout, params, seed, call, needs):
    """Return all that the passes of a module return; the forward pass alone without ``needs``."""
    out, *saved = module.forward(x, params, seed, call, needs is not None)
    if needs is None:
        return [out, saved[0]]
    dx, grads = module.backward(dout, x, params, seed, saved, call, *needs)
    return [out, *saved[:4], *([] if dx is None else [dx]), *grads.values()]


def equal(found, wanted):
    return all(
        torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(found, wanted, strict=True)
    )


def is_same(given, needs=None):
    return equal(passes(calls, *given, needs), passes(adapter, *given, needs))


def recorded():
    return [type(found).__name__ for found in replay._known.values()]


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({"dtype": torch.bfloat16}, (True, True)),
        ({"variant": "baseline", "dropout": 0.0}, (False, True)),
        ({}, None),
    ],
)
def test_repeated_calls_have_the_same_bits_and_do_not_ask_triton(options, needs):
    first, second = make(0, **options), make(1, **options)
    wanted = [passes(adapter, *given, needs) for given in (first, second)]
    found = [passes(calls, *first, needs)]
    assert set(recorded()) == {"Replay"}
    before = Interpreted.launches
    found.append(passes(calls, *second, needs))
    assert Interpreted.launches == before  # 0 on a GPU, where nothing stands for Triton's
    assert all(map(equal, found, wanted))
    assert not equal(*wanted)


def test_kinds_are_told_apart():
    x, dout, params, seed, call = make(0)
    wide = torch.stack([x, x], dim=2)[:, :, 0]
    assert wide.stride() != x.stride()
    half = {name: p.bfloat16() if name == "up.weight" else p for name, p in params.items()}
    for given in (
        (x, dout, params, seed, call),
        (wide, dout, params, seed, call),
        (x, dout, half, seed, call),
        (x, dout, params, None, call),
    ):
        assert is_same(given)
    assert recorded() == ["Replay"] * 4


def test_parameters_of_other_sizes_make_a_kind():
    for options in ({}, {"channels": 12}, {"spectral": "full"}):
        assert is_same(make(0, **options))
    assert recorded() == ["Replay"] * 3
    assert is_same(make(0), (False, True))
    assert is_same(make(0, channels=12), (False, True))
    assert recorded() == ["Replay"] * 7


def test_strides_of_the_upstream_gradient_make_a_kind():
    x, dout, *rest = make(0)
    expanded = torch.full((1, 1, 1), 0.5, device=DEVICE).expand_as(dout)
    passes(calls, x, dout, *rest, (True, False))
    assert is_same((x, expanded, *rest), (True, False))
    assert recorded() == ["Replay"] * 3


def test_the_full_filter_is_repeated_forward_alone():
    for number in range(2):
        assert is_same(make(number, spectral="full"))
    passes(calls, *make(0, spectral="full"), (True, True))
    assert recorded() == ["Replay", "Replay", "NoneType"]  # PyTorch adds up the filter's gradient


def test_addresses_that_triton_compiles_otherwise_for_are_left_to_it():
    x, dout, *rest = make(0)
    odd = torch.empty(x.numel() + 1, device=DEVICE)[1:].view_as(x).copy_(x)
    assert odd.data_ptr() % 16
    assert is_same((odd, dout, *rest))
    assert recorded() == []


def test_a_record_keeps_no_tensor():
    given = make(0)
    results = passes(calls, *given, None)
    seen = [weakref.ref(t) for t in (*given[:2], *given[2].values(), *results)]
    del given, results
    assert recorded() == ["Replay"]
    assert all(ref() is None for ref in seen)


def here():
    return torch.zeros(1, device=DEVICE).device


def test_what_a_repeated_call_returns_is_allocated_as_pytorch_is_told(monkeypatch):
    shape, strides = (2, 3), (1, 2)
    one = replay.Replay(here(), 16, [], [], [], [(shape, strides, torch.float32)])
    with torch.inference_mode():
        (result,) = one.run([])
        assert result.is_inference()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        (filled,) = one.run([])
    finally:
        torch.use_deterministic_algorithms(False)
    assert filled.isnan().all()
    for made in (result, filled):
        found = made.shape, made.stride(), made.dtype, made.device
        assert found == (shape, strides, torch.float32, here())


def test_one_tensor_in_two_places_is_recorded_another_time():
    replay.find(here(), "kind", [16, 16]).finish([])
    assert recorded() == []
    replay.find(here(), "kind", [16, 32]).finish([])
    assert recorded() == ["Replay"]


def test_while_a_hook_sees_launches_nothing_is_repeated(monkeypatch):
    import triton

    chain = type(triton.knobs.runtime.launch_enter_hook)
    hook = print if chain is type(None) else chain()
    if chain is not type(None):
        hook.add(print)
    assert replay.find(here(), "kind", [16]) is not None
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", hook)
    assert replay.find(here(), "kind", [16]) is None


def test_with_another_release_of_triton_nothing_is_repeated(monkeypatch):
    monkeypatch.setattr(replay.configs, "release", lambda: "3.99")
    assert replay.find(here(), "kind", [16]) is None


def test_records_are_not_kept_without_end(monkeypatch):
    monkeypatch.setattr(replay, "_MOST", 2)
    for kind in range(5):
        replay.find(here(), kind, [16]).finish([])
    assert [kind for _, kind in replay._known] == [3, 4]
