"""Which samples make up which batch: the same for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

Alike = Callable[[int], Tensor]
"""Numbers of the samples in an epoch, int64 ``[n]``: equal for samples that are to be parted."""


class GlobalBatchSampler(Sampler[list[int]]):
    """Shuffle by seed and epoch, cut into global batches, yield this process's share of each.

    The order depends on nothing but ``seed``, ``epoch`` and what is alike in it, so several
    processes together see the batches that one process would see, and a resumed run those of an
    uninterrupted one. The last, incomplete batch of an epoch is left out: its contrast would be
    weaker.

    Args:
        num_samples: size of the data set.
        batch_size: samples a global batch, over all processes.
        seed: decides the order together with the epoch.
        rank: this process.
        world_size: number of processes; must divide ``batch_size``.
        alike: samples of equal numbers are spread over the batches of an epoch as evenly as can
            be, so that as few pairs of them as possible meet in one. Where no two are equal,
            nothing changes. Default: none are.

    Raises:
        ValueError: the batch is larger than the data set or not a multiple of ``world_size``.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        alike: Alike | None = None,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(
                f"the batch size {batch_size} is not a multiple of the {world_size} processes"
            )
        if batch_size > num_samples:
            raise ValueError(
                f"the batch size {batch_size} is larger than the {num_samples} training samples; "
                "give a smaller --batch-size"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.alike = alike
        self.epoch = 0
        self.first_batch = 0

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch, and the batch in it, that the next iteration starts from."""
        self.epoch = epoch
        self.first_batch = first_batch

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        return self.num_samples // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's sample indexes of each remaining batch of the epoch."""
        share = self.batch_size // self.world_size
        first = self.rank * share
        batches = self.batches(self.epoch)[self.first_batch :, first : first + share]
        yield from batches.tolist()

    def batches(self, epoch: int, spread: bool = True) -> Tensor:
        """Return the samples of an epoch's global batches, int64 ``[batches, batch_size]``.

        Args:
            epoch: which.
            spread: ``False``: as if nothing was alike.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_samples, generator=generator)
        shape = (len(self), self.batch_size)
        chosen = order[: shape[0] * shape[1]]
        if not spread or self.alike is None:
            return chosen.view(shape)
        numbers = self.alike(epoch)
        if len(numbers.unique()) == len(numbers):
            return chosen.view(shape)
        # Cards sorted by what is alike and dealt round: each batch gets its even share of each.
        _, numbers = numbers.unique(return_inverse=True)
        places = torch.randperm(int(numbers.max()) + 1, generator=generator)
        dealt = chosen[places[numbers[chosen]].argsort(stable=True)].view(shape[::-1]).T
        dealt = dealt[torch.randperm(shape[0], generator=generator)]
        # Within a batch at random: processes take parts of it.
        return dealt.gather(1, torch.rand(shape, generator=generator).argsort(dim=1))


def mean_multiplicity(batches: Tensor, numbers: Tensor) -> float:
    """Return how many samples of its batch, itself among them, a sample is alike, on average.

    Args:
        batches: samples, int64 ``[batches, batch_size]``.
        numbers: of all samples, int64 ``[n]``; equal where samples are alike.
    """
    keys = numbers[batches]
    places = torch.arange(len(batches))[:, None] * (int(numbers.max()) + 1) + keys
    counts = places.flatten().unique(return_counts=True)[1].double()
    return float((counts.square().sum() / counts.sum()).item())
