"""The fused operator in PyTorch's machinery: opcheck, compile, autocast, checkpointing."""

import os

import fresh
import pytest
import torch
import torch._dynamo.testing
from engines import DEVICE, long_if_interpreted, takes
from test_ops import case
from torch.utils.checkpoint import checkpoint

import fastht
from fastht import HTAdapter, HTConfig, backends
from fastht.ops import ht_adapter

BACKENDS = [
    pytest.param(name, marks=pytest.mark.gpu) if DEVICE == "cuda" else name
    for name in ("triton", "cpu", "cuda")
    if backends()[name].usable and takes(name, torch.float32)
]
fused = pytest.mark.parametrize("backend", BACKENDS)


def op_arguments(backend, variant="hybrid", spectral="channel", dropout=0.0, requires_grad=True):
    from fastht.ops import custom_op

    x, params, upstream, _ = case(variant, spectral, batch=1, grid=(2, 3), dim=16)
    has_filter, has_gate = "spectral_filter" in params, "noise_gate.0.weight" in params
    names = custom_op.parameter_names(has_filter, has_gate)
    tensors = [params[name].requires_grad_(requires_grad) for name in names]
    seed = torch.tensor([7], device=DEVICE) if dropout else None
    common = (2, 3, 1, has_filter, has_gate, dropout, 1e-5, torch.float32, backend)
    return x.requires_grad_(requires_grad), tensors, seed, common, upstream


CALLS = (  # variant, spectral, dropout, keep_output
    ("hybrid", "channel", 0.1, False),
    ("hybrid", "full", 0.0, False),
    ("baseline", "channel", 0.0, True),
)


@pytest.mark.parametrize(
    ("backend", "call"),
    long_if_interpreted(BACKENDS, CALLS, when=lambda call: call != CALLS[0]),
    ids=str,
)
def test_opcheck(backend, call):
    variant, spectral, dropout, keep_output = call
    x, tensors, seed, common, upstream = op_arguments(backend, variant, spectral, dropout)
    forward = torch.ops.fastht.ht_adapter.default
    torch.library.opcheck(forward, (x, tensors, seed, *common, True, keep_output))
    with torch.no_grad():
        out, *saved = forward(x, tensors, seed, *common, True, keep_output)
    kept, plain = (out if keep_output else x).detach(), [t.detach() for t in tensors]
    torch.library.opcheck(
        torch.ops.fastht.ht_adapter_backward.default,
        (upstream, kept, plain, seed, saved, *common, True, True, keep_output),
    )


@pytest.mark.parametrize("backend", long_if_interpreted(BACKENDS))
def test_compiles_whole_and_not_anew_for_every_batch_size(backend):
    adapter = HTAdapter(16, HTConfig(bottleneck_dim=8, dropout=0.0), backend=backend)
    adapter.to(DEVICE)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(adapter, fullgraph=True, backend=counter)
    counts = []
    for batch in (2, 3, 5):
        x = torch.randn(batch, 7, 16, device=DEVICE, requires_grad=True)
        out = compiled(x, (2, 3))
        expected = adapter(x, (2, 3))
        torch.testing.assert_close(out, expected)
        out.sum().backward()
        assert x.grad.isfinite().all()
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2]  # the second batch size makes the graph one for any


@fused
def test_second_derivative_is_refused(backend):
    x, params, _, options = case(batch=1, grid=(2, 3), dim=16)
    x.requires_grad_()
    out = ht_adapter(x, params, backend=backend, **options)
    (dx,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*reference"):
        dx.sum().backward()


@fused
def test_checkpointing_repeats_the_mask(backend):
    x, params, upstream, options = case(batch=1, grid=(2, 3), dim=16)
    x.requires_grad_()

    def adapt(x):
        return ht_adapter(x, params, backend=backend, dropout=0.5, **options)

    grads = []
    for run in (adapt, lambda x: checkpoint(adapt, x, use_reentrant=False)):
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(run(x), x, upstream)[0])
    assert torch.equal(*grads)


@fused
def test_autocast_keeps_the_residual_and_rounds_the_bottleneck(backend):
    x, params, upstream, options = case()
    leaves = [x, *params.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = ht_adapter(x, params, backend=backend, **options)
    assert out.dtype == torch.float32
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(out, leaves, upstream))


SETTINGS = {
    "nothing": ("", False),
    "high": ("torch.set_float32_matmul_precision('high')", True),
    "highest": ("torch.set_float32_matmul_precision('highest')", False),
    "allow_tf32": ("torch.backends.cuda.matmul.allow_tf32 = True", True),
    "fp32_precision": ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", True),
    "fp32_precision ieee": ("torch.backends.cuda.matmul.fp32_precision = 'ieee'", False),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_tensor_float_32_only_where_pytorch_allows_it():
    settings = dict(SETTINGS)
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and newer
        settings = {name: s for name, s in settings.items() if "fp32_precision" not in s[0]}
    # Each in a process of its own, since the settings are global, and old and new ones do not mix:
    # forked from one that has imported torch.
    code = (
        "import os, torch\nfrom fastht.ops import custom_op\n"
        f"for name, statement in {[(name, s) for name, (s, _) in settings.items()]}:\n"
        "    if os.fork() == 0:\n"
        "        exec(statement)\n"
        "        print(name, custom_op.tensor_float_32(), sep=': ', flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.wait()[1] == 0, name\n"
    )
    done = fresh.run(code)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(": ") for line in done.stdout.splitlines())
    assert found == {name: str(expected) for name, (_, expected) in settings.items()}


@fused
def test_nothing_is_kept_without_gradients(backend):
    x, tensors, seed, common, _ = op_arguments(backend, requires_grad=False)
    _, _, u_norm, stats, *_ = torch.ops.fastht.ht_adapter(x, tensors, seed, *common, False)
    assert u_norm.numel() == stats.numel() == 0
    out = torch.ops.fastht.ht_adapter(x, tensors, seed, *common, True)[0]
    assert torch.equal(out, torch.ops.fastht.ht_adapter(x, tensors, seed, *common, False)[0])


@fused
def test_backend_is_told_by_the_adapter(backend):
    adapter = HTAdapter(16, backend=backend)
    assert f"backend='{backend}'" in repr(adapter)  # wherever it is on its way to
    assert f"backend='{backend}'" in repr(adapter.to(DEVICE))
    on_cpu = "cpu" if backends()["cpu"].usable else "reference"
    assert f"backend='auto -> {on_cpu}'" in repr(HTAdapter(16))


@pytest.mark.skipif(DEVICE == "cuda", reason="there is a GPU")
def test_without_gpu_and_interpreter_the_reason_is_named(monkeypatch):
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    assert backends()["triton"].detail == "torch sees no CUDA GPU"
    with pytest.raises(fastht.BackendUnavailableError, match="torch sees no CUDA GPU"):
        HTAdapter(16, backend="triton")
