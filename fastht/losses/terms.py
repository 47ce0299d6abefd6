"""From a sweep's statistics to losses, and from upstream gradients to a sweep's coefficients.

Everything here is a vector as long as the batch, so it is in float64 where the device has it. Row
and column sides of a term look the same; a process that owns some of the rows has all the columns,
with statistics that were reduced over processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastht.losses.sweeps import COLUMNS, ROWS, Coefficients, Form, Statistics


@dataclass(frozen=True)
class Weights:
    """What each term counts in the loss; 0 where the form has none."""

    softmax: float = 0.0
    sigmoid: float = 0.0
    kl: float = 0.0
    mse: float = 0.0


class Share(NamedTuple):
    """Which part of the whole batch is this process's.

    Attributes:
        total: N, rows of all processes.
        first: the column of the first own row.
        rows: own rows R.
        processes: how many there are.
    """

    total: int
    first: int
    rows: int
    processes: int = 1

    @property
    def own(self) -> slice:
        """The columns that belong to own rows."""
        return slice(self.first, self.first + self.rows)


class Counts(NamedTuple):
    """How many positives each own row ``[R]`` and each column ``[N]`` has over all processes."""

    rows: Tensor
    columns: Tensor


def count_positives(keys: Tensor, share: Share) -> Counts:
    """Count positives from the keys of all columns, without waiting for a GPU."""
    ordered = keys.sort().values
    number = torch.searchsorted(ordered, keys, right=True) - torch.searchsorted(ordered, keys)
    return Counts(number[share.own], number)


def alone_where_negative(keys: Tensor) -> Tensor:
    """Return keys, ``[B]``, with negative ones replaced by keys that occur once."""
    places = torch.arange(keys.shape[0], device=keys.device)
    return torch.where(keys < 0, -1 - places, keys)


def mean_log_positives(keys: Tensor) -> Tensor:
    """Return the floor of a cross-entropy with several positives: the mean log of their number.

    Args:
        keys: ``[B]`` integers, as the losses take them: pairs of equal keys are positive, and a
            negative key is equal to none but its own sample.

    Returns:
        ``[]``, float64, in nats: 0 where no key occurs twice.
    """
    keys = alone_where_negative(keys)
    return count_positives(keys, Share(len(keys), 0, len(keys))).rows.double().log().mean()


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of vectors as long as the batch: float64, where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _wide(x: Tensor) -> Tensor:
    return x.to(wide_dtype(x))


def _softmax_losses(s: Tensor, scale: Tensor, count: Tensor | None) -> Tensor:
    """Return the cross-entropy of each row or column."""
    shift, others, own, dot = _wide(s)
    if count is not None:
        return shift + (others + own).log() - _wide(scale) * dot / count
    # Where the own pair leads, its logit cancels exactly, and what is left keeps all its digits.
    leads = own > others
    ratio = torch.where(leads, others / torch.where(leads, own, 1.0), 0.0)
    trailing = shift + (others + own).log() - _wide(scale) * dot
    return torch.where(leads, ratio.log1p(), trailing)


class Parts(NamedTuple):
    """Sums of a term's losses over own rows and own columns, ``[]`` each, before weights.

    ``kl`` and ``softmax`` are means over their directions; ``mse`` is divided by N.
    """

    softmax: Tensor
    sigmoid: Tensor
    kl: Tensor
    mse: Tensor


def own_parts(
    form: Form, statistics: Statistics, scale: Tensor, counts: Counts | None, share: Share
) -> Parts:
    """Return what own rows and columns add to the loss, from statistics over all processes."""

    def directed(directions: int, rows: list[Tensor], columns: list[Tensor]) -> Tensor:
        sums = [x.sum() for x in (*rows, *columns)]
        return torch.stack(sums).mean() if directions else zero

    zero = _wide(scale).new_zeros(())
    own = share.own
    row_count, column_count = (None, None) if counts is None else (counts.rows, counts.columns[own])
    softmax = directed(
        form.softmax,
        [_softmax_losses(statistics.softmax_rows, scale, row_count)] if form.softmax & ROWS else [],
        [_softmax_losses(statistics.softmax_columns[:, own], scale, column_count)]
        if form.softmax & COLUMNS
        else [],
    )
    kl = directed(
        form.kl,
        [_wide(statistics.kl_rows[4])] if form.kl & ROWS else [],
        [_wide(statistics.kl_columns[4, own])] if form.kl & COLUMNS else [],
    )
    sigmoid = _wide(statistics.sigmoid).sum() if form.sigmoid else zero
    mse = _wide(statistics.mse).sum() / share.total if form.mse else zero
    return Parts(softmax, sigmoid, kl, mse)


def weigh(parts: Parts, weights: Weights, rows: float) -> Tensor:
    """Return ``[2]``: the contrastive and the soft-label loss, sums divided by ``rows``."""

    def summed(*terms: tuple[float, Tensor]) -> Tensor:
        found = [weight * part for weight, part in terms if weight]
        return sum(found[1:], start=found[0]) if found else torch.zeros_like(parts.softmax)

    contrastive = summed((weights.softmax, parts.softmax), (weights.sigmoid, parts.sigmoid))
    soft = summed((weights.kl, parts.kl), (weights.mse, parts.mse))
    return torch.stack([contrastive, soft]) / rows


class Upstream(NamedTuple):
    """Gradients of the two losses: of own rows ``[2, 1]``, and of the columns' owners ``[2, N]``.

    The columns' may be ``[2, 1]`` too, where all are equal.
    """

    rows: Tensor
    columns: Tensor


def coefficients(
    form: Form,
    statistics: Statistics,
    weights: Weights,
    temperature: float,
    upstream: Upstream,
    counts: Counts | None,
    share: Share,
) -> Coefficients:
    """Return the backward sweep's coefficients.

    Row i's losses count ``upstream.rows / N``, column j's ``upstream.columns[j] / N``.
    """
    dtype = statistics.sigmoid.dtype
    rows = _wide(upstream.rows)
    columns = rows if upstream.columns is upstream.rows else _wide(upstream.columns)
    r, n = share.rows, share.total
    mse = 2 * weights.mse / n
    # The largest term goes into the gain with what multiplies all of it, weight and upstream
    # gradient, so that its coefficients are of order one: the weight of squared errors is 2 / N.
    largest = rows.abs().amax(1)
    if columns is not rows:
        largest = torch.maximum(largest, columns.abs().amax(1))
    contrastive, labels = max(weights.softmax, weights.sigmoid), max(weights.kl, mse)
    size = torch.maximum(contrastive * largest[0], labels * largest[1])
    size = torch.where(size == 0, 1.0, size)
    row = (rows / size).expand(2, r)
    column = row if columns is rows and r == n else (columns / size).expand(2, n)
    each = weights.softmax / max(1, (form.softmax & ROWS > 0) + (form.softmax & COLUMNS > 0))
    soft = weights.kl / temperature
    soft /= max(1, (form.kl & ROWS > 0) + (form.kl & COLUMNS > 0))

    def softmax(s: Tensor, factor: Tensor, count: Tensor | None) -> Tensor:
        shift, others, own, _ = _wide(s)
        weight = each * factor / (others + own)
        target = torch.zeros_like(weight) if count is None else each * factor / count
        return torch.stack([shift, weight, target]).to(dtype)

    def kl(s: Tensor, factor: Tensor) -> Tensor:
        logit_shift, logit_sum, target_shift, target_sum, _ = _wide(s)
        parts = [logit_shift, soft * factor / logit_sum, target_shift, soft * factor / target_sum]
        return torch.stack(parts).to(dtype)

    def missing(s: Tensor, factor: Tensor) -> Tensor:
        """Return 1 - p of the own pair, times its factor."""
        _, others, own, _ = _wide(s)
        return each * factor * others / (others + own)

    absent = statistics.sigmoid.new_zeros(0)
    diagonal = absent
    if form.softmax and counts is None:
        own = share.own
        diagonal = torch.zeros_like(row[0])
        if form.softmax & ROWS:
            diagonal = diagonal - missing(statistics.softmax_rows, row[0])
        if form.softmax & COLUMNS:
            diagonal = diagonal - missing(statistics.softmax_columns[:, own], column[0, own])
    row_counts, column_counts = (None, None) if counts is None else counts
    return Coefficients(
        gain=(size / n).to(dtype),
        softmax_rows=softmax(statistics.softmax_rows, row[0], row_counts)
        if form.softmax & ROWS
        else absent.view(3, 0),
        softmax_columns=softmax(statistics.softmax_columns, column[0], column_counts)
        if form.softmax & COLUMNS
        else absent.view(3, 0),
        diagonal=diagonal.to(dtype),
        sigmoid=(weights.sigmoid * row[0]).to(dtype) if form.sigmoid else absent,
        mse=(mse * row[1]).to(dtype) if form.mse else absent,
        kl_rows=kl(statistics.kl_rows, row[1]) if form.kl & ROWS else absent.view(4, 0),
        kl_columns=kl(statistics.kl_columns, column[1]) if form.kl & COLUMNS else absent.view(4, 0),
    )
