"""Every usable backend under the correctness rule, the rule's negative controls, bad arguments."""

import dataclasses
import functools

import numerics
import pytest
import torch
from engines import DEVICE, ENGINES, ROUNDING_PATHS, WIDE, long_if_interpreted, takes
from numerics import Draw, run, violations

from fastht import HTAdapter, HTConfig, backends, reference
from fastht.ops import BackendUnavailableError, cpu, ht_adapter, registry, resolve_backend

VARIANTS = ("hybrid", "noise_aware", "freq_enhanced", "baseline")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def case(variant="hybrid", spectral="channel", dtype=torch.float32, **shape):
    """Return x, params and upstream, quantised to ``dtype``, and the options of the call."""
    batch, prefix, grid = shape.get("batch", 2), shape.get("prefix", 1), shape.get("grid", (5, 6))
    dim, channels = shape.get("dim", 48), shape.get("channels", 16)
    generator = torch.Generator().manual_seed(11 + shape.get("draw", 0))

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    config = HTConfig(variant=variant, spectral=spectral, bottleneck_dim=channels)
    adapter = HTAdapter(dim, config, grid_size=grid)
    one = ("gamma", "gammax", "norm.weight", "spectral_filter")
    params = {
        name: (0.2 * normal(*p.shape) + (name in one)).to(DEVICE, dtype)
        for name, p in adapter.named_parameters()
    }
    tokens = (batch, prefix + grid[0] * grid[1], dim)
    x, upstream = normal(*tokens).to(DEVICE, dtype), normal(*tokens).to(DEVICE, dtype)
    return x, params, upstream, {"grid_size": grid, "num_prefix_tokens": prefix}


def draw(operation, x, params, upstream, options):
    wide = {name: p.double() for name, p in params.items()}
    exact = run(reference.ht_adapter, x.double(), wide, upstream.double(), **options)
    plain = run(reference.ht_adapter, x, params, upstream, **options)
    found = plain
    if operation is not reference.ht_adapter:
        found = run(operation, x, params, upstream, **options)
    return Draw(found, plain, exact, x, upstream)


@functools.lru_cache(maxsize=512)
def known(arguments, shape, i):
    """Return a case, and the draw of plain PyTorch: one for all backends and faults."""
    made = case(*arguments, draw=i, **dict(shape))
    return made, draw(reference.ht_adapter, *made)


def compare(operation, *arguments, draws=1, **shape):
    def one(i):
        (*tensors, options), plain = known(arguments, tuple(shape.items()), i)
        if operation is reference.ht_adapter:
            return plain
        return dataclasses.replace(plain, candidate=run(operation, *tensors, **options))

    return violations(one, draws)


def through(backend):
    def operation(x, params, **options):
        return ht_adapter(x, params, backend=backend, **options)

    return operation


@pytest.mark.parametrize("backend", ENGINES, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("variant", "spectral"), [*((v, "channel") for v in VARIANTS), ("hybrid", "full")]
)
def test_rule_holds_for_every_variant_and_dtype(backend, dtype, variant, spectral):
    if not takes(backend, dtype):
        pytest.skip(f"{backend} does not take {dtype}")

    broken = compare(
        through(backend), variant, spectral, dtype, draws=3 if dtype.itemsize > 2 else 2
    )
    if backend == "reference" and torch.finfo(dtype).bits == 16:
        # In 16 bits the reference is the plain path, the yardstick: its rounded intermediate sums
        # lose gradients that cancel, and only its forward is promised.
        broken = {name: why for name, why in broken.items() if name == "update"}
    assert broken == {}


SHAPES = (
    {"grid": (1, 1), "batch": 8},
    {"grid": (1, 9), "prefix": 0},
    {"grid": (13, 4), "prefix": 5},
    {"batch": 1, "dim": 192, "channels": 64},
    {"batch": 1, "dim": 40, "channels": 128, "grid": (4, 5)},
    {"dim": 37, "channels": 21, "grid": (3, 8)},
    {"grid": (37, 37), "batch": 1, "dim": 32, "channels": 8},
)
# In the interpreter these take minutes. With a full filter the one that no tile divides is enough;
# 128 channels are those of the widest bottleneck below.
LONG = [
    *((SHAPES[i], "channel") for i in (4, 6)),
    *((SHAPES[i], "full") for i in (0, 1, 3, 4)),
]
LONGER = [(SHAPES[i], "full") for i in (2, 6)]


