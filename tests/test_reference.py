"""The reference against the published arithmetic, against derivatives, and against itself."""

import math

import pytest
import torch
from nextgen_layout import PublishedMona

from fastht import HTAdapter, HTConfig, reference
from fastht.nextgen import _NAMES, _POINTWISE
from fastht.spectral import resample_spectral_filter

VARIANTS = ("hybrid", "noise_aware", "freq_enhanced", "baseline")


def randomised(adapter):
    """Give every parameter a value that matters: at their initial ones whole terms vanish."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            one = name in ("gamma", "gammax", "norm.weight", "spectral_filter")
            p.copy_(noise * 0.3 + one)
    return adapter


def make(variant="hybrid", spectral="channel", dim=24, channels=8, grid=(4, 5)):
    config = HTConfig(variant=variant, spectral=spectral, bottleneck_dim=channels, dropout=0.0)
    return randomised(HTAdapter(dim, config, grid_size=grid, dtype=torch.float64)).eval()


def tokens(batch=3, prefix=1, grid=(4, 5), dim=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, prefix + grid[0] * grid[1], dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("grid", [(4, 4), (4, 5), (7, 3), (1, 1)])
def test_equals_the_published_module(variant, grid):
    adapter = make(variant, grid=grid)
    published = PublishedMona(24, 8, variant).double().eval()
    ours = adapter.state_dict()
    theirs = {name: ours[_NAMES[name]].reshape(p.shape) for name, p in published.named_parameters()}
    published.load_state_dict(theirs)
    x = tokens(grid=grid)
    upstream = tokens(grid=grid, seed=1)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = adapter(a, grid), published(b, grid)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert (out - x).abs().max() > 0.1
    out.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)
    gradients = dict(published.named_parameters())
    for name, p in gradients.items():
        mine = dict(adapter.named_parameters())[_NAMES[name]].grad.reshape(p.shape)
        torch.testing.assert_close(mine, p.grad, rtol=1e-12, atol=1e-12)
        assert p.grad.abs().max() > 0, name
    assert {_NAMES[name] for name in gradients} == set(ours)
    assert set(_POINTWISE) <= set(_NAMES.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant):
    adapter = make(variant, dim=6, channels=4, grid=(2, 3))
    names = [name for name, _ in adapter.named_parameters()]
    values = [p.detach().requires_grad_() for p in adapter.parameters()]
    x = tokens(2, 1, (2, 3), 6).requires_grad_()

    def function(x, *values):
        return reference.ht_adapter(
            x, dict(zip(names, values, strict=True)), grid_size=(2, 3), num_prefix_tokens=1
        )

    assert torch.autograd.gradcheck(function, (x, *values))


def test_gradcheck_of_the_full_filter_through_resampling():
    adapter = make("hybrid", "full", dim=6, channels=4, grid=(3, 4))
    weight = adapter.spectral_filter.detach().requires_grad_()
    s = tokens(2, 0, (4, 3), 4).transpose(1, 2).unflatten(2, (4, 3)).requires_grad_()

    def function(s, weight):
        return reference.spectral_filter(s, resample_spectral_filter(weight, (3, 4), (4, 3)))

    assert torch.autograd.gradcheck(function, (s, weight))


def test_channel_filter_is_a_scaling():
    s = tokens(2, 0, (5, 6), 8).transpose(1, 2).unflatten(2, (5, 6))
    weight = torch.linspace(-1, 2, 8, dtype=torch.float64)
    expected = s * weight[:, None, None]
    torch.testing.assert_close(reference.spectral_filter(s, weight), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("grid", [(4, 5), (5, 4), (6, 6), (1, 1), (1, 2)])
def test_full_filter_is_a_circular_convolution(grid):
    height, width = grid
    generator = torch.Generator().manual_seed(3)
    impulse = torch.zeros(1, 2, height, width, dtype=torch.float64)
    impulse[..., 0, 0] = 1
    weight = torch.randn(2, height, width // 2 + 1, generator=generator, dtype=torch.float64)
    kernel = reference.spectral_filter(impulse, weight)
    s = torch.randn(3, 2, height, width, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(s)
    for i in range(height):
        for j in range(width):
            expected += s[..., i, j, None, None] * kernel.roll((i, j), dims=(2, 3))
    torch.testing.assert_close(reference.spectral_filter(s, weight), expected, rtol=0, atol=1e-12)


def test_a_filter_of_equal_values_acts_as_the_channel_filter():
    full, channel = make("hybrid", "full"), make("hybrid", "channel")
    state = channel.state_dict()
    state["spectral_filter"] = state["spectral_filter"][:, None, None].expand(8, 4, 3)
    full.load_state_dict(state)
    x = tokens()
    torch.testing.assert_close(full(x, (4, 5)), channel(x, (4, 5)), rtol=0, atol=1e-12)


def test_resampling_keeps_ones_and_frequencies():
    ones = torch.ones(2, 6, 4, dtype=torch.float64)
    assert torch.equal(
        resample_spectral_filter(ones, (6, 6), (9, 7)), torch.ones(2, 9, 4, dtype=torch.float64)
    )
    assert resample_spectral_filter(ones, (6, 6), (6, 6)) is ones

    def smooth(height, width):  # a function of frequency alone, point-symmetric and periodic
        fy = torch.arange(height, dtype=torch.float64)[:, None] / height
        fx = torch.arange(width // 2 + 1, dtype=torch.float64)[None] / width
        angle = 2 * math.pi
        return (2 + torch.cos(angle * fy) + torch.cos(angle * (fx + fy)))[None]

    fine = resample_spectral_filter(smooth(64, 64), (64, 64), (14, 15))
    torch.testing.assert_close(fine, smooth(14, 15), rtol=0, atol=5e-3)
    # doubling the grid reads the old values at every second frequency
    doubled = resample_spectral_filter(smooth(6, 6), (6, 6), (12, 12))
    torch.testing.assert_close(doubled[:, ::2, ::2], smooth(6, 6), rtol=0, atol=1e-14)


def test_resampling_refuses_a_filter_of_another_grid():
    with pytest.raises(ValueError, match="4x5 grid"):
        resample_spectral_filter(torch.ones(2, 4, 4), (4, 5), (3, 3))


def test_prefix_tokens_do_not_mix_with_patches():
    adapter = make()
    x = tokens(prefix=2)
    changed = x.clone()
    changed[:, 2:] += 1.0
    before, after = adapter(x, (4, 5), 2), adapter(changed, (4, 5), 2)
    torch.testing.assert_close(before[:, :2], after[:, :2], rtol=0, atol=0)
    assert (before[:, 2:] - after[:, 2:]).abs().min() > 0


def test_samples_do_not_mix_even_where_one_is_not_finite():
    adapter = make()
    x = tokens(batch=3)
    clean = adapter(x, (4, 5))
    x[1, 3, 2] = float("nan")
    dirty = adapter(x, (4, 5))
    torch.testing.assert_close(dirty[[0, 2]], clean[[0, 2]], rtol=0, atol=0)
    assert dirty[1].isnan().any()


def test_dropout_zeroes_at_its_rate_and_rescales():
    adapter = make("baseline", dim=8, channels=8, grid=(40, 40))
    params = dict(adapter.named_parameters())
    eye = torch.eye(8, dtype=torch.float64)
    params |= {"up.weight": eye, "up.bias": torch.zeros(8, dtype=torch.float64)}
    x = tokens(4, 0, (40, 40), 8)
    options = {"grid_size": (40, 40), "num_prefix_tokens": 0}
    torch.manual_seed(0)
    z = reference.ht_adapter(x, params, **options) - x
    dropped = reference.ht_adapter(x, params, dropout=0.25, **options) - x
    zero = dropped == 0
    assert abs(zero.double().mean().item() - 0.25) < 0.01
    torch.testing.assert_close(dropped[~zero], z[~zero] / 0.75, rtol=1e-9, atol=1e-12)
