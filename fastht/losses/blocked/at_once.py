"""Loss and gradients in one sweep, where that saves the products of a second one.

A backward sweep computes the cosines again, a quarter of all products. It need not where the
derivative of a pair depends on nothing but the pair (sigmoid, squared error), nor where all pairs
are in one block, whose statistics are known before it is left. What is held until the backward pass
is the gradients; of pairs there is never more than a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fastht.losses.blocked.backward_sweep import BackwardSweep
from fastht.losses.blocked.forward_sweep import ForwardSweep, forward
from fastht.losses.blocked.pairs import Pairs, block_size, blocks
from fastht.losses.sweeps import Coefficients, Form, Gradients, Operands, Statistics


def can_be_at_once(form: Form, device: str, rows: int, columns: int) -> bool:
    """Whether :func:`forward_and_backward` takes such a rectangle."""
    height, width = block_size(device)
    return not (form.softmax or form.kl) or (rows <= height and columns <= width)


def forward_and_backward(
    form: Form,
    operands: Operands,
    coefficients: Callable[[Statistics], Coefficients],
    needs: Sequence[bool],
) -> tuple[Statistics, Gradients, Tensor]:
    """Return statistics, gradients before their gain, and the gain, which an upstream one joins.

    ``coefficients`` makes those of the backward sweep. Where derivatives depend on nothing but the
    pair, it is given statistics of no pair.
    """
    pairs = Pairs(form, operands)
    if form.softmax or form.kl:
        statistics = forward(form, operands, pairs)
        backward = BackwardSweep(pairs, coefficients(statistics), needs)
        for block in blocks(operands):
            backward.add(block)
        return statistics, backward.sums(), backward.gain
    sweep = ForwardSweep(pairs, None)
    backward = BackwardSweep(pairs, coefficients(sweep.statistics()), needs)
    for block in blocks(operands):
        sweep.add(block)
        backward.add(block)
    return sweep.statistics(), backward.sums(), backward.gain
