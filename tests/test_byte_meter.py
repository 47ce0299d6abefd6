"""What the kernels move and keep, counted in the interpreter, against the model and the goals."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engines import DEVICE
from test_ops import case, through
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import byte_model
from fastht import backends
from fastht.ops import ht_adapter
from fastht.ops.cuda import native
from fastht.ops.triton import configs
from fastht.saved_bytes import saved_bytes

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="counted in Triton's interpreter")

WIDE = {"x", "out", "dout", "dx"}
ACTIVATIONS = WIDE | {"u", "f", "u_norm", "stats", "z", "dz", "dv", "du", "row_means"}


def counted(launches, kernels, what):
    return {
        launch.kernel: sum(
            getattr(traffic, what)
            for name, traffic in launch.tensors.items()
            if name in ACTIVATIONS
        )
        for launch in launches
        if launch.kernel in kernels
    }


@pytest.mark.slow
def test_traffic_is_that_of_the_model_and_near_the_floor():
    from benchmarks.byte_meter import metered

    x, params, upstream, options = case(
        dtype=torch.bfloat16, batch=4, grid=(14, 14), dim=768, channels=64
    )
    params = {name: p.float().requires_grad_() for name, p in params.items()}
    x.requires_grad_()
    shape = byte_model.Shape(tokens=4 * 197, dim=768, channels=64)
    with metered() as forward:
        out = ht_adapter(x, params, backend="triton", dropout=0.1, **options)
    with metered() as backward:
        out.backward(upstream)

    for launches, model, floor, goal in (
        (forward, byte_model.forward(shape), byte_model.forward_floor(shape), 1.75),
        (backward, byte_model.backward(shape), byte_model.backward_floor(shape), 1.62),
    ):
        moved = counted(launches, model, "distinct")
        assert moved.keys() == model.keys()
        for kernel, expected in model.items():
            # Prefix tokens are not convolved, so a map may lack a row an image: one of 197.
            assert 196 / 197 * expected <= moved[kernel] <= expected, kernel
        # The maps that the correlation reads again (of 6 MB each at the main shape: from the L2
        # cache) are bounded by the partial sums that a launch of its own saves, 520 bytes a token.
        again = moved.pop("correlate", 0)
        assert again <= 520 * shape.tokens
        assert sum(moved.values()) <= goal * floor
        # No kernel walks twice over D-wide rows: only `down` looks at its first tile twice.
        for launch in launches:
            for name in WIDE & launch.tensors.keys():
                traffic = launch.tensors[name]
                twice = 1 + 64 / 768 if launch.kernel == "down" else 1
                assert traffic.requested <= twice * traffic.distinct, (launch.kernel, name)


@pytest.fixture(scope="module")
def full_filter():
    """Return the launches of a small call with a full filter, forward and backward."""
    from benchmarks.byte_meter import metered

    x, params, upstream, options = case(
        dtype=torch.bfloat16, spectral="full", batch=3, grid=(5, 6), dim=64, channels=16
    )
    params = {name: p.float().requires_grad_() for name, p in params.items()}
    x.requires_grad_()
    with metered() as forward:
        out = ht_adapter(x, params, backend="triton", dropout=0.1, **options)
    with metered() as backward:
        out.backward(upstream)
    return forward, backward


def test_traffic_of_a_full_filter_is_that_of_the_model(full_filter):
    shape = byte_model.Shape(tokens=3 * 31, dim=64, channels=16)
    grid = byte_model.Grid(3, 5, 6)
    names = ACTIVATIONS | {"scratch", "source", "other", "target"}
    for launches, model in zip(
        full_filter,
        (byte_model.full_forward(shape, grid), byte_model.full_backward(shape, grid)),
        strict=True,
    ):
        moved = dict.fromkeys(model, 0)
        for launch in launches:
            if launch.kernel in model:
                moved[launch.kernel] += sum(
                    traffic.distinct for name, traffic in launch.tensors.items() if name in names
                )
        for kernel, expected in model.items():
            if kernel == "correlate":  # prefix tokens are not convolved
                expected = 2 * grid.map(shape)
            assert moved[kernel] == expected, kernel


def test_strict_float32_reads_x_and_the_upstream_gradient_twice():
    from benchmarks.byte_meter import metered

    x, params, upstream, options = case(
        dtype=torch.float32, batch=2, grid=(4, 4), dim=64, channels=16
    )
    params = {name: p.requires_grad_() for name, p in params.items()}
    x.requires_grad_()
    out = ht_adapter(x, params, backend="triton", keep="input", **options)
    with metered() as launches:
        out.backward(upstream)
    found = [launch for launch in launches if launch.kernel == "expand"]
    assert len(found) == 2
    moved = sum(
        traffic.distinct
        for launch in found
        for name, traffic in launch.tensors.items()
        if name in ACTIVATIONS
    )
    shape = byte_model.Shape(2 * 17, 64, 16, x_bytes=4, product_bytes=4)
    assert moved == byte_model.backward(shape, apart=True)["expand"]
    assert moved != byte_model.backward(shape)["expand"]


def test_partial_sums_are_those_of_the_model(full_filter):
    shape = byte_model.Shape(tokens=3 * 31, dim=64, channels=16)
    by_name = {launch.kernel: launch.tensors for launch in full_filter[1]}
    tiles = by_name["point_backward"]["d_point"].distinct // (4 * 3 * 16 * 16)
    groups = by_name["expand"]["d_up_bias"].distinct // (4 * 64)
    model = byte_model.partials(shape, images=3, tiles=tiles, groups=groups)
    names = {
        "point_backward": ("d_point", "d_point_bias"),
        "correlate": ("correlation",),
        "expand": ("d_weights", "d_up_bias", "d_down_bias"),
    }
    for kernel, tensors in names.items():
        assert sum(by_name[kernel][name].distinct for name in tensors) == model[kernel], kernel
    read = ("d_point", "d_point_bias", "taps", "d_weights", "d_up_bias", "d_down_bias")
    found = sum(by_name["finish"][name].distinct for name in read)
    assert found == pytest.approx(model["finish"], rel=0.01)


def test_the_page_of_bytes_is_that_of_the_model():
    page = (Path(__file__).parent.parent / "docs/bytes.md").read_text(encoding="utf-8")
    shape, grid = byte_model.Shape(256 * 197, 768, 64), byte_model.Grid(256, 14, 14)
    assert byte_model.table(shape, grid, tiles=7, groups=22) in page
    # The tiles are those of the table for an H100, whichever release of Triton is installed.
    *_, row = (
        row
        for row in configs.table()
        if row["kernel"] == "point_backward"
        and (row["arch"], row["channels"], row["numbers"]) == (["sm_90"], [64], ["16"])
        and "triton" not in row
    )
    assert -(-197 // row["options"]["BM"]) == 7


def test_meter_counts_distinct_and_repeated_elements():
    import triton
    import triton.language as tl

    from benchmarks.byte_meter import metered

    @triton.jit
    def copy_kernel(source, target, n, block: tl.constexpr):
        at = tl.arange(0, block)
        value = tl.load(source + at, mask=at < n, other=0.0)
        value += tl.load(source + at, mask=at < n, other=0.0)
        tl.store(target + at, value, mask=at < n)

    source, target = torch.ones(5), torch.zeros(8)
    with metered() as launches:
        copy_kernel[(1,)](source, target, 5, block=8)
    (launch,) = launches
    assert launch.kernel == "copy"
    assert (launch.tensors["source"].requested, launch.tensors["source"].distinct) == (40, 20)
    assert (launch.tensors["target"].requested, launch.tensors["target"].distinct) == (20, 20)
    assert target.tolist() == [2, 2, 2, 2, 2, 0, 0, 0]


def test_the_rebuilt_input_costs_one_launch_of_the_model():
    from benchmarks.byte_meter import metered

    x, params, upstream, options = case(
        dtype=torch.bfloat16, batch=1, grid=(4, 4), dim=64, channels=64
    )
    x.requires_grad_()
    shape = byte_model.Shape(tokens=17, dim=64, channels=64)
    moved = {}
    for keep in ("input", "output"):
        out = ht_adapter(x, params, backend="triton", keep=keep, **options)
        with metered() as launches:
            torch.autograd.grad(out, x, upstream)
        moved[keep] = launches
    (one,) = [launch for launch in moved["output"] if launch.kernel == "up"]
    assert len(moved["output"]) == len(moved["input"]) + 1
    assert "up" not in {launch.kernel for launch in moved["input"]}
    expected = byte_model.backward(shape, rebuild=True)["up"]
    assert "up" not in byte_model.backward(shape)
    found = counted([one], ["up"], "distinct")["up"]
    assert expected - 2 * 64 * shape.product_bytes <= found <= expected


@pytest.mark.skipif(native is None, reason="needs the native extension with CUDA")
@pytest.mark.parametrize("keep", ["input", "output"])
def test_saved_bytes_of_the_cuda_backend(monkeypatch, keep):
    """On fake tensors: autograd keeps of them what it keeps of others, and no kernel runs."""
    monkeypatch.setenv("FASTHT_CUDA_SIMULATE", "1")
    x, params, _, options = case(dtype=torch.bfloat16, batch=4, grid=(14, 14), dim=768, channels=64)
    params = {name: p.float() for name, p in params.items()}
    with FakeTensorMode() as mode:
        x = mode.from_tensor(x).requires_grad_()
        params = {name: mode.from_tensor(p).requires_grad_() for name, p in params.items()}

        def block(function):
            """Return what a block keeps of it, whose next LayerNorm keeps its output."""
            alive = [x, *params.values()]
            return saved_bytes(lambda: F.layer_norm(function(x), (768,)), alive)

        kept = block(
            lambda x: ht_adapter(x, params, backend="cuda", keep=keep, dropout=0.1, **options)
        ) - block(lambda x: x + 0)
    tokens, images = 4 * 197, 4 * (64 + 4) * 4 + 8  # pooled sums and the gate; the seed
    assert kept == 264 * tokens + images  # x itself is alive here


def kept_bytes(backend):
    """Return what stays alive for the backward pass, in bytes a token, parameters left out."""
    x, params, _, options = case(dtype=torch.bfloat16, batch=4, grid=(14, 14), dim=768, channels=64)
    params = {name: p.float().requires_grad_() for name, p in params.items()}
    x.requires_grad_()
    function = through(backend)
    kept = saved_bytes(lambda: function(x, params, dropout=0.1, **options), params.values())
    return kept / (4 * 197)


def test_saved_bytes_a_token():
    shape = byte_model.Shape(4 * 197, 768, 64)
    assert byte_model.saved(shape) == 2 * 768 + 264
    assert byte_model.saved(shape, rebuild=True) == 264
    for backend in ("triton", "cpu"):
        if backends()[backend].usable:
            assert 2 * 768 + 264 <= kept_bytes(backend) <= 2 * 768 + 272
    assert 6400 < kept_bytes("reference") < 6500  # what the README says
