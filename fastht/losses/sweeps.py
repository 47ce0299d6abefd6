"""What every backend computes: one forward and one backward sweep over the pairs of a rectangle.

Rows are images ``a_i``, columns are texts ``b_j``. With ``c_ij = a_i . b_j`` and the logits
``z_ij = scale * c_ij + bias``, every loss of this package is a sum of four terms over the pairs:

* softmax: cross-entropy of ``z`` along rows and/or columns (InfoNCE, one or several positives);
* sigmoid: ``softplus(-y_ij z_ij)``, ``y = 1`` at positives and ``-1`` elsewhere (SigLIP);
* kl: ``KL(softmax(T / temperature) || softmax(c / temperature))`` along rows and/or columns;
* mse: ``(c_ij - T_ij)^2``.

A pair is positive where the keys are equal, or, without keys, on the diagonal ``j = i + offset``.
The targets are ``T_ij = Q_i . P_j`` (over ``U_i . W_j``, and 0 where that is 0, with shares), and 1
at positives: hard labels, keys and soft labels are one description, and a kernel needs one sweep
each way with branches on :class:`Form` that are known when it is compiled.

The forward sweep leaves statistics of rows and columns, from which ``terms.py`` makes the loss and
the coefficients of the backward sweep; both are vectors, so that no backend divides, or knows of
batch sizes, weights, other processes or upstream gradients.

Two rules carry the precision. A softmax keeps its shift and its sum apart, never their logarithm in
one number: at ``scale = 100`` a rounded log-sum-exp alone costs 4e-6 of every probability. And on
the diagonal ``p_ii - 1`` is never formed: it is minus the sum of the others, which the forward
sweep keeps apart (``others``) and the caller hands back (``diagonal``), so that a pair that is
almost certain keeps all digits of its gradient. Logits have to come out of the backward sweep with
the bits that they had in the forward sweep (the same order of sums over E), as far as the hardware
lets them.

:func:`forward` and :func:`backward` here are the dense form: they hold the rectangle, and define
what the other backends compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS, COLUMNS, BOTH = 1, 2, 3  # directions, as flags


@dataclass(frozen=True)
class Form:
    """Which terms a sweep has; all of it is known when a kernel is compiled.

    Attributes:
        softmax: the directions of the softmax term: 0, ``ROWS``, ``COLUMNS`` or ``BOTH``.
        sigmoid: whether there is the sigmoid term; never together with softmax.
        kl: the directions of the KL term.
        mse: whether there is the squared error.
        keys: positives are pairs of equal keys; without, those on the diagonal.
        shares: targets are divided by a second product (``missing="ignore"``).
    """

    softmax: int = 0
    sigmoid: bool = False
    kl: int = 0
    mse: bool = False
    keys: bool = False
    shares: bool = False

    @property
    def soft(self) -> bool:
        """Whether there are targets T."""
        return bool(self.kl) or self.mse

    @property
    def logits(self) -> bool:
        """Whether there is a term of z, which depends on the scale."""
        return bool(self.softmax) or self.sigmoid


class Operands(NamedTuple):
    """What both sweeps read.

    Tensors of a side are contiguous; what a :class:`Form` does not use is ``None``.

    Attributes:
        rows: images a ``[R, E]``, bfloat16, float16, float32 or float64.
        columns: texts b ``[C, E]``, of the same dtype.
        scale: ``[]``, of the sums' dtype: float64 for float64 features, float32 otherwise.
        bias: ``[]``, of the sums' dtype; for the sigmoid term alone, since a softmax cancels it.
        offset: row i's own column is ``i + offset``; where there is none, it has none.
        row_keys: ``[R]`` int64.
        column_keys: ``[C]`` int64.
        row_factors: Q ``[R, V]``, of the sums' dtype; products of factors keep its precision.
        column_factors: P ``[C, V]``.
        row_shares: U ``[R, K]``, of the sums' dtype.
        column_shares: W ``[C, K]``.
        temperature: of the KL term.
    """

    rows: Tensor
    columns: Tensor
    scale: Tensor
    bias: Tensor | None = None
    offset: int = 0
    row_keys: Tensor | None = None
    column_keys: Tensor | None = None
    row_factors: Tensor | None = None
    column_factors: Tensor | None = None
    row_shares: Tensor | None = None
    column_shares: Tensor | None = None
    temperature: float = 1.0


class Statistics(NamedTuple):
    """What the forward sweep returns, in the sums' dtype; ``[k, 0]`` or ``[0]`` for absent terms.

    With ``e_ij = exp(scale * c_ij - shift)`` (no bias), ``w_ij = exp(T_ij / temperature - shift)``;
    a shift is any number from which neither the sums nor their largest terms are lost: the largest
    value of the row or column, or one number for many of them.

    Attributes:
        softmax_rows: ``[4, R]``: shift; others, the sum of e without the diagonal (with keys: of
            all); own, e on the diagonal (with keys: 0); dot, the sum of c over positives.
        softmax_columns: ``[4, C]``, the same down the columns of this rectangle.
        kl_rows: ``[5, R]``: shift and sum of ``exp(c / temperature - shift)``; shift and sum of w;
            the divergence of the row. From rounded sums it could not be told where it is small.
        kl_columns: ``[5, C]``.
        sigmoid: ``[R]``: sum of ``softplus(-y z)`` along the row.
        mse: ``[R]``: sum of ``(c - T)^2`` along the row.
    """

    softmax_rows: Tensor
    softmax_columns: Tensor
    kl_rows: Tensor
    kl_columns: Tensor
    sigmoid: Tensor
    mse: Tensor


class Coefficients(NamedTuple):
    """What the backward sweep multiplies with, in the sums' dtype.

    The derivative by ``z_ij`` is ``gain`` times ``dz``, the sum of

    * ``exp(scale * c_ij - shift_i) * weight_i - positive_ij * target_i``, and the same of column j;
      without keys this is ``diagonal_i`` instead on the diagonal (both directions together);
    * ``sigmoid_i * (-y_ij) * sigmoid(-y_ij z_ij)``;

    and the derivative by ``c_ij`` is ``gain`` times ``dc = scale * dz`` plus

    * ``mse_i * (c_ij - T_ij)``;
    * ``exp(c_ij / temperature - logit_shift_i) * logit_weight_i
      - exp(T_ij / temperature - target_shift_i) * target_weight_i``, and the same of column j.

    All but ``gain`` are of order one (times ``1 / sum``), so that ``dc`` may be rounded to float16
    before the gain, which holds ``1 / B``, the upstream gradient and the largest term's weight, is
    applied to its products.

    Attributes:
        gain: ``[]``.
        softmax_rows: ``[3, R]``: shift, weight, target (0 without keys).
        softmax_columns: ``[3, C]``.
        diagonal: ``[R]``, without keys.
        sigmoid: ``[R]``.
        mse: ``[R]``.
        kl_rows: ``[4, R]``: logit_shift, logit_weight, target_shift, target_weight.
        kl_columns: ``[4, C]``.
    """

    gain: Tensor
    softmax_rows: Tensor
    softmax_columns: Tensor
    diagonal: Tensor
    sigmoid: Tensor
    mse: Tensor
    kl_rows: Tensor
    kl_columns: Tensor


class Gradients(NamedTuple):
    """What the backward sweep returns, in the sums' dtype; what was not asked for is ``None``.

    Attributes:
        rows: ``[R, E]``: ``gain * dc @ columns``.
        columns: ``[C, E]``: ``gain * dc.T @ rows``.
        scale: ``[R]``: ``gain * sum_j dz_ij c_ij``; summed over rows, the gradient of the scale.
        bias: ``[R]``: ``gain * sum_j dz_ij``, of the sigmoid term.
    """

    rows: Tensor | None
    columns: Tensor | None
    scale: Tensor | None
    bias: Tensor | None


def sum_dtype(features: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over features of a dtype."""
    return torch.float64 if features == torch.float64 else torch.float32


