"""Which samples of a batch are positives of each other, and what that leaves of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fastht.data import DataError, Record
from fastht.losses import mean_log_positives

Positives = Literal["caption", "label", "patient", "none"]


def positive_keys(records: Sequence[Record], positives: Positives) -> Tensor | None:
    """Number what samples have in common: ``[n]``, -1 where a sample has none of it.

    Returns:
        ``None`` where each sample is its own positive alone.

    Raises:
        DataError: no sample has what positives are to have in common.
    """
    if positives == "none":
        return None
    values = [getattr(record, positives) for record in records]
    numbers = {value: i for i, value in enumerate(dict.fromkeys(values)) if value is not None}
    if not numbers:
        raise DataError(
            f"--positives {positives}: no sample has a {positives}; add a column {positives!r}, or "
            "choose --positives caption"
        )
    return torch.tensor([numbers.get(value, -1) for value in values])


def loss_floor(keys: Tensor, batch_size: int) -> float:
    """Return below which no cross-entropy over these batches can fall, in nats.

    Args:
        keys: ``[n]``, of samples in the order of their batches.
        batch_size: of all batches but the last.
    """
    batches = keys.split(batch_size)
    return sum(mean_log_positives(batch).item() * len(batch) for batch in batches) / len(keys)


def describe_positives(keys: Tensor, positives: Positives) -> str:
    """Return a sentence about how many training samples have positives beside their own."""
    known = keys[keys >= 0]
    shared = int((known.bincount()[known] > 1).sum())
    without = f"; {len(keys) - len(known)} have none" if len(known) < len(keys) else ""
    return (
        f"Samples of one {positives} are positives of each other: {shared} of {len(keys)} training "
        f"samples share theirs with others{without}."
    )
