"""Which samples make up which batch: the same for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class GlobalBatchSampler(Sampler[list[int]]):
    """Shuffle by seed and epoch, cut into global batches, yield this process's share of each.

    The order depends on nothing but ``seed`` and ``epoch``, so several processes together see the
    batches that one process would see, and a resumed run those of an uninterrupted one. The last,
    incomplete batch of an epoch is left out: its contrast would be weaker.

    Args:
        num_samples: size of the data set.
        batch_size: samples a global batch, over all processes.
        seed: decides the order together with the epoch.
        rank: this process.
        world_size: number of processes; must divide ``batch_size``.

    Raises:
        ValueError: the batch is larger than the data set or not a multiple of ``world_size``.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
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
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        share = self.batch_size // self.world_size
        for batch in range(self.first_batch, len(self)):
            start = batch * self.batch_size + self.rank * share
            yield order[start : start + share]
