"""Images through a tower by shares of processes; those of a frozen tower once, and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from fastht.tasks.models.dual import Tower
from fastht.tasks.training.loading import make_loader, read_batches
from fastht.tasks.training.progress import ProgressBar


class PooledImages(Dataset[dict[str, Any]]):
    """What a frozen tower makes of the images of a data set, in their place.

    An item is ``{"image": [d], "index": position}``.

    Args:
        data: of the images.
        pooled: ``[n, d]``, on the CPU.
    """

    def __init__(self, data: Any, pooled: Tensor) -> None:
        self.data = data
        self.pooled = pooled

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.pooled[i], "index": i}

    def file(self, i: int) -> str:
        """Name of the image at position i, for messages."""
        name: str = self.data.file(i)
        return name


def pool_images(
    tower: Tower,
    data: Any,
    accelerator: Accelerator,
    *,
    batch_size: int,
    workers: int,
    fill: bool,
    title: str,
) -> PooledImages:
    """Run the images of a data set through a frozen tower, each process a share.

    Args:
        tower: whose pooled vectors are kept.
        data: items are mappings with an ``"image"``.
        accelerator: the processes and the precision.
        batch_size: images at a time in each process. In batches of the size that they would have
            otherwise, a library computes them alike.
        workers: processes that load images.
        fill: fill the last batch up by copies, as no batch of training is smaller.
        title: of the progress.
    """
    loader = share_loader(data, accelerator, batch_size=batch_size, workers=workers, fill=fill)
    tower.tower.eval()
    found = encode_shares(loader, len(data), tower.pool, accelerator, title)
    return PooledImages(data, found)


def share_loader(
    data: Any, accelerator: Accelerator, *, batch_size: int, workers: int, fill: bool = False
) -> DataLoader[Any]:
    """Return a loader of this process's share of a data set, in order; shares are equally large.

    The last share is filled up with copies, and each up to whole batches if ``fill`` says so.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    share = -(-len(data) // world)
    if fill:
        share = -(-share // batch_size) * batch_size
    indices = [min(i, len(data) - 1) for i in range(rank * share, (rank + 1) * share)]
    return make_loader(Subset(data, indices), workers=workers, batch_size=batch_size)


@torch.no_grad()
def encode_shares(
    loader: DataLoader[Any],
    total: int,
    encode: Callable[[Tensor], Tensor],
    accelerator: Accelerator,
    title: str,
) -> Tensor:
    """Return what becomes of the images of :func:`share_loader`, ``[total, ...]`` on the CPU.

    Args:
        loader: of this process's share.
        total: images of all shares, without the copies.
        encode: images on the device -> a row each.
        accelerator: the processes and the precision.
        title: of the progress.
    """
    parts = []
    for batch in ProgressBar(
        read_batches(loader), total=len(loader), title=title, shown=accelerator.is_main_process
    ):
        with accelerator.autocast():
            parts.append(encode(batch["image"].to(accelerator.device)).float())
    gathered: Tensor = accelerator.gather(torch.cat(parts))
    return gathered[:total].cpu()
