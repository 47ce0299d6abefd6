"""The order of samples: a function of seed and epoch alone, however it is shared out."""

import pytest

from fastht.tasks.training.sampler import GlobalBatchSampler


def batches(epoch=0, first_batch=0, **options):
    sampler = GlobalBatchSampler(**({"num_samples": 22, "batch_size": 4, "seed": 3} | options))
    sampler.set_position(epoch, first_batch)
    return list(sampler)


def test_an_epoch_is_a_permutation_cut_into_whole_batches():
    seen = [i for batch in batches() for i in batch]
    assert len(seen) == 20  # 22 samples make 5 batches of 4; the rest waits for another epoch
    assert len(set(seen)) == 20
    assert set(seen) <= set(range(22))
    assert seen != sorted(seen)


def test_the_order_changes_with_epoch_and_seed_and_with_nothing_else():
    assert batches(epoch=1) == batches(epoch=1)
    assert batches(epoch=1) != batches(epoch=0)
    assert batches(seed=4) != batches()


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(world_size):
    shares = [batches(rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [[i for part in parts for i in part] for parts in zip(*shares, strict=True)]
    assert joined == batches()


def test_a_position_within_the_epoch_goes_on_where_it_was():
    assert batches(epoch=2, first_batch=3) == batches(epoch=2)[3:]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiple of the 3 processes"):
        batches(world_size=3)
    with pytest.raises(ValueError, match="22 training samples"):
        batches(batch_size=23)
