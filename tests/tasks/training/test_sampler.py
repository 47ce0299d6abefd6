"""The order of samples: a function of seed and epoch alone, however it is shared out."""

from collections import Counter

import pytest
import torch

from fastht.tasks.training.sampler import GlobalBatchSampler, mean_multiplicity


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


# Samples that are alike: 640, of which 40 or 20 have one caption.

COUNTS = [40, 40, *[20] * 20, *[1] * 160]
ALIKE = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
ALIKE = ALIKE[torch.randperm(len(ALIKE), generator=torch.Generator().manual_seed(1))]
MANY = {"num_samples": 640, "batch_size": 32, "alike": lambda epoch: ALIKE}


def equal_pairs(found):
    """Pairs of alike samples that meet in a batch."""
    counts = (Counter(ALIKE[batch].tolist()).values() for batch in found)
    return sum(n * (n - 1) // 2 for of_batch in counts for n in of_batch)


def fewest_pairs(numbers, count):
    """As few as can be: each caption's samples in even shares of the batches."""
    pairs = 0
    for n in Counter(numbers.tolist()).values():
        low, more = divmod(n, count)
        pairs += more * (low + 1) * low // 2 + (count - more) * low * (low - 1) // 2
    return pairs


def test_alike_samples_meet_as_rarely_as_can_be():
    found = batches(**MANY)
    assert sorted(i for batch in found for i in batch) == list(range(640))  # each once
    assert equal_pairs(found) == fewest_pairs(ALIKE, 20) > 0
    # Shuffled, they meet more than three times as often.
    assert equal_pairs(batches(**MANY | {"alike": None})) > 3 * equal_pairs(found)
    assert batches(epoch=1, **MANY) != found != batches(**MANY | {"seed": 4})


def test_a_batch_too_few_leaves_out_samples_at_random_and_spreads_the_rest():
    options = MANY | {"batch_size": 50}  # 12 batches of 640 samples
    first, second = (batches(epoch=epoch, **options) for epoch in (0, 1))
    seen = [sorted(i for batch in found for i in batch) for found in (first, second)]
    assert [len(set(indexes)) for indexes in seen] == [600, 600]
    assert seen[0] != seen[1]
    assert equal_pairs(first) == fewest_pairs(ALIKE[seen[0]], 12)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_batches_of_spread_samples_and_resume_within_an_epoch(world_size):
    shares = [batches(rank=rank, world_size=world_size, **MANY) for rank in range(world_size)]
    joined = [[i for part in parts for i in part] for parts in zip(*shares, strict=True)]
    assert joined == batches(**MANY)
    assert batches(epoch=2, first_batch=7, **MANY) == batches(epoch=2, **MANY)[7:]


def test_where_nothing_is_alike_the_order_is_that_of_shuffling():
    assert batches(alike=lambda epoch: torch.arange(22)) == batches()
    # What is alike may differ by epoch.
    alike = [torch.arange(22), torch.zeros(22, dtype=torch.int64)]
    assert batches(alike=alike.__getitem__) == batches()
    assert batches(epoch=1, alike=alike.__getitem__) != batches(epoch=1)


def test_the_mean_multiplicity_is_that_of_samples():
    numbers = torch.tensor([0, 0, 1, 0, 2, 3, 4, 4])
    found = torch.arange(8).view(2, 4)  # three alike and one; one, one and two alike
    assert mean_multiplicity(found, numbers) == pytest.approx((3 * 3 + 1 + 1 + 1 + 2 * 2) / 8)
    assert mean_multiplicity(found, torch.arange(8)) == 1
