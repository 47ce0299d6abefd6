"""What fused kernels are held to beyond the rule of test_ops: hard inputs, memory, mask."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from engines import DEVICE, FUSED, WIDE_FUSED, long_if_interpreted, takes
from numerics import Draw, run, violations
from test_ops import case, draw, through

from fastht import reference
from fastht.ops import ht_adapter

fused = pytest.mark.parametrize("backend", WIDE_FUSED, indirect=True)
fused_or_rounding = pytest.mark.parametrize("backend", FUSED, indirect=True)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what is allocated with NaN: an element that nobody wrote then fails its test."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def one_large_feature(x, index):
    x = x.clone()
    x[..., index] = 3000
    return x


INPUTS = {
    "offset 30": lambda x: x + 30,
    "offset 1000": lambda x: x + 1000,
    "feature 0 of 3000": lambda x: one_large_feature(x, 0),
    "feature 29 of 3000": lambda x: one_large_feature(x, 29),
}
WEIGHTS = {
    "gamma 1": {"gamma": 1.0},
    "gamma 1e-6": {"gamma": 1e-6},
    "gammax 0": {"gammax": 0.0},
    "gamma 1e-6, gammax 1": {"gamma": 1e-6, "gammax": 1.0},
}


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HARD = (*((change, "gammax 0") for change in INPUTS), *(("none", weights) for weights in WEIGHTS))


@functools.lru_cache(maxsize=256)
def hard_draw(dtype, hard, i):
    """Return a hard case, and the draw of plain PyTorch, for all backends."""
    change, weights = hard
    x, params, upstream, options = case(dtype=dtype, draw=i)
    x = INPUTS.get(change, lambda x: x)(x)
    for name, value in WEIGHTS[weights].items():
        params[name] = torch.full_like(params[name], value)
    made = x, params, upstream, options
    return made, draw(reference.ht_adapter, *made)


@pytest.mark.parametrize(
    ("backend", "dtype", "hard"),
    long_if_interpreted(
        FUSED, DTYPES, HARD, when=lambda dtype, hard: dtype != DTYPES[HARD.index(hard) % 3]
    ),
    indirect=["backend"],
    ids=str,
)
def test_rule_holds_for_hard_inputs(backend, dtype, hard):
    if not takes(backend, dtype):
        pytest.skip(f"{backend} does not take {dtype}")

    def made(i):
        (*tensors, options), plain = hard_draw(dtype, hard, i)
        return replace(plain, candidate=run(through(backend), *tensors, **options))

    assert violations(made, 2, ceilings=not hard[0].startswith("offset")) == {}


def under_autocast(operation):
    def cast(x, params, **options):
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=x.dtype != torch.float64):
            return operation(x, params, **options)

    return cast


@functools.cache
def autocast_draw(change, i):
    """Return a case, and the draw of plain PyTorch under autocast."""
    # Six samples: over two of them the gate's gradients cancel in one of these draws.
    x, params, upstream, options = case(draw=i, batch=6)
    if change != "none":  # what only the LayerNorm's part can bear
        x = INPUTS[change](x)
        params["gammax"] = torch.zeros_like(params["gammax"])
    made = x, params, upstream, options
    exact = draw(reference.ht_adapter, *made).exact
    plain = run(under_autocast(through("reference")), x, params, upstream, **options)
    return made, Draw(plain, plain, exact, x, upstream)


@pytest.mark.parametrize(
    ("backend", "change"),
    long_if_interpreted(
        FUSED, ("none", "offset 30", "offset 1000"), when=lambda change: change == "offset 30"
    ),
    indirect=["backend"],
)
def test_rule_holds_for_float32_tokens_under_autocast(backend, change):
    def cast(i):
        (*tensors, options), plain = autocast_draw(change, i)
        return replace(plain, candidate=run(under_autocast(through(backend)), *tensors, **options))

    assert violations(cast, 2, ceilings=False, precision=torch.bfloat16) == {}


@fused_or_rounding
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rule_holds_for_16_bit_tokens_with_float32_parameters(backend, dtype):
    if not takes(backend, dtype):
        pytest.skip(f"{backend} does not take {dtype}")

    def narrow(i):
        x, params, upstream, options = case(draw=i)
        x, upstream = x.to(dtype), upstream.to(dtype)
        return draw(through(backend), x, params, upstream, options)

    assert violations(narrow, 2) == {}


@fused
@pytest.mark.skipif(DEVICE == "cuda", reason="tests/test_gpu.py has a real tensor of that size")
def test_strides_beyond_32_bits(backend, monkeypatch):
    if backend == "triton":
        from triton.runtime.interpreter import GridExecutor

        # The interpreter would copy the whole storage onto itself; only two samples of it exist.
        monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    x, params, upstream, options = case(dtype=torch.bfloat16)
    apart = 2**31 + 64
    storage = torch.empty(apart + x[0].numel(), dtype=torch.bfloat16)
    far = storage.as_strided(x.shape, (apart, x.shape[2], 1)).copy_(x)
    results = []
    for tokens in (x, far):
        tokens = tokens.detach().requires_grad_()
        out = ht_adapter(tokens, params, backend=backend, **options)
        results.append((out.detach(), *torch.autograd.grad(out, tokens, upstream)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def features_far_apart(tokens):
    """Return the tokens in a storage in which the last feature is 2**31 elements from the first."""
    batch, length, dim = tokens.shape
    apart = 2**31 // (dim - 1) + 1
    storage = torch.empty(apart * (dim - 1) + batch * length, dtype=tokens.dtype, device=DEVICE)
    far = storage.as_strided(tokens.shape, (length, 1, apart)).copy_(tokens)
    assert apart < 2**31 <= far.stride(2) * (dim - 1)  # it is the product that 32 bits cannot hold
    return far


@fused
def test_features_beyond_32_bits(backend, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    x, params, upstream, options = case(dtype=torch.bfloat16)
    far, far_upstream = features_far_apart(x), features_far_apart(upstream)
    results = []
    for tokens, dout in ((x, upstream), (far, upstream), (x, far_upstream)):
        tokens = tokens.detach().requires_grad_()
        leaves = [tokens, *params.values()]
        for leaf in leaves:
            leaf.requires_grad_()
        out = ht_adapter(tokens, params, backend=backend, **options)
        assert out.stride() == torch.empty_like(tokens).stride()
        results.append((out.detach(), *torch.autograd.grad(out, leaves, dout)))
    for one, *others in zip(*results, strict=True):
        for other in others:
            assert torch.equal(one, other)


def assert_equal_but_for_rounding(found, expected, scale):
    """Expect what another instance of the same kernel gives.

    Its arithmetic is the same, which the interpreters show to the bit. On a GPU each instance is
    compiled by itself, and may join other multiplications and additions.
    """
    if DEVICE == "cpu":
        assert torch.equal(found, expected)
    else:
        limit = 2.0**-21 * scale.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=limit)


@fused
def test_a_layout_that_has_to_be_copied_is_given_back(backend, monkeypatch):
    if backend == "triton":
        from fastht.ops.triton import strides

        monkeypatch.setattr(strides, "LIMIT", 2)  # as if every layout had features too far apart
    x, params, upstream, options = case()
    expected = run(through(backend), x, params, upstream, **options)
    slowest = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert run(through(backend), slowest, params, upstream, **options).keys() == expected.keys()
    leaf = slowest.requires_grad_()
    out = ht_adapter(leaf, params, backend=backend, **options)
    (dx,) = torch.autograd.grad(out, leaf, upstream)
    assert out.stride() == dx.stride() == slowest.stride()
    for found, base, name in ((out, x, "update"), (dx, upstream, "dx")):
        assert_equal_but_for_rounding(found.double() - base.double(), expected[name], found)


@fused_or_rounding
@pytest.mark.parametrize("spectral", ["channel", "full"])
def test_same_bits_run_after_run(backend, spectral):
    def results():
        x, params, upstream, options = case(spectral=spectral, dtype=torch.bfloat16)
        leaves = [x, *params.values()]
        for leaf in leaves:
            leaf.requires_grad_()
        torch.manual_seed(3)
        out = ht_adapter(x, params, backend=backend, dropout=0.3, **options)
        return out, *torch.autograd.grad(out, leaves, upstream)

    for one, other in zip(results(), results(), strict=True):
        assert torch.equal(one, other)


def bottleneck_mask(backend, dropout, seed):
    """Read the mask off the operator: only the biases speak, and z becomes features 0 to C - 1."""
    x, params, _, options = case("baseline", dim=32, channels=32, prefix=1, grid=(16, 16))
    params = {name: torch.zeros_like(p) for name, p in params.items()}
    params["down.bias"] += 1.0
    params["up.weight"] += torch.eye(32, device=DEVICE)
    x = torch.zeros_like(x).requires_grad_()
    params["up.weight"].requires_grad_()
    params["pointwise.bias"].requires_grad_()
    torch.manual_seed(seed)
    out = ht_adapter(x, params, backend=backend, dropout=dropout, **options)
    out.sum().backward()
    return out.detach(), params


@fused
def test_dropout_keeps_its_rate_and_scale(backend):
    out, _ = bottleneck_mask(backend, 0.25, seed=0)
    value = torch.nn.functional.gelu(torch.tensor(1.0)).item() / 0.75
    kept = out > value / 2
    torch.testing.assert_close(out, kept * torch.full_like(out, value))
    # 16,448 draws: 5 standard deviations are 0.017.
    assert abs(1 - kept.double().mean().item() - 0.25) < 0.017
    # No two rows, columns or samples share their mask.
    assert kept.reshape(-1, 32).unique(dim=0).shape[0] == kept.reshape(-1, 32).shape[0]
    assert kept.reshape(-1, 32).unique(dim=1).shape[1] == 32


@fused
def test_dropout_mask_is_the_same_in_the_backward_pass(backend):
    out, params = bottleneck_mask(backend, 0.25, seed=1)
    # d up.weight[d, c] sums z over the tokens, d pointwise.bias sums mask * gelu'(1) * 1.
    torch.testing.assert_close(
        params["up.weight"].grad, out.sum(dim=(0, 1)).expand(32, 32), rtol=1e-5, atol=1e-3
    )
    one = torch.tensor(1.0, requires_grad=True)
    value = torch.nn.functional.gelu(one)
    (slope,) = torch.autograd.grad(value, one)
    patches = out[:, 1:].sum(dim=(0, 1)) * (slope / value.detach()).to(DEVICE)
    torch.testing.assert_close(params["pointwise.bias"].grad, patches, rtol=1e-5, atol=1e-3)


@fused
def test_dropout_masks_are_those_of_philox(backend):
    """The mask is defined by seed and position, so that every backend can make it."""
    x, params, _, options = case("baseline", dim=16, channels=16, prefix=0, grid=(2, 2))
    params = {name: torch.zeros_like(p) for name, p in params.items()}
    params["down.bias"] += 1.0
    params["up.weight"] += torch.eye(16, device=DEVICE)
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=DEVICE).item()
    torch.manual_seed(5)
    x = torch.zeros_like(x)
    out = ht_adapter(x, params, backend=backend, dropout=0.5, **options).reshape(-1, 16)
    for token in range(out.shape[0]):
        for quad in range(4):
            words = philox(seed, token * 4 + quad)
            for lane, word in enumerate(words):
                assert (out[token, quad * 4 + lane] != 0) == (word >> 8 >= 2**23)


def philox(key, counter, mask=2**32 - 1):
    """Philox-4x32-10 (Salmon et al., SC 2011), by the book."""
    c = [counter & mask, counter >> 32, 0, 0]
    k = [key & mask, key >> 32]
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("backend", "value", "spectral"),
    long_if_interpreted(
        FUSED,
        (math.nan, math.inf),
        ("channel", "full"),
        when=lambda value, spectral: math.isnan(value) == (spectral == "full"),
    ),
    indirect=["backend"],
)
def test_a_bad_sample_stays_alone(backend, value, spectral):
    dtype = torch.float32 if takes(backend, torch.float32) else torch.bfloat16
    x, params, upstream, options = case(batch=3, spectral=spectral, dtype=dtype)
    clean = ht_adapter(x, params, backend=backend, **options)
    x[1, 4, 5] = value
    x.requires_grad_()
    out = ht_adapter(x, params, backend=backend, **options)
    expected = ht_adapter(x.detach(), params, backend="reference", **options)
    for sample in (0, 2):
        assert torch.equal(out[sample], clean[sample])
    assert torch.equal(out[1].isfinite(), expected[1].isfinite())
    (dx,) = torch.autograd.grad(out, x, upstream)
    assert dx[0].isfinite().all()
    assert dx[2].isfinite().all()
    assert not dx[1].isfinite().all()


@fused
@pytest.mark.parametrize("frozen", ["x", "params", "gamma"])
def test_only_wanted_gradients_are_computed(backend, frozen):
    x, params, upstream, options = case()
    leaves = {"x": x, **params}
    expected = {}
    for fixed in (None, frozen):
        for name, leaf in leaves.items():
            wanted = fixed != name and not (fixed == "params" and name != "x")
            leaf.grad = None
            leaf.requires_grad_(wanted)
        ht_adapter(x, params, backend=backend, **options).backward(upstream)
        for name, leaf in leaves.items():
            if fixed is None:
                expected[name] = leaf.grad
            elif leaf.requires_grad:
                assert_equal_but_for_rounding(leaf.grad, expected[name], leaf.grad)
            else:
                assert leaf.grad is None


@fused
def test_layout_of_tokens_is_kept_and_never_copied(backend):
    x, params, upstream, options = case()
    plain = ht_adapter(x, params, backend=backend, **options)
    for strided in (
        x.transpose(0, 1).contiguous().transpose(0, 1),  # a sequence-first tower
        x.transpose(1, 2).contiguous().transpose(1, 2),  # features slowest
        torch.stack([x, x], dim=2)[:, :, 1],
    ):
        strided.requires_grad_()
        out = ht_adapter(strided, params, backend=backend, **options)
        if strided.stride(2) == 1:
            assert torch.equal(out, plain)
        else:  # other threads hold these features, and add them up in another order
            torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)
        out.backward(upstream.transpose(0, 1).contiguous().transpose(0, 1))
        assert strided.grad.shape == x.shape
    sequence_first = x.transpose(0, 1).contiguous().transpose(0, 1)
    out = ht_adapter(sequence_first, params, backend=backend, **options)
    assert out.stride() == sequence_first.stride()


@fused
def test_broadcast_upstream_gradient(backend):
    x, params, _, options = case()
    x.requires_grad_()
    out = ht_adapter(x, params, backend=backend, **options)
    (expected,) = torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
    (dx,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(dx, expected)


@fused
def test_float64_is_refused_by_name(backend):
    x, params, _, options = case(dtype=torch.float64)
    with pytest.raises(RuntimeError, match=rf"'{backend}' cannot run here.*not torch.float64"):
        ht_adapter(x, params, backend=backend, **options)
