"""Gradient checkpointing of every library: the adapters' gradients are those without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_towers import randomize
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from vits import GRID, VITS, Vit, loss

import fastht

# More than one dropout would draw other masks when all is recomputed in another order.
CONFIG = fastht.HTConfig(dropout=0.0)


def _patched(vit: Vit) -> nn.Module:
    torch.manual_seed(1)
    model = fastht.patch(vit.build(), CONFIG)
    randomize(fastht.adapter_parameters(model))
    return model


def _gradients(model: nn.Module, *losses: Tensor) -> list[Tensor]:
    """Run one backward over all losses and take the adapters' gradients away."""
    for parameter in fastht.adapter_parameters(model):
        parameter.grad = None
    torch.stack(losses).sum().backward()
    return [p.grad for p in fastht.adapter_parameters(model)]


def _assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    scale = max(gradient.abs().max() for gradient in expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=float(scale) * 1e-6)


def _open_clip(model: nn.Module) -> None:
    model.set_grad_checkpointing(True)


def _transformers(**kwargs: bool) -> Callable[[nn.Module], None]:
    def enable(model: nn.Module) -> None:
        enable = getattr(model, "activation_checkpointing_enable", None)
        if enable is not None:  # the name since transformers 5
            enable(activation_checkpointing_kwargs=kwargs or None)
        else:
            model.gradient_checkpointing_enable(kwargs or None)

    return enable


class _CheckpointedSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def _by_hand(model: nn.Module) -> None:
    model.transformer.resblocks.__class__ = _CheckpointedSequential


ENABLE = {
    "native": _open_clip,
    "clip": _open_clip,
    "coca": _open_clip,
    "siglip": _open_clip,
    "registers": _open_clip,
    "eva02": _open_clip,
    "relpos": _open_clip,
    "beit": _open_clip,
    "vitamin": _open_clip,
    "transformers-clip-vision": _transformers(),
    "transformers-clip": _transformers(use_reentrant=False),
    "transformers-siglip": _transformers(),
    "openai": _by_hand,
}


@pytest.mark.parametrize("name", ENABLE)
def test_gradients_equal_those_without(name: str) -> None:
    vit = VITS[name]
    model = _patched(vit)
    model.train()
    image = vit.image()
    expected = _gradients(model, loss(vit.features(model, image)))
    calls = []
    fastht.adapters(model)[0].register_forward_pre_hook(lambda *args: calls.append(1))
    ENABLE[name](model)
    with torch.no_grad():  # nothing is recomputed, and other images may go through the tower
        vit.features(model, vit.image(grid=GRID))
    calls.clear()
    actual = _gradients(model, loss(vit.features(model, image)))
    # transformers 5 checkpoints what is inside the hooks; the other libraries the whole block.
    assert len(calls) == (1 if name.startswith("transformers") else 2)
    _assert_same(actual, expected)
    assert all(gradient is not None for gradient in actual)


def test_dropout_masks_are_those_of_the_forward() -> None:
    vit = VITS["openai"]
    config = fastht.HTConfig(dropout=0.5)
    model = fastht.patch(vit.build(), config).train()
    randomize(fastht.adapter_parameters(model))
    torch.manual_seed(5)
    expected = _gradients(model, loss(model(vit.image())))
    _by_hand(model)
    torch.manual_seed(5)
    _assert_same(_gradients(model, loss(model(vit.image()))), expected)


@pytest.fixture
def model() -> nn.Module:
    model = _patched(VITS["openai"])
    _by_hand(model)
    return model


def _images(*grids: tuple[int, int]) -> list[Tensor]:
    return [VITS["openai"].image(grid=grid, seed=i) for i, grid in enumerate(grids)]


def _expected(grids: list[tuple[int, int]]) -> list[Tensor]:
    model = _patched(VITS["openai"])
    return _gradients(model, *[loss(model(image)) for image in _images(*grids)])


