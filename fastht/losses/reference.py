"""The losses in plain PyTorch, with the B x B matrices: the definition of correct.

Autograd makes the gradients, of any order. Products are in the features' dtype, all else in
float32, or float64 for float64 features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastht.losses.sweeps import COLUMNS, ROWS, Form, Operands, positives, sum_dtype, targets
from fastht.losses.terms import Weights


def losses(form: Form, operands: Operands, weights: Weights) -> Tensor:
    """Return ``[2]``: the contrastive and the soft-label loss of B images and B texts."""
    dtype = sum_dtype(operands.rows.dtype)
    c = (operands.rows @ operands.columns.T).to(dtype)
    positive = positives(form, operands)
    contrastive, soft = c.new_zeros(()), c.new_zeros(())
    if form.softmax:
        z = operands.scale * c
        wanted = positive.to(dtype)
        sides = [
            F.cross_entropy(logits, p / p.sum(1, keepdim=True))
            for d, logits, p in ((ROWS, z, wanted), (COLUMNS, z.T, wanted.T))
            if form.softmax & d
        ]
        contrastive = weights.softmax * torch.stack(sides).mean()
    if form.sigmoid:
        z = operands.scale * c + (0.0 if operands.bias is None else operands.bias)
        signed = torch.where(positive, z, -z)
        contrastive = contrastive - weights.sigmoid * F.logsigmoid(signed).sum() / len(c)
    if form.soft:
        t = targets(form, operands, positive)
        if form.mse:
            soft = soft + weights.mse * F.mse_loss(c, t)
        sides = [
            F.kl_div(
                F.log_softmax(logits / operands.temperature, 1),
                F.log_softmax(wanted / operands.temperature, 1),
                reduction="batchmean",
                log_target=True,
            )
            for d, logits, wanted in ((ROWS, c, t), (COLUMNS, c.T, t.T))
            if form.kl & d
        ]
        if sides:
            soft = soft + weights.kl * torch.stack(sides).mean()
    return torch.stack([contrastive, soft])
