"""What only a real GPU can show of the Triton kernels: graphs, streams, size, repeats."""

import pytest
import torch
from test_ops import case

from fastht import HTAdapter, HTConfig
from fastht.ops import ht_adapter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def gradients(x, params, upstream, options, dropout=0.0):
    leaves = [x, *params.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    out = ht_adapter(x, params, backend="triton", dropout=dropout, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


# Products of other widths are other instructions, with waits and hazards of their own.
@pytest.mark.parametrize("numbers", ["16", "32>16", "tf32", "32"])
@pytest.mark.parametrize("spectral", ["channel", "full"])
def test_hundreds_of_repeats_give_the_same_bits(spectral, numbers, monkeypatch):
    dtype = torch.bfloat16 if numbers == "16" else torch.float32
    arguments = case(spectral=spectral, dtype=dtype, batch=16, grid=(14, 14), dim=768, channels=64)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", numbers == "tf32")
    different = torch.zeros((), dtype=torch.bool, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=numbers == "32>16"):
        first = gradients(*arguments)
        for _ in range(1000 if dtype == torch.bfloat16 else 300):
            for one, other in zip(first, gradients(*arguments), strict=True):
                different |= (one != other).any()
    assert not different.item()


def test_cuda_graph_replays_forward_and_backward():
    x, params, upstream, options = case(
        dtype=torch.bfloat16, batch=4, grid=(14, 14), dim=768, channels=64
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradients(x, params, upstream, options, dropout=0.1)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(x, params, upstream, options, dropout=0.1)
    replays = []
    for _ in range(3):
        graph.replay()
        assert all(t.isfinite().all() for t in captured)
        replays.append([t.clone() for t in captured[:2]])
    # Of the same tokens every replay makes another output and another dx: it draws a new mask.
    for one, other, third in zip(*replays, strict=True):
        assert not torch.equal(one, other)
        assert not torch.equal(other, third)
    # And it sees new tokens: of zeros the output is the update alone.
    with torch.no_grad():
        x.zero_()
    graph.replay()
    assert (captured[0] - replays[0][0]).abs().mean() > 0.5


def test_cuda_graph_gives_the_bits_of_eager():
    x, params, upstream, options = case(dtype=torch.bfloat16, dim=192, channels=64)
    expected = gradients(x, params, upstream, options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(x, params, upstream, options)
    for tensor in captured:
        tensor.fill_(float("nan"))
    graph.replay()
    for one, other in zip(captured, expected, strict=True):
        assert torch.equal(one, other)


def test_runs_on_the_stream_that_is_current():
    arguments = case(dtype=torch.bfloat16, batch=64, grid=(14, 14), dim=768, channels=64)
    expected = gradients(*arguments)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what follows must wait for it
        results = gradients(*arguments)
    assert not stream.query()
    stream.synchronize()
    for one, other in zip(results, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_runs_on_the_device_of_the_tensor():
    x, params, upstream, options = case()
    expected = gradients(x, params, upstream, options)
    there = torch.device("cuda:1")
    moved = gradients(
        x.detach().to(there),
        {name: p.detach().to(there) for name, p in params.items()},
        upstream.to(there),
        options,
    )
    for one, other in zip(moved, expected, strict=True):
        assert one.device == there
        assert torch.equal(one.cpu(), other.cpu())


def test_more_elements_than_32_bits_can_count():
    batch, dim, grid = 900, 1792, (37, 37)
    x = torch.empty(batch, 1370, dim, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    generator = torch.Generator("cuda").manual_seed(0)
    for sample in x:
        sample.normal_(generator=generator)
    adapter = HTAdapter(dim, HTConfig(dropout=0.0, init="paper"), backend="triton").cuda()
    x.requires_grad_()
    out = adapter(x, grid)
    upstream = x.detach().flip(0)
    (dx,) = torch.autograd.grad(out, x, upstream)
    for index in (0, batch // 2, batch - 1):
        one = x[index : index + 1].detach().requires_grad_()
        expected = adapter(one, grid)
        assert torch.equal(out[index], expected[0])
        (wanted,) = torch.autograd.grad(expected, one, upstream[index : index + 1])
        assert torch.equal(dx[index], wanted[0])


def test_no_step_waits_for_the_device():
    arguments = case(dtype=torch.bfloat16, dim=192, channels=64)
    gradients(*arguments, dropout=0.1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(*arguments, dropout=0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_adapter_equals_eager():
    adapter = HTAdapter(192, HTConfig(dropout=0.0, init="paper"), backend="triton").cuda()
    x = torch.randn(4, 197, 192, device="cuda", requires_grad=True)
    expected = torch.autograd.grad(adapter(x, (14, 14)).square().sum(), x)[0]
    compiled = torch.compile(adapter, fullgraph=True)
    result = torch.autograd.grad(compiled(x, (14, 14)).square().sum(), x)[0]
    torch.testing.assert_close(result, expected)
