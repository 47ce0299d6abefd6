"""What blocks put out: every library's own way and the hooks agree, adapters are seen."""

import pytest
import torch
from tiny_towers import images, randomize, tiny_tower
from vits import MORE_VITS, VITS

import fastht
from fastht.backbones import find_backbone
from fastht.tasks.models.features import BlockFeatures


@pytest.fixture(params=VITS)
def vit(request):
    return VITS[request.param]


def kept_by_hooks(vit, model, pixels):
    """Return the maps of all blocks in a whole forward pass, reshaped by hand."""
    backbone = find_backbone(model)
    kept, grids, handles = [], [], []

    def keep(module, inputs, output):
        kept.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for block in backbone.blocks]
    projection = backbone.patch_projection
    handles.append(projection.register_forward_hook(lambda m, i, out: grids.append(out.shape[2:])))
    vit.features(model, pixels)
    for handle in handles:
        handle.remove()
    if backbone.sequence_first:
        kept = [tokens.transpose(0, 1) for tokens in kept]
    patches = [tokens[:, backbone.num_prefix_tokens :] for tokens in kept]
    return [p.transpose(1, 2).unflatten(2, grids[0]) for p in patches]


@pytest.mark.parametrize("patched", [False, True])
@torch.no_grad()
def test_maps_are_what_the_blocks_put_out(vit, patched):
    model = vit.build()
    if patched:
        fastht.patch(model, fastht.HTConfig(bottleneck_dim=16), backend="reference").eval()
        randomize(fastht.adapter_parameters(model))
    pixels = vit.image()
    expected = kept_by_hooks(vit, model, pixels)
    blocks = tuple(reversed(range(len(expected))))
    found = BlockFeatures(model, blocks)(pixels)
    for index, features in zip(blocks, found, strict=True):
        torch.testing.assert_close(features, expected[index])


@torch.no_grad()
def test_blocks_after_the_deepest_do_not_run(vit):
    model = vit.build()

    def never(*_):
        raise AssertionError("a block after the deepest one ran")

    find_backbone(model).blocks[1].register_forward_hook(never)
    (found,) = BlockFeatures(model, blocks=(0,))(vit.image())
    assert found.isfinite().all()


def test_a_tower_of_no_library_is_read_by_hooks_and_left_as_it_was():
    model = tiny_tower(depth=3)
    before = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    found = BlockFeatures(model, blocks=(1,))(images((3, 4)))
    assert [tuple(m.shape) for m in found] == [(2, 12, 3, 4)]
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == before


def test_gradients_reach_every_adapter_up_to_the_deepest_block():
    model = tiny_tower(depth=4)
    config = fastht.HTConfig(bottleneck_dim=16, init="paper", layers=[0, 1, 2])
    fastht.patch(model, config, backend="reference")
    features = BlockFeatures(model, blocks=(0, 2))
    assert features.deepest == 2
    sum(m.square().sum() for m in features(images((3, 4)))).backward()
    assert all(p.grad is not None for p in fastht.adapter_parameters(model))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [((), "at least one"), ((1, 1), "each once"), ((4,), "4 blocks are 0 to 3"), ((-1,), "-1")],
)
def test_blocks_that_the_tower_does_not_have(blocks, message):
    with pytest.raises(ValueError, match=message):
        BlockFeatures(tiny_tower(depth=4), blocks)


def test_a_tower_that_takes_patches_is_refused():
    with pytest.raises(fastht.UnsupportedModelError, match="takes patches that are cut out"):
        BlockFeatures(MORE_VITS["transformers-siglip2"].build())