def test_images_of_different_token_counts_before_one_backward(model: nn.Module) -> None:
    grids = [(3, 5), (4, 4), (2, 3), (1, 5)]
    actual = _gradients(model, *[loss(model(image)) for image in _images(*grids)])
    _assert_same(actual, _expected(grids))


def test_images_of_one_token_count_and_two_grids_are_refused(model: nn.Module) -> None:
    losses = [loss(model(image)) for image in _images((4, 8), (8, 4))]
    match = r"recomputes a block of 32 patches.*4x8, 8x4\).*one aspect ratio.*without gradient"
    with pytest.raises(RuntimeError, match=match):
        _gradients(model, *losses)


def test_another_grid_in_evaluation_does_not_disturb_training(model: nn.Module) -> None:
    landscape, portrait = _images((4, 8), (8, 4))
    training = loss(model(landscape))
    with torch.no_grad():
        model(portrait)
    with torch.inference_mode():
        model(portrait)
    _assert_same(_gradients(model, training), _expected([(4, 8)]))


@pytest.mark.parametrize("trained", [(4, 8), (3, 5)])
def test_a_forward_pass_within_a_backward_pass(model: nn.Module, trained: tuple[int, int]) -> None:
    """It may be a recomputation, so that it is right or refused: never on another one's grid."""
    image, other = _images(trained, (8, 4))
    with torch.no_grad():
        expected = model(other)
    found = []

    def look(_: Tensor) -> None:
        with torch.no_grad():
            found.append(model(other))

    features = model(image)
    features.register_hook(look)
    if trained == (4, 8):
        with pytest.raises(RuntimeError, match=r"seen in training: 4x8, 8x4"):
            loss(features).backward()
    else:
        loss(features).backward()
        assert torch.equal(found[0], expected)


def test_two_grids_of_one_token_count_need_no_checkpointing() -> None:
    model = _patched(VITS["openai"])
    images = _images((4, 8), (8, 4))
    together = _gradients(model, *[loss(model(image)) for image in images])
    apart = [_gradients(model, loss(model(image))) for image in images]
    _assert_same(together, [a + b for a, b in zip(*apart, strict=True)])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_around_the_whole_model(use_reentrant: bool) -> None:
    vit = VITS["registers"]
    model = _patched(vit)
    image = vit.image()
    expected = _gradients(model, loss(model(image)))
    # The re-entrant kind records nothing unless an input needs a gradient.
    image.requires_grad_(use_reentrant)
    out = checkpoint(model, image, use_reentrant=use_reentrant)
    _assert_same(_gradients(model, loss(out)), expected)


def test_a_reentrant_checkpoint_of_each_block() -> None:
    vit = VITS["registers"]
    model = _patched(vit)
    image = vit.image().requires_grad_()
    expected = _gradients(model, loss(model(image)))
    import timm

    timm.layers.set_reentrant_ckpt(True)
    try:
        model.set_grad_checkpointing(True)
        _assert_same(_gradients(model, loss(model(image))), expected)
    finally:
        timm.layers.set_reentrant_ckpt(False)


@pytest.mark.parametrize("when", ["before", "after"])
def test_checkpoint_wrappers_around_blocks(when: str) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    def wrap(model: nn.Module) -> None:
        block = type(model.transformer.resblocks[0])
        apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, block))

    vit = VITS["openai"]
    image = vit.image()
    expected = _gradients(*(lambda m: (m, loss(m(image))))(_patched(vit)))
    model = vit.build()
    flags = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(1)
    if when == "before":
        wrap(model)
    fastht.patch(model, CONFIG)
    randomize(fastht.adapter_parameters(model))
    if when == "after":
        wrap(model)
    _assert_same(_gradients(model, loss(model(image))), expected)
    fastht.unpatch(model)
    assert [p.requires_grad for p in model.parameters()] == flags
    with torch.no_grad():
        assert torch.equal(model(image), vit.build()(image))
