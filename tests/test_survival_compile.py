"""torch.compile before and after patching: no stale code, no graph break."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_towers import randomize
from torch import Tensor, nn
from vits import GRID, VITS, Vit, loss, open_clip_model, openai_tower

import fastht

CONFIG = fastht.HTConfig(init="paper", dropout=0.0)
OPENAI = VITS["openai"]
IMAGE = OPENAI.image()


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def _gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    for parameter in fastht.adapter_parameters(model):
        parameter.grad = None
    loss(output).backward()
    return [p.grad for p in fastht.adapter_parameters(model)]


# Ways to compile. Each returns what to call; the model itself stays what fastht is given.


def _wrapped(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, fullgraph=True, backend="eager")


def _in_place(model: nn.Module) -> Callable[[Tensor], Tensor]:
    model.compile(fullgraph=True, backend="eager")
    return model


def _function(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda image: model(image), fullgraph=True, backend="eager")


def _each_block_in_place(model: nn.Module) -> Callable[[Tensor], Tensor]:
    for block in model.transformer.resblocks:
        block.compile(fullgraph=True, backend="eager")
    return model


def _each_block_wrapped(model: nn.Module) -> Callable[[Tensor], Tensor]:
    blocks = model.transformer.resblocks
    for i, block in enumerate(list(blocks)):
        blocks[i] = torch.compile(block, fullgraph=True, backend="eager")
    return model


WAYS = [
    pytest.param(_wrapped, id="wrapped"),
    pytest.param(_in_place, id="in place", marks=pytest.mark.slow),
    pytest.param(_function, id="function", marks=pytest.mark.slow),
    pytest.param(_each_block_in_place, id="each block in place", marks=pytest.mark.slow),
    pytest.param(_each_block_wrapped, id="each block wrapped", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("compile_", WAYS)
def test_code_compiled_before_patch_is_not_run_without_the_adapters(compile_: Any) -> None:
    # Frozen and without gradients, nothing but the hooks tells the base from the patched model.
    model = openai_tower().requires_grad_(False)
    run = compile_(model)
    with torch.no_grad():
        base = run(IMAGE)
        _close(base, openai_tower()(IMAGE))
        for seed in range(2):  # the second time over code that was compiled before the first
            fastht.patch(model, CONFIG)
            randomize(fastht.adapter_parameters(model), seed)
            adapted = openai_tower()
            fastht.patch(adapted, CONFIG)
            adapted.load_state_dict(_plain_names(model))
            _close(run(IMAGE), adapted(IMAGE))
            assert (adapted(IMAGE) - base).abs().max() > 0.1
            with fastht.disable_adapter(model):
                _close(run(IMAGE), base)
            _close(run(IMAGE), adapted(IMAGE))
            fastht.unpatch(model)
            _close(run(IMAGE), base)


def _plain_names(model: nn.Module) -> dict[str, Tensor]:
    return {name.replace("_orig_mod.", ""): t for name, t in model.state_dict().items()}


def test_fastht_takes_the_compiled_model_itself() -> None:
    model = openai_tower()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert fastht.patch(compiled, CONFIG) is compiled
    assert fastht.patch(model, CONFIG) is model  # the same one
    assert fastht.adapters(compiled) == fastht.adapters(model)
    with torch.no_grad():
        _close(compiled(IMAGE), model(IMAGE))
        with fastht.disable_adapter(compiled):
            _close(compiled(IMAGE), openai_tower()(IMAGE))
    assert fastht.unpatch(compiled) is compiled
    assert not hasattr(model.transformer.resblocks[0], "ht")


def test_a_part_that_is_compiled_before_or_after_patching() -> None:
    for when in ("before", "after"):
        model = open_clip_model()
        before = {name: p.requires_grad for name, p in model.named_parameters()}
        if when == "before":
            model.visual = torch.compile(model.visual, backend="eager")
        fastht.patch(model, CONFIG)
        if when == "after":
            model.visual = torch.compile(model.visual, backend="eager")
        image = VITS["clip"].image()
        with torch.no_grad():
            inner = model.visual._orig_mod
            _close(model.encode_image(image), inner(image))
            assert (inner(image) - open_clip_model().visual(image)).abs().max() > 0.1
        model.visual.lock()
        own = {id(p) for p in fastht.adapter_parameters(model)}
        assert {id(p) for p in model.parameters() if p.requires_grad} == own
        fastht.unpatch(model)
        assert "lock" not in vars(inner)
        model.visual = inner
        assert {name: p.requires_grad for name, p in model.named_parameters()} == before


@pytest.mark.slow
def test_patching_often_does_not_run_into_the_recompile_limit() -> None:
    model = openai_tower().requires_grad_(False)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    limit = torch._dynamo.config.recompile_limit
    with torch.no_grad():
        for _ in range(limit // 2 + 1):
            compiled(IMAGE)
            fastht.patch(model, CONFIG)
            _close(compiled(IMAGE), model(IMAGE))
            fastht.unpatch(model)


@pytest.mark.slow
def test_batch_and_image_sizes() -> None:
    model = fastht.patch(openai_tower(), CONFIG)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for batch, grid in [(2, (4, 4)), (3, (4, 4)), (5, (4, 4)), (3, (3, 5)), (3, (5, 3))]:
            image = OPENAI.image(batch, grid)
            _close(compiled(image), model(image))
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for batch, grid in [(4, (4, 6)), (7, (6, 3)), (2, (3, 5))]:
            image = OPENAI.image(batch, grid)
            _close(compiled(image), model(image))
        # By then the sizes are symbols: new ones need no new code.
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
def test_training_and_evaluation() -> None:
    model = fastht.patch(openai_tower(), fastht.HTConfig(init="paper", dropout=0.5))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = _gradients(model, model(IMAGE))
    for actual, gradient in zip(_gradients(model, compiled(IMAGE)), expected, strict=True):
        _close(actual, gradient)
    compiled.train()
    assert not torch.equal(compiled(IMAGE), compiled(IMAGE))
    compiled.eval()
    _close(compiled(IMAGE), model(IMAGE))


def test_copies_of_a_compiled_model_use_their_own_weights() -> None:
    model = fastht.patch(openai_tower(), CONFIG)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        before = compiled(IMAGE)
        twin = copy.deepcopy(compiled)
        randomize(fastht.adapter_parameters(twin))
        _close(compiled(IMAGE), before)
        changed = twin(IMAGE)
        assert (changed - before).abs().max() > 0.1
        _close(changed, copy.deepcopy(twin._orig_mod)(IMAGE))


@pytest.mark.parametrize("name", ["registers", "native"])
def test_with_gradient_checkpointing(name: str) -> None:
    vit = VITS[name]
    model = fastht.patch(vit.build(), CONFIG).train()
    expected = _gradients(model, vit.features(model, vit.image()))
    model.set_grad_checkpointing(True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for actual, gradient in zip(_gradients(model, compiled(vit.image())), expected, strict=True):
        torch.testing.assert_close(actual, gradient, rtol=1e-3, atol=1e-4)


# One of each library and each way to take blocks apart; the others are close to one of them.
IN_CI = {"clip", "siglip", "coca", "eva01", "relpos", "beit", "pe-core", "mobileclip", "vitamin"}
IN_CI |= {"transformers-clip-vision"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in IN_CI else pytest.mark.sweep)
        for n in VITS
        if n != "openai"
    ],
)
def test_every_structure_in_one_graph(name: str) -> None:
    _check_one_graph(VITS[name])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="the inductor needs a C++ compiler")
def test_with_the_inductor() -> None:
    model = fastht.patch(openai_tower(), CONFIG)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        _close(compiled(IMAGE), model(IMAGE))


def _check_one_graph(vit: Vit) -> None:
    model = vit.build().requires_grad_(False)
    run = torch.compile(vit.features, fullgraph=True, backend="aot_eager")
    image = vit.image(grid=GRID)
    with torch.no_grad():
        base = vit.features(model, image)
        _close(run(model, image), base)
    fastht.patch(model, CONFIG)
    randomize(fastht.adapter_parameters(model))
    output = run(model, image)
    _close(output, vit.features(model, image))
    actual = _gradients(model, output)
    expected = _gradients(model, vit.features(model, image))
    scale = max(float(g.abs().max()) for g in expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * scale)
    with torch.no_grad(), fastht.disable_adapter(model):
        _close(run(model, image), base)
