"""Numbers drawn from a seed of their own, while everybody else's draws stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw what is drawn on the CPU inside the context from ``seed``; afterwards all is as before.

    Generators of GPUs are left alone: ``torch.manual_seed`` would set them all to this seed, and
    dropout in a run's processes would no longer be the run's, nor differ between them.

    Args:
        seed: any integer that ``torch.Generator.manual_seed`` takes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