@pytest.mark.parametrize(
    ("backend", "shape", "spectral"),
    long_if_interpreted(
        WIDE,
        SHAPES,
        ("channel", "full"),
        when=lambda *case: case in LONG,
        longer=lambda *case: case in LONGER,
    ),
    indirect=["backend"],
)
def test_rule_holds_for_every_shape(backend, shape, spectral):
    draws = 3
    if backend == "triton" and DEVICE == "cpu" and shape.get("grid") == (37, 37):
        draws = 1
        if spectral == "full":  # which loops over pairs of columns; the rows are a product
            shape = shape | {"grid": (37, 3)}
    assert compare(through(backend), spectral=spectral, draws=draws, **shape) == {}


def faulty(fault):
    """Return the reference with one fault of the kind that the rule has to see."""

    def operation(x, params, **options):
        if fault == "zeros":
            return x + 0 * reference.ht_adapter(x, params, **options)
        if fault == "two per cent":
            return x + 1.02 * (reference.ht_adapter(x, params, **options) - x)
        dropped = {name: p * 0 if name == fault else p for name, p in params.items()}
        return reference.ht_adapter(x, dropped, **options)

    return operation


# Each term of the operator has a parameter that carries it; without it the term is dropped.
TERMS = [name for name, _ in HTAdapter(8, HTConfig(bottleneck_dim=4)).named_parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", ["zeros", "two per cent", *TERMS])
def test_rule_sees_a_fault(fault, dtype, monkeypatch):
    monkeypatch.setattr(numerics, "MANY", 6)  # a fault is there in every draw
    # In 16 bits the plain path itself may pass a ceiling: only what the fault adds counts.
    sound = compare(reference.ht_adapter, dtype=dtype)
    assert compare(faulty(fault), dtype=dtype).keys() - sound.keys()


@pytest.mark.parametrize("backend", WIDE, indirect=True)
def test_a_wide_bottleneck_is_computed_or_refused_before_the_forward_pass(backend):
    limit = registry._BACKENDS[backend].max_channels
    shape = {"batch": 1, "dim": 40, "channels": 160, "grid": (3, 4)}
    if limit is None:
        assert compare(through(backend), draws=3, **shape) == {}
        return
    # In float32 the interpreter would need a second look at it: that is among the long shapes.
    dtype = torch.bfloat16 if backend == "triton" and DEVICE == "cpu" else torch.float32
    widest = shape | {"channels": limit, "dtype": dtype}
    assert compare(through(backend), draws=3, **widest) == {}
    x, params, _, options = case(**shape)
    reason = f"'{backend}' cannot run here: .* at most {limit}, and this is 160"
    with pytest.raises(BackendUnavailableError, match=reason):
        ht_adapter(x, params, backend=backend, **options)
    with pytest.raises(BackendUnavailableError, match=reason):
        HTAdapter(40, HTConfig(bottleneck_dim=160), backend=backend)


@pytest.mark.parametrize("backend", WIDE, indirect=True)
def test_auto_serves_a_wide_bottleneck_by_another_backend(backend, monkeypatch):
    limit = registry._BACKENDS[backend].max_channels
    if limit is None:
        pytest.skip(f"{backend} takes any")
    first = dataclasses.replace(registry._BACKENDS[backend], automatic=None)
    others = {name: b for name, b in registry._BACKENDS.items() if name != backend}
    monkeypatch.setattr(registry, "_BACKENDS", {backend: first, **others})
    assert resolve_backend("auto", DEVICE, torch.float32, limit).name == backend
    assert resolve_backend("auto", DEVICE, torch.float32, limit + 1).name != backend
    shape = {"batch": 1, "dim": 40, "channels": limit + 32, "grid": (3, 4)}
    assert compare(through("auto"), draws=3, **shape) == {}
    wide = HTAdapter(40, HTConfig(bottleneck_dim=limit + 32), device=DEVICE)
    assert f"auto -> {backend}" not in repr(wide)


@pytest.mark.parametrize("backend", WIDE, indirect=True)
def test_empty_batch(backend):
    x, params, upstream, options = case(batch=0)
    results = run(through(backend), x, params, upstream, **options)
    assert results["update"].shape == x.shape
    assert all(g.abs().sum() == 0 for name, g in results.items() if name.startswith("d "))


@pytest.mark.parametrize("backend", WIDE, indirect=True)
def test_strided_tokens_give_the_bits_of_contiguous_ones(backend):
    x, params, _, options = case()
    expected = ht_adapter(x, params, backend=backend, **options)
    sequence_first = x.transpose(0, 1).contiguous().transpose(0, 1)
    sliced = torch.stack([x, x], dim=2)[:, :, 1]
    for strided in (sequence_first, sliced):
        assert not strided.is_contiguous()
        out = ht_adapter(strided, params, backend=backend, **options)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ENGINES, indirect=True)