def positives(form: Form, operands: Operands) -> Tensor:
    """Return which pairs are positive, ``[R, C]``."""
    if form.keys:
        assert operands.row_keys is not None
        assert operands.column_keys is not None
        return operands.row_keys[:, None] == operands.column_keys[None, :]
    r = torch.arange(len(operands.rows), device=operands.rows.device) + operands.offset
    return r[:, None] == torch.arange(len(operands.columns), device=operands.rows.device)[None, :]


def targets(form: Form, operands: Operands, positive: Tensor) -> Tensor:
    """Return the soft targets T, ``[R, C]``."""
    assert operands.row_factors is not None
    assert operands.column_factors is not None
    soft = operands.row_factors @ operands.column_factors.T
    if form.shares:
        assert operands.row_shares is not None
        assert operands.column_shares is not None
        share = operands.row_shares @ operands.column_shares.T
        soft = torch.where(share > 0, soft / share, torch.zeros_like(soft))
    return soft.masked_fill(positive, 1.0)


def forward(form: Form, operands: Operands) -> Statistics:
    """Return the statistics of a rectangle, the dense way."""
    dtype = sum_dtype(operands.rows.dtype)
    c = operands.rows.to(dtype) @ operands.columns.to(dtype).T
    positive = positives(form, operands)
    softmax, kl = [c.new_zeros(4, 0) for _ in range(2)], [c.new_zeros(5, 0) for _ in range(2)]
    sigmoid, mse = c.new_zeros(0), c.new_zeros(0)
    for direction, dim in ((ROWS, 1), (COLUMNS, 0)):
        if form.softmax & direction:
            softmax[1 - dim] = _softmax_statistics(c, operands.scale, positive, form.keys, dim)
    if form.sigmoid:
        z = operands.scale * c + (0 if operands.bias is None else operands.bias)
        sigmoid = -F.logsigmoid(torch.where(positive, z, -z)).sum(1)
    if form.soft:
        t = targets(form, operands, positive)
        if form.mse:
            mse = (c - t).square().sum(1)
        for direction, dim in ((ROWS, 1), (COLUMNS, 0)):
            if form.kl & direction:
                kl[1 - dim] = _kl_statistics(c, t, operands.temperature, dim)
    return Statistics(softmax[0], softmax[1], kl[0], kl[1], sigmoid, mse)


