"""What passes the gate, and that every kind of mistake is stopped there."""

import re

import pytest
import torch
from hidden_units import hidden_units

from fastht import HTAdapter, HTConfig, reference
from fastht.bench import gate

GRID, PREFIX = (4, 5), 1
OPTIONS = {"grid_size": GRID, "num_prefix_tokens": PREFIX}


def make_params(seed=0):
    """Parameters that bfloat16 can hold, of values at which every term counts."""
    torch.manual_seed(seed)
    adapter = HTAdapter(32, HTConfig(bottleneck_dim=16, init="paper"))
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            if name in ("gamma", "gammax", "norm.weight", "norm.bias", "spectral_filter"):
                p.add_(0.3 * torch.randn(p.shape))
            if name == "noise_gate.0.bias":
                p.copy_(gate.off_the_kink(p))
    return {name: p.detach().bfloat16().float() for name, p in adapter.named_parameters()}


@pytest.fixture
def params():
    return make_params()


def tokens(dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, PREFIX + GRID[0] * GRID[1], 32)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def update(x, params, **options):
    return reference.ht_adapter(x, params, **options) - x


def without(name):
    def operation(x, params, **options):
        return reference.ht_adapter(x, {**params, name: 0.0 * params[name]}, **options)

    return operation


def without_gradient(name):
    def operation(x, params, **options):
        cut = params[name].detach() + 0.0 * params[name]
        return reference.ht_adapter(x, {**params, name: cut}, **options)

    return operation


def one_nan(x, params, **options):
    out = reference.ht_adapter(x, params, **options)
    hole = torch.zeros_like(out)
    hole[-1, -1, -1] = float("nan")
    return out + hole


WRONG = {
    "zeros": lambda x, params, **options: x + 0.0 * update(x, params, **options),
    "doubled": lambda x, params, **options: x + 2.0 * update(x, params, **options),
    "scaled by a tenth": lambda x, params, **options: x + 1.1 * update(x, params, **options),
    "one NaN": one_nan,
    "all NaN": lambda x, params, **options: reference.ht_adapter(x, params, **options) * torch.nan,
    "no residual": update,
    "samples swapped": lambda x, params, **options: (
        x + update(x, params, **options)[[1, 0, *range(2, len(x))]]
    ),
    **{
        f"without {name}": without(name)
        for name in ("gamma", "down.bias", "conv5.weight", "noise_gate.2.bias", "pointwise.bias")
    },
    **{
        f"without the gradient of {name}": without_gradient(name)
        for name in ("norm.bias", "spectral_filter", "conv3.bias", "noise_gate.0.weight", "up.bias")
    },
}
PRECISIONS = {
    "fp32": (torch.float32, None),
    "autocast": (torch.float32, torch.bfloat16),
    "bf16": (torch.bfloat16, None),
}


def check(operation, params, precision):
    dtype, products = PRECISIONS[precision]
    x, dout = tokens(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=products is not None):
        return gate.check(operation, x, dout, params, products, **OPTIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_reference_passes(params, precision):
    assert 0.0 <= check(reference.ht_adapter, params, precision) <= 1.0


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_do_not_pass(params, mistake, precision):
    with pytest.raises(gate.IncorrectError, match="off by"):
        check(WRONG[mistake], params, precision)


def test_the_message_names_what_is_off_and_its_shape(params):
    with pytest.raises(gate.IncorrectError, match=r"^d up\.bias of \[3, 21, 32\] torch\.float32"):
        check(WRONG["without the gradient of up.bias"], params, "fp32")


def cut_off(name):
    def operation(x, params, **options):
        return reference.ht_adapter(x, {**params, name: params[name].detach()}, **options)

    return operation


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["gamma", "spectral_filter", "noise_gate.0.weight", "up.bias"])
def test_a_parameter_that_is_left_out_of_the_graph_is_named(params, name, precision):
    with pytest.raises(gate.IncorrectError, match=rf"^no gradient reaches {re.escape(name)}:"):
        check(cut_off(name), params, precision)


def test_tokens_that_are_left_out_of_the_graph_are_named(params):
    def operation(x, params, **options):
        return reference.ht_adapter(x.detach(), params, **options)

    with pytest.raises(gate.IncorrectError, match=r"^no gradient reaches x:"):
        check(operation, params, "fp32")


def test_an_output_without_a_graph_is_refused(params):
    with pytest.raises(gate.IncorrectError, match=r"^no gradient reaches x, .*, up\.bias:"):
        check(torch.no_grad()(reference.ht_adapter), params, "fp32")


@pytest.mark.parametrize(("probability", "passes"), [(0.1, True), (0.0, False), (0.5, False)])
def test_dropout_has_to_drop_about_a_tenth(params, probability, passes):
    x = tokens()[0].repeat(50, 1, 1)

    def call(p):
        return reference.ht_adapter(x, params, dropout=p, **OPTIONS)

    torch.manual_seed(0)
    if passes:
        gate.check_dropout(lambda: call(probability), lambda: call(0.0), x)
    else:
        with pytest.raises(gate.IncorrectError, match="not a third"):
            gate.check_dropout(lambda: call(probability), lambda: call(0.0), x)


def test_nan_is_never_within_a_bound():
    gate.refuse(0.1, 0.1, "it")
    for error in (0.11, float("nan"), float("inf")):
        with pytest.raises(gate.IncorrectError, match="it is off"):
            gate.refuse(error, 0.1, "it")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(8))
def test_no_hidden_unit_of_the_noise_gate_is_near_the_kink(seed, dtype):
    x, _ = tokens(dtype, seed)
    hidden = hidden_units(x, make_params(seed), **OPTIONS)
    assert hidden.abs().min() > 0.5
    # Every fourth is below: an operation without a ReLU computes something else.
    assert torch.equal(hidden < 0, torch.tensor([False, False, False, True]).expand_as(hidden))