def test_autocast_runs_products_in_low_precision_and_keeps_the_residual(backend):
    x, params, _, options = case()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = ht_adapter(x, params, backend=backend, **options)
    exact = ht_adapter(x, params, backend="reference", **options)
    assert out.dtype == torch.float32
    difference = (out - exact).abs().max()
    assert difference < 2e-2 * (exact - x).abs().max()
    # A processor without bfloat16 products goes on with float32 ones.
    rounds = backend != "cpu" or cpu.path(torch.bfloat16) in ROUNDING_PATHS
    assert (difference > 1e-4 * (exact - x).abs().max()) == rounds


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(31, 48)}, ValueError, r"\[B, N, D\]"),
        ({"x": torch.zeros(1, 31, 48, dtype=torch.int64)}, TypeError, "int64"),
        ({"x": torch.zeros(1, 31, 40)}, ValueError, "40 features .* 48"),
        ({"x": torch.zeros(1, 32, 48)}, ValueError, "32 tokens.*5x6 grid make 31"),
        ({"x": torch.zeros(1, 31, 48, device="meta")}, ValueError, f"on {DEVICE}.* x on meta"),
        ({"num_prefix_tokens": 0}, ValueError, "31 tokens"),
        ({"grid_size": (6, 5)}, ValueError, r"spectral filter .* 6x5 grid"),
        ({"backend": "cuda-magic"}, ValueError, "'auto', 'triton', 'cuda', 'cpu', 'reference'"),
    ],
)
def test_bad_argument_is_named(change, error, message):
    x, params, _, options = case(spectral="full")
    arguments = {"x": x, "params": params} | options | change
    with pytest.raises(error, match=message):
        ht_adapter(**arguments)


def test_auto_takes_the_first_usable_backend():
    usable = [name for name, status in backends().items() if status.usable]
    assert resolve_backend("auto").name == usable[0]
    on_cpu = "cpu" if backends()["cpu"].usable else "reference"
    assert resolve_backend("auto", "cpu").name == on_cpu
    assert resolve_backend("auto", "cpu", torch.float16).name == "reference"
    assert resolve_backend("auto", "meta").name == "reference"


def test_an_explicit_backend_that_cannot_run_raises(monkeypatch):
    broken = registry.Backend(
        "broken", "", lambda: "it needs a flux capacitor", lambda *_: None, None, print
    )
    monkeypatch.setitem(registry._BACKENDS, "broken", broken)
    assert not backends()["broken"].usable
    with pytest.raises(BackendUnavailableError, match="flux capacitor"):
        resolve_backend("broken")
    with pytest.raises(BackendUnavailableError, match="flux capacitor"):
        HTAdapter(8, backend="broken")
    assert resolve_backend("auto").name != "broken"
