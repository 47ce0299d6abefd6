"""What an adapter keeps for its backward pass: its output in place of its input, or not."""

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from engines import DEVICE, WIDE, WIDE_FUSED, long_if_interpreted, takes
from numerics import Draw, run, violations
from test_ops import case, compare, draw, through
from torch.utils.checkpoint import checkpoint

import fastht
from fastht import HTAdapter, HTConfig, reference
from fastht.ops import ht_adapter
from fastht.saved_bytes import saved_bytes

every = pytest.mark.parametrize("backend", WIDE, indirect=True)

fused = pytest.mark.parametrize("backend", WIDE_FUSED, indirect=True)

CHANGES = (
    {},
    {"spectral": "full", "variant": "hybrid"},
    {"dim": 37, "channels": 21, "grid": (3, 8), "prefix": 0},
    {"dim": 192, "channels": 64, "batch": 1, "prefix": 5},
)


def keeping(backend, keep):
    def operation(x, params, **options):
        return ht_adapter(x, params, backend=backend, keep=keep, **options)

    return operation


@every
def test_beside_what_the_next_layer_keeps_a_float32_token_costs_264_bytes(backend):
    shape = {"batch": 2, "grid": (5, 6), "dim": 96, "channels": 64}
    x, params, _, options = case(**shape)
    leaves = [p.requires_grad_() for p in params.values()]
    x.requires_grad_()

    def kept(keep):
        def forward():
            # In autocast's precision all backends keep the same: numbers of the bottleneck.
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                out = ht_adapter(x, params, dropout=0.1, backend=backend, keep=keep, **options)
            return F.layer_norm(out, (96,), torch.ones(96, device=DEVICE))

        return saved_bytes(forward, leaves)

    tokens, images = 2 * 31, 2 * 700  # pooled sums, gate and seed, in bytes an image
    alone = saved_bytes(
        lambda: F.layer_norm(x + 0.0, (96,), torch.ones(96, device=DEVICE))
    )  # its input, which is the adapter's output, and two numbers a token
    assert 128 * tokens <= kept("output") - alone <= 264 * tokens + images
    if backend != "reference":
        assert kept("auto") == kept("output")
        assert kept("input") - kept("output") == x.nbytes


@pytest.mark.parametrize(
    ("backend", "change"),
    long_if_interpreted(WIDE, CHANGES, when=bool),
    ids=str,
    indirect=["backend"],
)
def test_gradients_from_the_output_hold_the_rule(backend, change):
    assert compare(keeping(backend, "output"), draws=3, **change) == {}


@pytest.mark.parametrize(
    ("backend", "needed"),
    long_if_interpreted(WIDE_FUSED, ("x", "params")),
    ids=str,
    indirect=["backend"],
)
def test_each_half_of_the_gradients_alone(backend, needed):
    x, params, upstream, options = case()
    results = []
    for keep in ("input", "output"):
        tokens = x.clone().requires_grad_(needed == "x")
        leaves = {n: p.clone().requires_grad_(needed == "params") for n, p in params.items()}
        out = keeping(backend, keep)(tokens, leaves, **options)
        wanted = [tokens] if needed == "x" else list(leaves.values())
        results.append([out, *torch.autograd.grad(out, wanted, upstream)])
    assert torch.equal(results[0][0], results[1][0])
    for kept, rebuilt in zip(*results, strict=True):
        scale = kept.abs().max().item()
        torch.testing.assert_close(rebuilt, kept, rtol=0, atol=2e-6 * max(scale, 1.0))


@pytest.mark.parametrize("fault", ["not rebuilt", "off by a part in ten thousand"])
def test_the_rule_sees_a_wrong_input(fault):
    """Negative control: a backward pass that is given something else than what x was."""

    def wrong(x, params, **options):
        return _Wrong.apply(x, fault, "auto", options, list(params), *params.values())

    broken = violations(lambda i: draw(wrong, *case(draw=i)), 1)
    assert {"dx", "d down.weight"} <= broken.keys()


class _Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fault, backend, options, names, *params):
        ctx.call = backend, options, names
        out = ht_adapter(x, dict(zip(names, params, strict=True)), backend=backend, **options)
        ctx.save_for_backward(out if fault == "not rebuilt" else x * (1 + 1e-4), *params)
        return out

    @staticmethod
    def backward(ctx, dout):
        backend, options, names = ctx.call
        x, *params = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            named = dict(zip(names, params, strict=True))
            out = ht_adapter(x, named, backend=backend, keep="input", **options)
        dx, *grads = torch.autograd.grad(out, [x, *params], dout)
        return dx, None, None, None, None, *grads


