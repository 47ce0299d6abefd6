"""How sharp soft targets are: what a softmax of them leaves on the diagonal, and its entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from fastht.losses.targets import SoftTargets, factors

_ROWS = 1024  # at a time, so that no B x B matrix is made


def target_sharpness(
    targets: SoftTargets, temperature: float, keys: Tensor | None = None
) -> tuple[float, float]:
    """Return what the KL term's targets are like: close to hard labels, or spread over a batch.

    Targets are ``softmax(T / temperature)`` along rows, with ``T_ii = 1`` as in the loss. Where the
    mean mass on the diagonal is close to 1, they are hard labels under another name.

    Args:
        targets: of B samples.
        temperature: as the loss has it.
        keys: ``[B]``; samples of equal keys, other than negative ones, have a target of 1.

    Returns:
        The mean mass on the diagonal, from 1 / B to 1, and the mean entropy in nats, from 0 to
        log B.
    """
    q, p, u, w = factors(targets.rows, targets.columns, targets.table, torch.float64)
    if q is None or p is None:
        raise ValueError("there are no soft targets")
    mass = q.new_zeros(())
    entropy = q.new_zeros(())
    for rows in torch.arange(len(q), device=q.device).split(_ROWS):
        t = q[rows] @ p.T
        if u is not None and w is not None:
            shares = u[rows] @ w.T
            t = torch.where(shares > 0, t / shares, 0.0)
        own = rows[:, None] == torch.arange(len(q), device=q.device)
        if keys is not None:
            own = own | ((keys[rows, None] == keys) & (keys >= 0))
        log_p = torch.where(own, 1.0, t).div(temperature).log_softmax(dim=1)
        mass += log_p[torch.arange(len(rows)), rows].exp().sum()
        entropy -= (log_p.exp() * log_p).sum()
    return mass.item() / len(q), entropy.item() / len(q)
