"""What only the native CPU kernels are held to: threads, paths, refused calls, a missing build."""

import threading

import fresh
import pytest
import torch
from engines import DEVICE, ENGINES
from test_ops import case

import fastht
from fastht import HTAdapter, HTConfig, backends
from fastht.ops import cpu, ht_adapter

pytestmark = [
    pytest.mark.skipif(not backends()["cpu"].usable, reason=backends()["cpu"].detail),
    pytest.mark.skipif(DEVICE == "cuda", reason="tests that need no GPU run where there is none"),
]
PATHS = [engine for engine in ENGINES if isinstance(engine, str) and engine.startswith("cpu/")]


def results(dropout=0.0, **shape):
    """Return the output and every gradient of one call in bfloat16, which every path takes."""
    x, params, upstream, options = case(dtype=torch.bfloat16, **shape)
    leaves = [x, *params.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    torch.manual_seed(3)
    out = ht_adapter(x, params, backend="cpu", dropout=dropout, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


@pytest.fixture
def threads():
    """Set torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", PATHS, indirect=True)
@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 1, "grid": (7, 9), "spectral": "full"},  # fewer images than threads
        {"batch": 3, "grid": (14, 14), "dim": 100},
        {"batch": 9, "channels": 20, "spectral": "full"},
    ],
)
def test_bits_do_not_depend_on_the_number_of_threads(backend, shape, threads):
    threads(1)
    expected = results(dropout=0.2, **shape)
    for number in (2, 3, 5):
        threads(number)
        for one, other in zip(results(dropout=0.2, **shape), expected, strict=True):
            assert torch.equal(one, other)


def test_calls_from_several_threads_do_not_meet():
    expected = results(batch=3)
    wrong = []

    def work():
        for _ in range(20):
            pairs = zip(results(batch=3), expected, strict=True)
            wrong.extend(1 for one, other in pairs if not torch.equal(one, other))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_float32_products_never_take_a_path_that_rounds():
    assert cpu.path(torch.float32) in ("avx512", "avx2", "portable")
    assert cpu.path(torch.bfloat16) == cpu.paths()[0]
    assert cpu.path(torch.float32) in backends()["cpu"].detail


def test_forced_path_is_used_or_refused():
    with cpu.forced_path("portable"):
        assert cpu.path(torch.bfloat16) == "portable"
    assert cpu.path(torch.bfloat16) == cpu.paths()[0]
    with pytest.raises(ValueError, match=r"no path 'avx1024' here; choose one of .*portable"):
        cpu.forced_path("avx1024").__enter__()


@pytest.mark.skipif("avx512_bf16" not in cpu.paths(), reason="the processor has no such path")
def test_a_path_that_rounds_refuses_float32_products():
    x, params, _, options = case()
    with (
        cpu.forced_path("avx512_bf16"),
        pytest.raises(ValueError, match=r"'avx512_bf16' rounds products.*float32"),
    ):
        ht_adapter(x, params, backend="cpu", **options)


def test_parameters_of_other_dtypes_get_gradients_in_theirs():
    x, params, upstream, options = case()
    params = {
        name: p.to(dtype).requires_grad_()
        for (name, p), dtype in zip(
            params.items(), [torch.float16, torch.float64, torch.bfloat16] * 8, strict=False
        )
    }
    out = ht_adapter(x, params, backend="cpu", **options)
    out.backward(upstream)
    for name, p in params.items():
        assert p.grad.dtype == p.dtype, name
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("name", "shape"),
    [("up.weight", (48, 15)), ("conv5.weight", (16, 1, 5, 4)), ("noise_gate.2.bias", (2,))],
)
def test_a_parameter_of_another_size_is_named(name, shape):
    x, params, _, options = case()
    params[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=rf"{name} has \d+ elements; \d+ are needed"):
        ht_adapter(x, params, backend="cpu", **options)


def test_auto_takes_it_for_cpu_tensors_alone():
    adapter = HTAdapter(16, HTConfig(bottleneck_dim=4, init="paper", dropout=0.0))
    x = torch.randn(2, 7, 16)
    by_hand = HTAdapter(16, adapter.config, backend="cpu")
    by_hand.load_state_dict(adapter.state_dict())
    assert torch.equal(adapter(x, (2, 3)), by_hand(x, (2, 3)))
    with pytest.raises(fastht.BackendUnavailableError, match="takes CPU tensors"):
        by_hand.to("meta")(x.to("meta"), (2, 3))


def test_without_the_extension_the_reason_is_named():
    code = (
        "import sys; sys.modules['fastht._native'] = None\n"
        "import fastht; print(fastht.backends()['cpu'].detail)\n"
        "print(fastht.ops.resolve_backend('auto', 'cpu').name)\n"
    )
    done = fresh.run(code)
    assert done.returncode == 0, done.stderr
    detail, name = done.stdout.strip().splitlines()
    assert "native extension is not built" in detail
    assert "reinstall fastht" in detail
    assert name == "reference"
