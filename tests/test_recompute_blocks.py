"""Activations computed again in some blocks: which ones, the same bits, on a line in memory."""

import copy
import itertools

import pytest
import torch
from vits import VITS, loss, open_clip_tower, timm_vit

import fastht
from fastht.backbones import find_backbone
from fastht.lora import add_lora
from fastht.patch import patch_record, set_recompute
from fastht.recompute import install, reinstall, remove
from fastht.saved_bytes import saved_bytes

pytest.importorskip("peft")

CONFIG = fastht.HTConfig(dropout=0.3, init="paper", bottleneck_dim=8)
DEPTH = 5


def clip(config=CONFIG, **options):
    torch.manual_seed(1)
    return fastht.patch(open_clip_tower(layers=DEPTH), config, **options).train()


def timm(config=CONFIG, **options):
    torch.manual_seed(1)
    return fastht.patch(timm_vit("vit_base_patch16_siglip_224", depth=DEPTH), config, **options)


def lora():
    torch.manual_seed(1)
    model = timm_vit("vit_base_patch16_siglip_224", depth=DEPTH)
    add_lora(model, 2, zeros=False)
    return model.train()


MODELS = {"clip": clip, "timm": timm, "lora": lora}
IMAGE = VITS["native"].image()


def features(model):
    found = model(IMAGE)
    return found[0] if isinstance(found, tuple) else found


def gradients(model):
    torch.manual_seed(5)
    value = loss(features(model))
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(value, parameters, allow_unused=True)


def kept(model):
    alive = [*model.parameters(), *model.buffers(), IMAGE]
    return saved_bytes(lambda: loss(features(model)), alive)


def computing(model):
    """Indices of the blocks that compute again, whole or in part."""
    blocks = find_backbone(model).blocks
    return [i for i, b in enumerate(blocks) if any("forward" in vars(m) for m in b.modules())]


@pytest.mark.parametrize("what", ["mlp", "block"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_and_each_block_spares_as_much(name, what):
    model = MODELS[name]()
    recorded = DEPTH if name == "lora" else DEPTH - 1  # nothing trains before the first adapter
    expected = gradients(model)
    sizes = [kept(model)]
    for number in range(1, DEPTH + 1):
        set_recompute(model, f"{what}:{number}")
        sizes.append(kept(model))
        for a, b in zip(gradients(model), expected, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    set_recompute(model, what)
    assert kept(model) == sizes[-1]
    spared = [a - b for a, b in itertools.pairwise(sizes)]
    # The first block of LoRA's has attention of which less is kept, as nothing trains before it.
    assert 0 < spared[0] <= spared[1]
    assert spared[1:recorded] == (recorded - 1) * [spared[1]]
    assert spared[recorded:] == (DEPTH - recorded) * [0]
    set_recompute(model, "none")
    assert (kept(model), computing(model)) == (sizes[0], [])


def test_they_are_the_first_of_which_anything_is_kept():
    assert computing(clip(recompute="mlp:2")) == [1, 2]
    assert computing(clip(recompute="block:5")) == [0, 1, 2, 3, 4]
    later = fastht.HTConfig(bottleneck_dim=8, layers=[2, -1])
    assert computing(clip(later, recompute="block:1")) == [3]
    assert computing(clip(later, recompute="block:3")) == [2, 3, 4]  # as many as asked for
    model = lora()
    set_recompute(model, "mlp:2")
    assert computing(model) == [0, 1]  # its attention keeps something in front of that MLP
    # Trained parts of the base count too.
    model = clip(later)
    find_backbone(model).blocks[1].requires_grad_(True)
    set_recompute(model, "mlp:2")
    assert computing(model) == [1, 2]


def test_the_setting_is_kept_changed_and_undone():
    model = clip(recompute="block:2")
    assert patch_record(model).recompute == "block:2"
    assert fastht.patch(model, CONFIG, recompute="block:2") is model
    with pytest.raises(ValueError, match=r"recompute='block:2'\); call fastht.unpatch first"):
        fastht.patch(model, CONFIG, recompute="block")
    set_recompute(model, "mlp:1")
    assert (patch_record(model).recompute, computing(model)) == ("mlp:1", [1])
    other = copy.deepcopy(model)
    fastht.unpatch(model)
    base = open_clip_tower(layers=DEPTH)
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in base.modules()]
    assert not any(m._forward_hooks for m in model.modules())
    assert computing(other) == [1]


NONE = ("mlp:0", "mlp:-1", "mlp:06", "mlp: 6", "mlp:1.5", "none:2", "mlp:", 2, None)


@pytest.mark.parametrize(
    ("recompute", "message"),
    [
        *((text, "choose one of 'none', 'mlp', 'block', or for some blocks al") for text in NONE),
        ("block:6", r"'block:6', and the tower has 5 blocks; give at most so many, or 'block' for"),
    ],
)
def test_what_is_no_number_of_blocks_is_refused(recompute, message):
    model = open_clip_tower(layers=DEPTH)
    with pytest.raises(ValueError, match=message):
        fastht.patch(model, recompute=recompute)
    assert not any(isinstance(m, fastht.HTAdapter) for m in model.modules())
    fastht.patch(model, recompute="mlp:1")
    with pytest.raises(ValueError, match=message):
        set_recompute(model, recompute)
    assert (patch_record(model).recompute, computing(model)) == ("none", [])


def peak(model):
    """Bytes by which what is allocated grows to its most in a step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        value = loss(features(model))
        torch.autograd.grad(value, parameters, allow_unused=True)
    events = profile.profiler.kineto_results.events()
    most = held = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("what", ["mlp", "block"])
def test_the_first_blocks_lower_the_peak_and_the_last_one_does_not(what):
    model = lora()
    blocks = find_backbone(model).blocks
    random = torch.get_rng_state().nbytes  # of each checkpoint, beside what autograd keeps
    most, all_kept = peak(model), kept(model)
    for number in (3, DEPTH - 1):
        reinstall(blocks, f"{what}:{number}")
        assert most - peak(model) == all_kept - kept(model) - number * random > 0
    # The backward pass begins with the last block, which makes what it spares at once.
    without = peak(model)
    reinstall(blocks, what)
    assert peak(model) == without + random
    # So does the last one of three last blocks, and their peak is higher than of the first.
    remove(blocks)
    install(blocks[2:], what)
    spared = all_kept - kept(model)
    assert most - peak(model) == spared - spared // 3 - 3 * random
