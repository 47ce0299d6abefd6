"""The modules stand where open_clip's stand: the same values, gradients, arguments and results."""

import inspect
import math

import pytest
import torch
from loss_cases import make_batch

from fastht.losses import ClipLoss, SigLipLoss, SoftLabels, clip_loss, mean_log_positives

open_clip_loss = pytest.importorskip("open_clip.loss")

PAIRS = [(ClipLoss, open_clip_loss.ClipLoss), (SigLipLoss, open_clip_loss.SigLipLoss)]
IDS = ["clip", "siglip"]


def run(module, batch, **options):
    leaves = [
        x.clone().requires_grad_() for x in (batch.images, batch.texts, batch.scale, batch.bias)
    ]
    result = module(*leaves, **options)
    loss = sum(result.values()) if isinstance(result, dict) else result
    return result, [loss, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
@pytest.mark.parametrize("output_dict", [False, True])
def test_values_gradients_and_results_are_open_clips(ours, theirs, output_dict):
    batch = make_batch(29)
    found, numbers = run(ours(), batch, output_dict=output_dict)
    expected, wanted = run(theirs(), batch, output_dict=output_dict)
    for a, b in zip(numbers, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    if output_dict:
        assert found.keys() == expected.keys() == {"contrastive_loss"}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=IDS)
def test_they_take_open_clips_arguments_in_their_order(ours, theirs):
    for name in ("__init__", "forward"):
        mine, other = (inspect.signature(getattr(x, name)).parameters for x in (ours, theirs))
        assert list(mine)[: len(other)] == list(other)
        for parameter in other:
            if parameter != "logit_bias":  # SigLipLoss's has no default
                assert mine[parameter].default == other[parameter].default


@pytest.mark.parametrize("module", [ClipLoss, SigLipLoss])
def test_soft_labels_are_a_second_entry_of_the_result(module):
    batch = make_batch(20)
    loss = module(soft_labels=SoftLabels())
    arguments = (batch.images, batch.texts, batch.scale, batch.bias)
    named = loss(*arguments, output_dict=True, soft_targets=batch.soft("ignore"))
    assert named.keys() == {"contrastive_loss", "soft_label_loss"}
    torch.testing.assert_close(named["contrastive_loss"], module()(*arguments))
    assert named["soft_label_loss"] > 0.01
    whole = loss(*arguments, soft_targets=batch.soft("ignore"))
    torch.testing.assert_close(whole, sum(named.values()))
    with pytest.raises(ValueError, match="one is missing"):
        loss(*arguments)
    with pytest.raises(ValueError, match="one is missing"):
        module()(*arguments, soft_targets=batch.soft("ignore"))


def test_the_floor_of_several_positives_is_reached_and_not_undercut():
    keys = torch.tensor([0, 0, 0, 1, 1, 2, -1, -1])
    floor = mean_log_positives(keys)  # negative keys are alone, as in the losses
    assert floor.item() == pytest.approx(
        (3 * torch.tensor(3.0).log() + 2 * torch.tensor(2.0).log()) / 8
    )
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4])
    features = torch.eye(5, dtype=torch.float64)[groups]
    reached = clip_loss(features, features, 60.0, keys=keys)
    assert reached.item() == pytest.approx(floor.item(), abs=1e-12)
    assert clip_loss(features, features.flip(1), 60.0, keys=keys) > floor + 1


@pytest.mark.parametrize("fold", [1, 2, 5])
def test_the_floor_of_captions_that_are_there_m_times_is_ln_m(fold):
    keys = torch.arange(4).repeat(fold)
    features = torch.eye(4, dtype=torch.float64)[keys]
    reached = clip_loss(features, features, 60.0, keys=keys)
    assert reached.item() == pytest.approx(math.log(fold), abs=1e-12)


@pytest.mark.parametrize("keys", [torch.full((12,), -1), torch.arange(12).flip(0)])
def test_keys_that_all_differ_are_plain_infonce(keys):
    """So are negative ones, which have no positive but their own."""
    batch = make_batch(12)
    plain, found = (clip_loss(batch.images, batch.texts, 9.0, keys=k) for k in (None, keys))
    torch.testing.assert_close(plain, found)
    twins = clip_loss(batch.images, batch.texts, 9.0, keys=keys.clamp_min(0) // 2)
    assert abs(twins - plain) > 0.01


def test_horovod_unknown_ways_and_ranks_are_refused():
    with pytest.raises(ValueError, match="horovod"):
        ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="dist_impl is 'ring'"):
        SigLipLoss(dist_impl="ring")
    with pytest.raises(ValueError, match="rank is 2 of 2"):
        ClipLoss(rank=2, world_size=2)
    with pytest.raises(ValueError, match="no backend 'fast'"):
        ClipLoss(backend="fast")
    batch = make_batch(4)
    with pytest.raises(ValueError, match="not initialised"):
        ClipLoss(world_size=2)(batch.images, batch.texts, batch.scale)