def _softmax_statistics(c: Tensor, scale: Tensor, positive: Tensor, keys: bool, dim: int) -> Tensor:
    z = scale * c
    shift = z.amax(dim)
    e = (z - shift.unsqueeze(dim)).exp()
    dot = c.masked_fill(~positive, 0.0).sum(dim)
    if keys:
        return torch.stack([shift, e.sum(dim), torch.zeros_like(shift), dot])
    own = e.masked_fill(~positive, 0.0).sum(dim)
    return torch.stack([shift, e.masked_fill(positive, 0.0).sum(dim), own, dot])


def _kl_statistics(c: Tensor, t: Tensor, temperature: float, dim: int) -> Tensor:
    logits, wanted = c / temperature, t / temperature
    logit_shift, target_shift = logits.amax(dim), wanted.amax(dim)
    w = (wanted - target_shift.unsqueeze(dim)).exp()
    logit_sum = (logits - logit_shift.unsqueeze(dim)).exp().sum(dim)
    log_p, log_q = wanted.log_softmax(dim), logits.log_softmax(dim)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim)
    return torch.stack([logit_shift, logit_sum, target_shift, w.sum(dim), divergence])


def backward(
    form: Form,
    operands: Operands,
    coefficients: Coefficients,
    need_rows: bool = True,
    need_columns: bool = True,
    need_scale: bool = True,
) -> Gradients:
    """Return the gradients of a rectangle, the dense way."""
    dtype = sum_dtype(operands.rows.dtype)
    a, b = operands.rows.to(dtype), operands.columns.to(dtype)
    c = a @ b.T
    positive = positives(form, operands)
    dz = _logit_derivative(form, operands, coefficients, c, positive)
    dc = operands.scale * dz
    if form.soft:
        t = targets(form, operands, positive)
        if form.mse:
            dc = dc + coefficients.mse[:, None] * (c - t)
        for direction, dim, k in (
            (ROWS, 1, coefficients.kl_rows),
            (COLUMNS, 0, coefficients.kl_columns),
        ):
            if form.kl & direction:
                logit_shift, logit_weight, target_shift, target_weight = k.unsqueeze(dim + 1)
                dc = dc + (c / operands.temperature - logit_shift).exp() * logit_weight
                dc = dc - (t / operands.temperature - target_shift).exp() * target_weight
    gain = coefficients.gain
    return Gradients(
        gain * (dc @ b) if need_rows else None,
        gain * (dc.T @ a) if need_columns else None,
        gain * (dz * c).sum(1) if need_scale else None,
        gain * dz.sum(1) if need_scale and form.sigmoid else None,
    )


def _logit_derivative(
    form: Form, operands: Operands, coefficients: Coefficients, c: Tensor, positive: Tensor
) -> Tensor:
    dz = torch.zeros_like(c)
    for direction, dim, k in (
        (ROWS, 1, coefficients.softmax_rows),
        (COLUMNS, 0, coefficients.softmax_columns),
    ):
        if form.softmax & direction:
            shift, weight, target = k.unsqueeze(dim + 1)
            dz = dz + (operands.scale * c - shift).exp() * weight - positive * target
    if form.softmax and not form.keys:
        dz = torch.where(positive, coefficients.diagonal[:, None], dz)
    if form.sigmoid:
        z = operands.scale * c + (0 if operands.bias is None else operands.bias)
        pull = torch.where(positive, -torch.sigmoid(-z), torch.sigmoid(z))
        dz = dz + coefficients.sigmoid[:, None] * pull
    return dz
