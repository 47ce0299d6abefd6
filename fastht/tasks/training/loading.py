"""Batches of a data set, read by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fastht.data import DataError


def make_loader(data: Dataset[Any], *, workers: int, **options: Any) -> DataLoader[Any]:
    """Return a loader that draws nothing from the global random number generator.

    Starting workers would otherwise draw from the generator that dropout uses, so that a run
    resumed within an epoch went on with other numbers.
    """
    return DataLoader(data, num_workers=workers, generator=torch.Generator(), **options)


def read_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield a loader's batches.

    Raises:
        DataError: a sample cannot be read; in its own words, which PyTorch buries in the worker's
            traceback.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except DataError as error:
            raise DataError(str(error).rpartition(f"{DataError.__name__}: ")[2].strip()) from error
        yield batch
