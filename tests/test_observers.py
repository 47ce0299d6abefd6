"""Exporters, tracers and transforms: the adapter is in what they make, or they are refused."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from test_ops import case
from tiny_towers import randomize
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode
from vits import VITS, Vit

import fastht
from fastht import reference
from fastht.ops import portable

BACKENDS = [
    name for name in ("reference", "auto") if name == "reference" or fastht.backends()["cpu"].usable
]
both = pytest.mark.parametrize("backend", BACKENDS)


def _patched(name: str, backend: str = "auto", spectral: Any = "channel") -> tuple[Vit, nn.Module]:
    torch.manual_seed(1)
    vit = VITS[name]
    config = fastht.HTConfig(spectral=spectral, dropout=0.0)
    model = fastht.patch(vit.build(), config, backend=backend)
    randomize(fastht.adapter_parameters(model))
    return vit, model


def _close(actual: Any, expected: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), expected, rtol=1e-4, atol=1e-5)


# The operator without FFTs


@pytest.mark.parametrize("spectral", ["channel", "full"])
@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 6), (7, 1), (1, 1)])
def test_the_portable_operator_is_the_reference(spectral: Any, grid: tuple[int, int]) -> None:
    x, params, _, options = case("hybrid", spectral, batch=2, grid=grid, dim=16)
    x = x.double().cpu()
    params = {name: p.detach().double().cpu() for name, p in params.items()}
    params["spectral_filter"] = torch.randn_like(params["spectral_filter"])  # no symmetry
    expected = reference.ht_adapter(x, params, **options)
    actual = portable.ht_adapter(x, params, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    flat = params | {"spectral_filter": torch.ones_like(params["spectral_filter"])}
    assert not torch.allclose(actual, portable.ht_adapter(x, flat, **options), atol=1e-6)


# ONNX


class _Session:
    def __init__(self, path: Path) -> None:
        runtime = pytest.importorskip("onnxruntime")
        onnx = pytest.importorskip("onnx")
        self.operators = {node.op_type for node in onnx.load(path).graph.node}
        self.session = runtime.InferenceSession(str(path))

    def __call__(self, image: Tensor) -> Tensor:
        (name,) = (given.name for given in self.session.get_inputs())
        return torch.from_numpy(self.session.run(None, {name: image.numpy()})[0])


@pytest.mark.parametrize(
    ("backend", "dynamo", "grad", "spectral"),
    [
        ("auto", False, True, "channel"),  # where Python's autograd functions are not recorded
        ("auto", False, False, "full"),
        ("auto", True, True, "channel"),
        ("auto", True, True, "full"),
        ("reference", False, True, "channel"),
    ],
)
def test_onnx_files_hold_the_adapters(
    backend: str, dynamo: bool, grad: bool, spectral: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    vit, model = _patched("registers", backend, spectral)
    path = tmp_path / "model.onnx"
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (vit.image(),), path, dynamo=dynamo, verbose=False)
    run = _Session(path)
    image = vit.image(seed=8)
    with torch.no_grad():
        _close(run(image), model(image))
        with fastht.disable_adapter(model):
            assert not torch.allclose(run(image), model(image), atol=1e-3)
    assert "DFT" not in run.operators


def test_onnx_refuses_a_backend_that_it_cannot_see_through(monkeypatch: Any) -> None:
    import torch.onnx

    if not fastht.backends()["cpu"].usable:
        pytest.skip("needs the native kernels")
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    vit, model = _patched("registers", "cpu")
    with pytest.raises(
        fastht.BackendUnavailableError, match=r"ONNX.*backend='auto' or 'reference'"
    ):
        model(vit.image())


# torch.jit


@pytest.mark.parametrize("grad", [True, False])
@both
def test_a_trace_holds_the_adapters(backend: str, grad: bool) -> None:
    vit, model = _patched("registers", backend)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, vit.image())
    image = vit.image(batch=3, seed=8)
    with torch.no_grad():
        _close(traced(image), model(image))
        with fastht.disable_adapter(model):
            assert not torch.allclose(traced(image), model(image), atol=1e-3)


@pytest.mark.parametrize("spectral", ["channel", "full"])
def test_a_trace_takes_the_grid_of_its_images_or_fails(spectral: Any) -> None:
    vit, model = _patched("openai", spectral=spectral)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, vit.image(grid=(3, 5)))
        turned = vit.image(grid=(5, 3))  # as many patches
        if spectral == "channel":
            _close(traced(turned), model(turned))
        else:
            with pytest.raises(RuntimeError, match="size"):
                traced(turned)


# The others of its warnings: pytest-xdist's main process would import PyTorch to read them.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [True, False])
def test_a_trace_of_a_backend_by_name_says_that_it_keeps_the_grid(grad: bool) -> None:
    if not fastht.backends()["cpu"].usable:
        pytest.skip("needs the native kernels")
    vit, model = _patched("registers", "cpu")
    with (
        torch.set_grad_enabled(grad),
        pytest.warns(torch.jit.TracerWarning, match="patch grid of these images"),
    ):
        traced = torch.jit.trace(model, vit.image())
    image, parameters = vit.image(seed=8), fastht.adapter_parameters(model)
    found, expected = traced(image), model(image)
    _close(found.detach(), expected.detach())
    # Whatever the mode it was made in, the trace can be trained.
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    assert any(grad.abs().max() > 1e-3 for grad in wanted)
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_what_a_graph_was_made_of_is_not_patched() -> None:
    vit = VITS["registers"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(vit.build(), vit.image())
    with pytest.raises(fastht.UnsupportedModelError, match=r"patch the model itself, before torch"):
        fastht.patch(traced)


# torch.fx


@pytest.mark.parametrize("name", ["native", "openai"])
@both
def test_a_symbolic_trace_holds_the_adapters(name: str, backend: str) -> None:
    vit, model = _patched(name, backend)

    class Tracer(torch.fx.Tracer):  # of the blocks' inside too, but for attention
        def is_leaf_module(self, module: nn.Module, path: str) -> bool:
            return super().is_leaf_module(module, path) or path.endswith("attn")

    graph = torch.fx.GraphModule(model, Tracer().trace(model))
    assert (
        sum(node.op == "call_module" and node.target.endswith("ht") for node in graph.graph.nodes)
        == 2
    )
    for grid in ((3, 5), (5, 3)) if name == "openai" else ((3, 5),):
        image = vit.image(grid=grid)
        with torch.no_grad():
            _close(graph(image), model(image))
            with fastht.disable_adapter(model):
                _close(graph(image), model(image))


def test_features_of_torchvision_are_adapted() -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    vit, model = _patched("siglip")
    graph = extraction.create_feature_extractor(model, ["blocks.0", "blocks.1"])
    image = vit.image()
    with torch.no_grad():
        maps = model.forward_intermediates(image, intermediates_only=True, output_fmt="NLC")
        for found, expected in zip(graph(image).values(), maps, strict=True):
            _close(found, expected)


def test_a_traced_patch_projection_is_refused() -> None:
    _, model = _patched("openai")

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, path: str) -> bool:
            return super().is_leaf_module(module, path) and path != "conv1"

    with pytest.raises(RuntimeError, match="make it a leaf of the tracer"):
        Tracer().trace(model)


# torch.func


@both
def test_vmap_over_gradients(backend: str) -> None:
    vit, model = _patched("registers", backend)
    weights = dict(model.named_parameters())
    own = {name: p.detach() for name, p in weights.items() if p.requires_grad}
    image = vit.image(batch=3)

    def loss(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, {**weights, **own}, (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(own, image)
    assert each.keys() == own.keys()
    model.zero_grad()
    model(image[1:2]).square().sum().backward()
    for name, gradients in each.items():
        torch.testing.assert_close(gradients[1], weights[name].grad, rtol=1e-3, atol=1e-4)


def test_an_ensemble_of_adapters_over_one_base() -> None:
    """By stacked weights and vmap, as torch's tutorial on ensembles has it."""
    vit, first = _patched("registers", "auto")
    second = copy.deepcopy(first)
    randomize(fastht.adapter_parameters(second), seed=9)
    weights = {n: p.detach() for n, p in first.named_parameters() if not p.requires_grad}
    stacked = {
        name: torch.stack([dict(m.named_parameters())[name].detach() for m in (first, second)])
        for name, p in first.named_parameters()
        if p.requires_grad
    }
    image = vit.image()

    def features(own: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(first, {**weights, **own}, (image,))

    with torch.no_grad():
        both_at_once = torch.func.vmap(features)(stacked)
        for found, model in zip(both_at_once, (first, second), strict=True):
            torch.testing.assert_close(found, model(image), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(both_at_once[0], both_at_once[1], atol=1e-2)


def test_forward_mode_is_the_backward_pass_the_other_way() -> None:
    vit, model = _patched("registers", "auto")
    weights = dict(model.named_parameters())
    own = {name: p.detach() for name, p in weights.items() if p.requires_grad}
    generator = torch.Generator().manual_seed(4)
    along = {n: torch.randn(p.shape, generator=generator) for n, p in own.items()}

    def loss(own: dict[str, Tensor]) -> Tensor:
        output = torch.func.functional_call(model, {**weights, **own}, (vit.image(),))
        return output.square().sum()

    # Of torch's kinds of attention this one alone has a forward mode.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, slope = torch.func.jvp(loss, (own,), (along,))
    gradients = torch.func.grad(loss)(own)
    expected = sum((gradients[name] * along[name]).sum() for name in own)
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-3)
    assert float(slope.abs()) > 1e-2


def test_transforms_refuse_a_backend_by_name() -> None:
    if not fastht.backends()["cpu"].usable:
        pytest.skip("needs the native kernels")
    vit, model = _patched("registers", "cpu")
    with pytest.raises(fastht.BackendUnavailableError, match=r"torch\.func.*cannot see through"):
        torch.func.vmap(lambda x: model(x[None]))(vit.image())
    with (
        forward_ad.dual_level(),
        pytest.raises(fastht.BackendUnavailableError, match=r"forward_ad\) cannot see through"),
    ):
        model(vit.image())
    with (
        FlopCounterMode(display=False),
        pytest.raises(fastht.BackendUnavailableError, match=r"FlopCounterMode cannot see through"),
    ):
        model(vit.image())


# Derivatives of PyTorch's own outside of torch.func


@pytest.mark.parametrize("grad", [True, False])
def test_tangents_go_through_the_adapters(grad: bool) -> None:
    """An op without a forward mode would leave them out, and say nothing."""
    vit, model = _patched("registers")
    image = vit.image()
    along = torch.randn(image.shape, generator=torch.Generator().manual_seed(2))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, expected = torch.func.jvp(model, (image,), (along,))
        with forward_ad.dual_level(), torch.set_grad_enabled(grad):
            _, found = forward_ad.unpack_dual(model(forward_ad.make_dual(image, along)))
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float(expected.detach().abs().max()) > 1e-2


@pytest.mark.parametrize("keep", ["input", "output"])
def test_many_gradients_at_once(keep: str) -> None:
    torch.manual_seed(1)
    vit = VITS["gap"]  # whose last adapter reaches the features in all of its parts
    model = fastht.patch(vit.build(), fastht.HTConfig(dropout=0.0), keep=keep)
    randomize(fastht.adapter_parameters(model))
    image = vit.image().requires_grad_()
    wanted = [image, *fastht.adapter_parameters(model)]
    features = model(image)
    weights = torch.randn((3, *features.shape), generator=torch.Generator().manual_seed(2))

    def gradients(weight: Tensor, batched: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            features, wanted, weight, retain_graph=True, is_grads_batched=batched
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about attention
        ways = gradients(weights, batched=True), torch.func.vmap(gradients)(weights)
    for i, weight in enumerate(weights):
        for *together, expected in zip(*ways, gradients(weight), strict=True):
            scale = float(expected.abs().max())
            assert scale > 0
            for found in together:
                torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("recompute", ["none", "mlp"])
def test_operations_are_counted_as_the_reference_has_them(recompute: str) -> None:
    counts = []
    for backend in BACKENDS:
        vit = VITS["registers"]
        model = fastht.patch(vit.build(), backend=backend, recompute=recompute)
        with FlopCounterMode(display=False) as step:
            model(vit.image()).sum().backward()
        with FlopCounterMode(display=False) as base, fastht.disable_adapter(model):
            model(vit.image())
        counts.append((step.get_total_flops(), base.get_total_flops()))
    assert counts == counts[:1] * len(BACKENDS)
    # A forward pass, a backward pass to the first adapter, and what the adapters add to both.
    assert counts[0][0] > 2 * counts[0][1]


# Files of exported models, in a process of their own


_LOAD = """
import sys
sys.path[:] = {path!r}
import torch
import fastht
image, expected = torch.load({folder!r} + "/case.pt")
with torch.no_grad():
    exported = torch.export.load({folder!r} + "/model.pt2").module()(image)
    traced = torch.jit.load({folder!r} + "/model.ts")(image)
torch.testing.assert_close(exported, expected)
torch.testing.assert_close(traced, expected)
"""


@pytest.mark.slow
def test_exported_models_load_where_fastht_is_imported(tmp_path: Path) -> None:
    vit, model = _patched("registers")
    image = vit.image()
    torch.export.save(torch.export.export(model, (image,)), tmp_path / "model.pt2")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, image).save(tmp_path / "model.ts")
        torch.save((image, model(image)), tmp_path / "case.pt")
    script = _LOAD.format(path=sys.path, folder=str(tmp_path))
    found = fresh.run(script)
    assert found.returncode == 0, found.stderr