@every
def test_writing_into_what_is_kept_raises(backend):
    x, params, upstream, options = case()
    for p in params.values():
        p.requires_grad_()
    out = keeping(backend, "output")(x.clone().requires_grad_(), params, **options)
    out.add_(1)
    match = "changed in place" if backend != "reference" else "modified by an inplace"
    with pytest.raises(RuntimeError, match=match):
        out.backward(upstream)


@pytest.mark.parametrize("backend", long_if_interpreted(WIDE_FUSED), indirect=True)
def test_who_writes_into_the_output_can_have_the_input_kept(backend):
    x, params, upstream, options = case()
    tokens = x.clone().requires_grad_()
    expected = torch.autograd.grad(through(backend)(tokens, params, **options), tokens, upstream)
    out = keeping(backend, "input")(tokens, params, **options)
    out.add_(1)
    torch.testing.assert_close(torch.autograd.grad(out, tokens, upstream), expected)
    changed = tokens.detach() * 1
    changed.requires_grad_()
    with torch.no_grad():
        out = keeping(backend, "output")
    inner = changed + 0
    result = out(inner, params, **options)
    inner.add_(1)  # nobody keeps it
    torch.testing.assert_close(
        torch.autograd.grad(result, changed, upstream), expected, rtol=1e-5, atol=1e-5
    )


@fused
def test_16_bit_tokens_keep_their_input_unless_told(backend):
    dtype = torch.bfloat16
    if not takes(backend, dtype):
        pytest.skip(f"{backend} does not take {dtype}")
    x, params, _, options = case(dtype=dtype)
    x.requires_grad_()
    by = {
        keep: saved_bytes(
            lambda keep=keep: keeping(backend, keep)(x, params, **options), [x, *params.values()]
        )
        for keep in ("auto", "input", "output")
    }
    assert by["auto"] == by["input"] == by["output"] - x.nbytes  # x is alive here, out is not


def leaves_and_gradients(backend):
    adapter = HTAdapter(16, HTConfig(bottleneck_dim=8, dropout=0.0, init="paper"), backend=backend)
    adapter.to(DEVICE)
    x = torch.randn(2, 7, 16, device=DEVICE, requires_grad=True)
    leaves = [x, *adapter.parameters()]

    def gradients(function):
        return torch.autograd.grad(function(x, (2, 3)).square().sum(), leaves)

    return adapter, gradients


@pytest.mark.parametrize("backend", long_if_interpreted(WIDE_FUSED), indirect=True)
def test_under_checkpointing(backend):
    adapter, gradients = leaves_and_gradients(backend)
    again = gradients(lambda *a: checkpoint(adapter, *a, use_reentrant=False))
    assert all(map(torch.equal, again, gradients(adapter)))


@pytest.mark.parametrize("backend", long_if_interpreted(WIDE_FUSED), indirect=True)
def test_compiled(backend):
    adapter, gradients = leaves_and_gradients(backend)
    expected = gradients(adapter)
    torch.compiler.reset()
    compiled = torch.compile(adapter, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, gradients(compiled), expected))


def test_what_is_kept_can_be_chosen_for_a_model():
    from tiny_towers import tiny_tower

    model = fastht.patch(tiny_tower(), keep="input")
    assert all(adapter.keep == "input" for adapter in fastht.adapters(model).values())
    assert fastht.patch(model, keep="input") is model
    with pytest.raises(ValueError, match=r"keep='input'.*unpatch first"):
        fastht.patch(model)
    with pytest.raises(ValueError, match=r"keep is 'out'; choose one of 'auto', 'input', 'output'"):
        fastht.patch(tiny_tower(), keep="out")


@pytest.mark.parametrize(
    ("backend", "dtype"),
    long_if_interpreted(
        WIDE_FUSED, (torch.bfloat16, torch.float16), when=lambda dtype: dtype == torch.float16
    ),
    ids=str,
    indirect=["backend"],
)
def test_16_bit_outputs_cost_what_the_documentation_says(backend, dtype):
    """The rebuilt x is off by the rounding of the output, as if x itself had been rounded again."""
    if not takes(backend, dtype):
        pytest.skip(f"{backend} does not take {dtype}")

    def one(i):
        x, params, upstream, options = case(dtype=dtype, draw=i)
        found = run(keeping(backend, "output"), x, params, upstream, **options)
        wide = {name: p.double() for name, p in params.items()}
        exact = run(reference.ht_adapter, x.double(), wide, upstream.double(), **options)
        # The yardstick: plain PyTorch with x rounded once more, at the size of the output.
        size = torch.finfo(dtype).eps * (x.double().abs() + exact["update"].abs())
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(i)).to(x.device) - 0.5
        near = (x.double() + size * noise).to(dtype)
        plain = run(reference.ht_adapter, near, params, upstream, **options)
        plain["update"] = run(reference.ht_adapter, x, params, upstream, **options)["update"]
        return Draw(found, plain, exact, x, upstream)

    assert violations(one, 2, ceilings=False) == {}
