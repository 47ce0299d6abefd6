"""Putting adapters in, taking them out, and asking a patched model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_towers import randomize, snapshot
from torch import Tensor, nn
from vits import ALL_VITS, GRID, VITS, Vit, loss, open_clip_model, openai_tower, timm_vit

import fastht
from fastht.patch import patched_config


@pytest.fixture(params=list(ALL_VITS))
def vit(request: pytest.FixtureRequest) -> Vit:
    return ALL_VITS[request.param]


@pytest.fixture
def tower() -> nn.Module:
    return openai_tower()


IMAGE = VITS["openai"].image()


def _output(model: nn.Module, image: Tensor = IMAGE) -> Tensor:
    with torch.no_grad():
        return model(image)


# Every structure


def test_identity_disable_and_unpatch_are_bitwise_the_base(vit: Vit) -> None:
    model = vit.build()
    image = vit.image()
    with torch.no_grad():  # PyTorch's attention has another kernel where gradients are recorded
        unfrozen = vit.features(model, image)
        # Freezing alone moves the last bit of some towers in torch 2.8.
        base = vit.features(copy.deepcopy(model).requires_grad_(False), image)
        before, shown = snapshot(model), repr(model)

        fastht.patch(model)
        assert torch.equal(vit.features(model, image), base)

        randomize(fastht.adapter_parameters(model))
        assert not torch.allclose(vit.features(model, image), base, rtol=0, atol=1e-3)
        with fastht.disable_adapter(model):
            assert torch.equal(vit.features(model, image), base)
        assert not torch.allclose(vit.features(model, image), base, rtol=0, atol=1e-3)

        assert fastht.unpatch(model) is model
        assert repr(model) == shown
        assert snapshot(model) == before
        assert torch.equal(vit.features(model, image), unfrozen)


def test_gradients_reach_every_adapter_parameter_and_nothing_else(vit: Vit) -> None:
    model = fastht.patch(vit.build())
    randomize(fastht.adapter_parameters(model))
    loss(vit.features(model, vit.image())).backward()
    first, last = fastht.adapters(model).values()
    unreached = [name for name, p in first.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached
    # After the last block the class token alone may be read, which no convolution reaches.
    assert all(p.grad is not None for p in last.parameters())
    assert last.up.weight.grad.any()
    own = {id(p) for p in fastht.adapter_parameters(model)}
    assert all(p.grad is None for p in model.parameters() if id(p) not in own)


# What a patched model computes


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (5, 3), (1, 7), (1, 1)])
@pytest.mark.parametrize("spectral", ["channel", "full"])
def test_each_block_is_followed_by_its_adapter_on_the_grid_of_the_image(
    tower: nn.Module, grid: tuple[int, int], spectral: Any
) -> None:
    fastht.patch(tower, fastht.HTConfig(spectral=spectral, init="paper"))
    image = VITS["openai"].image(batch=3, grid=grid)
    adapters = fastht.adapters(tower)
    with torch.no_grad():
        _output(tower)  # of another size
        result = tower(image)
        with fastht.disable_adapter(tower):
            x = tower.conv1(image).flatten(2).transpose(1, 2)
            x = torch.cat([tower.class_embedding.expand(3, 1, -1), x], dim=1)
            x = tower.ln_pre(x)
            for index, block in enumerate(tower.transformer.resblocks):
                x = block(x.transpose(0, 1)).transpose(0, 1)
                x = adapters[index](x, grid, 1)
            expected = tower.ln_post(x[:, 0]) @ tower.proj
    assert torch.equal(result, expected)


def test_timm_resizes_its_position_table_and_the_grid_follows() -> None:
    vit = VITS["registers"]
    model = timm_vit("vit_small_patch14_reg4_dinov2", dynamic_img_size=True)
    fastht.patch(model, fastht.HTConfig(init="paper"))
    seen = []
    fastht.adapters(model)[0].register_forward_pre_hook(lambda _, args: seen.append(args[1:]))
    for grid in [(2, 6), (6, 2), GRID]:
        _output(model, vit.image(grid=grid))
    model.set_input_size((16, 24))
    _output(model, vit.image(grid=(2, 3)))
    assert seen == [((2, 6), 5), ((6, 2), 5), (GRID, 5), ((2, 3), 5)]


def test_adapters_of_chosen_layers(tower: nn.Module) -> None:
    fastht.patch(tower, fastht.HTConfig(layers=[-1]))
    assert list(fastht.adapters(tower)) == [1]
    assert not hasattr(tower.transformer.resblocks[0], "ht")
    assert patched_config(tower) == fastht.HTConfig(layers=[-1])
    fastht.unpatch(tower)
    assert not any(module._forward_hooks for module in tower.modules())


def test_dropout_acts_in_training_alone(tower: nn.Module) -> None:
    fastht.patch(tower.train(), fastht.HTConfig(init="paper", dropout=0.5))
    assert all(adapter.training for adapter in fastht.adapters(tower).values())
    torch.manual_seed(0)
    assert not torch.equal(_output(tower), _output(tower))
    tower.eval()
    assert torch.equal(_output(tower), _output(tower))
    fastht.patch(fastht.unpatch(tower))
    assert not any(adapter.training for adapter in fastht.adapters(tower).values())


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_adapters_train_in_float32_at_least(
    tower: nn.Module, base: torch.dtype, adapter: torch.dtype
) -> None:
    fastht.patch(tower.to(base), fastht.HTConfig(init="paper"))
    assert {p.dtype for p in fastht.adapter_parameters(tower)} == {adapter}
    out = tower(IMAGE.to(base))
    assert out.dtype == base
    out.float().sum().backward()
    assert {p.grad.dtype for p in fastht.adapter_parameters(tower)} == {adapter}


def test_adapters_are_made_on_the_device_of_their_block() -> None:
    with torch.device("meta"):
        tower = openai_tower.__wrapped__()
    fastht.patch(tower)
    assert all(p.is_meta for p in fastht.adapter_parameters(tower))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_patched_model_on_cuda(tower: nn.Module) -> None:
    fastht.patch(tower.cuda(), fastht.HTConfig(init="paper"))
    assert all(p.is_cuda for p in fastht.adapter_parameters(tower))
    on_gpu = _output(tower, IMAGE.cuda()).cpu()
    torch.testing.assert_close(on_gpu, _output(tower.cpu()), rtol=1e-3, atol=1e-3)


# Freezing, and the flags that unpatch gives back


def test_the_base_freezes_and_unpatch_gives_the_flags_back(tower: nn.Module) -> None:
    tower.conv1.requires_grad_(False)
    before = snapshot(tower)
    fastht.patch(tower)
    own = {id(p) for p in fastht.adapter_parameters(tower)}
    assert {id(p) for p in tower.parameters() if p.requires_grad} == own
    tower.conv1.requires_grad_(True)  # by the user, who trains a part of the base as well
    fastht.unpatch(tower)
    assert snapshot(tower) == before


def test_unpatch_leaves_what_came_after_patch(tower: nn.Module) -> None:
    fastht.patch(tower)
    del tower.ln_post.bias
    tower.ln_post.bias = None
    tower.head = nn.Linear(2, 2)
    tower.head.bias.requires_grad_(False)
    fastht.unpatch(tower)
    assert tower.head.weight.requires_grad
    assert not tower.head.bias.requires_grad
    assert tower.conv1.weight.requires_grad


def test_own_hooks_stay_and_see_the_adapted_tokens(tower: nn.Module) -> None:
    seen: list[Tensor] = []
    block = tower.transformer.resblocks[0]
    before = block.register_forward_hook(lambda _, __, out: seen.append(out))
    fastht.patch(tower, fastht.HTConfig(init="paper"))
    block.register_forward_hook(lambda _, __, out: seen.append(out))
    _output(tower)
    assert seen[0] is seen[1]
    with fastht.disable_adapter(tower):
        _output(tower)
    assert not torch.allclose(seen[0], seen[2])
    fastht.unpatch(tower)
    assert len(block._forward_hooks) == 2
    before.remove()
    assert len(block._forward_hooks) == 1


# Patching a patched model


def test_patching_twice_changes_nothing(tower: nn.Module) -> None:
    config = fastht.HTConfig(layers=[0], init="paper")
    fastht.patch(tower, config)
    before, output = snapshot(tower), _output(tower)
    assert fastht.patch(tower, fastht.HTConfig(layers=[0], init="paper")) is tower
    assert snapshot(tower) == before
    assert torch.equal(_output(tower), output)


@pytest.mark.parametrize(
    ("config", "backend"),
    [(fastht.HTConfig(dropout=0.2), "auto"), (fastht.HTConfig(), "reference")],
)
def test_patching_differently_is_refused(
    tower: nn.Module, config: fastht.HTConfig, backend: str
) -> None:
    fastht.patch(tower)
    before = snapshot(tower)
    with pytest.raises(ValueError, match=r"HT adapters already.*call fastht\.unpatch first"):
        fastht.patch(tower, config, backend=backend)
    assert snapshot(tower) == before


@pytest.mark.parametrize("shard", [False, True])
def test_patching_what_is_wrapped_says_what_it_is(tower: nn.Module, shard: bool) -> None:
    """Sharded parameters are told by the method that FSDP2's have; tests/distributed_worker.py has
    real ones."""

    def wrap(model: nn.Module) -> nn.Module:
        if shard:
            parameter = next(model.parameters())
            parameter.full_tensor = parameter.detach  # type: ignore[attr-defined]
            return model
        return nn.DataParallel(model)

    with pytest.raises(ValueError, match=r"wrapped for distributed training already.* patch first"):
        fastht.patch(wrap(copy.deepcopy(tower)))
    wrapped = wrap(fastht.patch(tower))
    before = snapshot(tower)
    assert fastht.patch(wrapped) is wrapped
    again = r"HT adapters already.*call fastht\.unpatch .*, on a model that is not wrapped"
    with pytest.raises(ValueError, match=again):
        fastht.patch(wrapped, fastht.HTConfig(dropout=0.2))
    assert snapshot(tower) == before


def test_a_model_patched_through_another_module() -> None:
    model = open_clip_model()
    fastht.patch(model.visual)
    with pytest.raises(ValueError, match="put in through another module"):
        fastht.patch(model)
    with pytest.raises(fastht.NotPatchedError, match=r"CLIP was patched through another module"):
        fastht.unpatch(model)
    assert len(fastht.adapters(model)) == 2  # asking works from anywhere
    fastht.unpatch(model.visual)

    fastht.patch(model)
    with pytest.raises(fastht.NotPatchedError, match="VisionTransformer was patched through"):
        fastht.unpatch(model.visual)
    with fastht.disable_adapter(model.visual):
        pass
    fastht.unpatch(model)


# Bad input: the error says what to do, and the model stays as it was


def _with_an_attribute_ht(tower: nn.Module) -> None:
    tower.transformer.resblocks[1].ht = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("arguments", "prepare", "error", "match"),
    [
        (
            {"config": {"dropout": 0.1}},
            None,
            TypeError,
            r"config is a dict; give a fastht\.HTConfig",
        ),
        ({"config": "hybrid"}, None, TypeError, r"config is a str; give a fastht\.HTConfig"),
        ({"backend": "fast"}, None, ValueError, r"no backend 'fast'; choose one of 'auto'"),
        ({"config": fastht.HTConfig(layers=[1, 2])}, None, ValueError, r"\[2\].*from 0 to 1"),
        ({}, _with_an_attribute_ht, ValueError, r"block 1 \(_OpenAIBlock\) has an attribute 'ht'"),
    ],
)
def test_a_failing_patch_leaves_the_model_untouched(
    tower: nn.Module, arguments: dict[str, Any], prepare: Any, error: type, match: str
) -> None:
    if prepare:
        prepare(tower)
    before = snapshot(tower)
    with pytest.raises(error, match=match):
        fastht.patch(tower, **arguments)
    assert snapshot(tower) == before


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model is a str; fastht\.patch takes a torch\.nn\.Module"):
        fastht.patch("ViT-B-16")  # type: ignore[type-var]


@pytest.mark.parametrize(
    "ask",
    [
        fastht.unpatch,
        fastht.adapters,
        fastht.adapter_parameters,
        fastht.adapter_state_dict,
        patched_config,
        lambda model: fastht.disable_adapter(model).__enter__(),
    ],
)
def test_asking_a_model_without_adapters(tower: nn.Module, ask: Any) -> None:
    with pytest.raises(fastht.NotPatchedError, match=r"OpenAITower has no HT.*fastht\.patch"):
        ask(tower)


# Asking


def test_disable_adapter_nests_and_survives_an_error(tower: nn.Module) -> None:
    base = _output(tower)
    fastht.patch(tower, fastht.HTConfig(init="paper"))
    adapted = _output(tower)
    with fastht.disable_adapter(tower):
        with fastht.disable_adapter(tower):
            pass
        assert torch.equal(_output(tower), base)
    with pytest.raises(KeyError), fastht.disable_adapter(tower):
        raise KeyError
    assert torch.equal(_output(tower), adapted)


def test_adapter_state_dict_and_parameters(tower: nn.Module) -> None:
    keys = set(tower.state_dict())
    fastht.patch(tower, fastht.HTConfig(layers=[1]))
    weights = fastht.adapter_state_dict(tower)
    adapter = fastht.adapters(tower)[1]
    assert set(weights) == {f"blocks.1.{name}" for name, _ in adapter.named_parameters()}
    assert weights["blocks.1.gamma"].data_ptr() == adapter.gamma.data_ptr()
    assert not any(tensor.requires_grad for tensor in weights.values())
    assert fastht.adapter_parameters(tower) == list(adapter.parameters())
    added = set(tower.state_dict()) - keys
    assert keys < set(tower.state_dict())
    assert {name.removeprefix("transformer.resblocks.1.ht.") for name in added} == {
        name for name, _ in adapter.named_parameters()
    }


def test_print_trainable_parameters(tower: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    total = sum(p.numel() for p in tower.parameters())
    fastht.patch(tower)
    own = sum(p.numel() for p in fastht.adapter_parameters(tower))
    fastht.print_trainable_parameters(tower)
    share = 100 * own / (total + own)
    assert capsys.readouterr().out == (
        f"trainable params: {own:,} || all params: {total + own:,} || trainable%: {share:.4f}\n"
    )


def test_a_model_that_lost_its_patched_blocks_can_be_unpatched() -> None:
    model = timm_vit("vit_small_patch14_reg4_dinov2")
    fastht.patch(model, fastht.HTConfig(layers=[-1]))
    model.prune_intermediate_layers([0])
    with pytest.raises(fastht.NotPatchedError, match="has no HT adapters"):
        fastht.adapters(model)
    with pytest.raises(ValueError, match=r"blocks with its HT adapters were taken out.*unpatch"):
        fastht.patch(model)
    fastht.unpatch(model)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    fastht.patch(model)
    assert list(fastht.adapters(model)) == [0]


def test_a_block_without_parameters_has_an_adapter_too() -> None:
    model = timm_vit("vit_small_patch14_reg4_dinov2").double()
    model.blocks[0] = nn.Identity()
    image = VITS["registers"].image().double()
    base = _output(model, image)
    fastht.patch(model)
    assert {p.dtype for p in fastht.adapter_parameters(model)} == {torch.float64}
    assert torch.equal(_output(model, image), base)
    randomize(fastht.adapters(model)[0].parameters())
    assert not torch.allclose(_output(model, image), base, atol=1e-3)


def test_a_shallow_copy_shares_its_adapters(tower: nn.Module) -> None:
    fastht.patch(tower)
    fastht.unpatch(copy.copy(tower))  # which has the same blocks
    fastht.unpatch(tower)
    assert all(p.requires_grad for p in tower.parameters())
    with pytest.raises(fastht.NotPatchedError):
        fastht.unpatch(tower)


def test_one_block_in_several_places_is_refused(tower: nn.Module) -> None:
    own = tower.transformer.resblocks[1]
    tower.transformer.resblocks[1] = tower.transformer.resblocks[0]
    before = snapshot(tower)
    with pytest.raises(fastht.UnsupportedModelError, match=r"blocks \[0, 1\] are one module"):
        fastht.patch(tower)
    assert snapshot(tower) == before
    tower.transformer.resblocks[1] = own
    fastht.patch(tower)
    tower.transformer.resblocks[1] = tower.transformer.resblocks[0]
    fastht.unpatch(tower)
    assert not any(".ht." in name for name in tower.state_dict())
    assert all(p.requires_grad for p in tower.parameters())


def test_adapters_made_in_inference_mode_train(tower: nn.Module) -> None:
    with torch.inference_mode():
        fastht.patch(tower)
    assert not any(p.is_inference() for p in fastht.adapter_parameters(tower))
    loss(tower(VITS["openai"].image())).backward()
    assert all(p.grad is not None for p in fastht.adapter_parameters(tower))


def test_a_base_made_in_inference_mode_serves_and_comes_back() -> None:
    with torch.inference_mode():
        tower = openai_tower()
    flags = [p.requires_grad for p in tower.parameters()]
    with torch.inference_mode():
        base = tower(IMAGE)
    with pytest.raises(ValueError, match=r"'ln_post'.*inference_mode and cannot train"):
        fastht.patch(tower, modules_to_save=["ln_post"])
    fastht.patch(tower)
    randomize(fastht.adapter_parameters(tower))
    with torch.inference_mode():
        assert not torch.allclose(tower(IMAGE), base, atol=1e-3)
    fastht.unpatch(tower)
    assert [p.requires_grad for p in tower.parameters()] == flags
    with torch.inference_mode():
        assert torch.equal(tower(IMAGE), base)
