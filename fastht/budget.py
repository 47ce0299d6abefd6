"""What a training step holds in memory, counted, and which settings of it fit a budget.

What a step holds is what lives while it runs: parameters, buffers, gradients, AdamW's two states,
its images, what autograd keeps for the backward pass, and what one block computes again there. All
of that is a line in the batch size, so two small batches tell it for every other one. Operations'
working memory and what an allocator rounds up come on top, and are not counted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from fastht.recompute import RECOMPUTE, cannot_recompute, reinstall

MIB = 2**20
COUNTED_BATCHES = (2, 4)
_STEP_COUNTER = 4  # bytes: AdamW counts the steps of each parameter


class BudgetError(ValueError):
    """Nothing fits a memory budget; the message names the least that would."""


@dataclass(frozen=True)
class Cost:
    """Bytes that a step holds with one setting, as a line in the batch size.

    Attributes:
        recompute: ``"none"``, ``"mlp"`` or ``"block"``.
        held: parameters, buffers, gradients and optimizer states.
        kept: ``(fixed, per image)``: what autograd keeps, and the images.
        rebuilt: ``(fixed, per image)``: what one block computes again in the backward pass.
    """

    recompute: str
    held: int
    kept: tuple[Fraction, Fraction]
    rebuilt: tuple[Fraction, Fraction] = (Fraction(0), Fraction(0))

    def kept_bytes(self, batch: int) -> int:
        """Return what autograd keeps of ``batch`` images, and they themselves."""
        return round(self.kept[0] + batch * self.kept[1])

    def at(self, batch: int) -> int:
        """Return the bytes of a step on ``batch`` images."""
        return self.held + math.ceil(
            self.kept[0] + self.rebuilt[0] + batch * (self.kept[1] + self.rebuilt[1])
        )

    def largest(self, budget: int) -> int:
        """Return the most images whose step fits ``budget`` bytes; 0: not even one does."""
        left = budget - self.held - self.kept[0] - self.rebuilt[0]
        return max(0, math.floor(left / (self.kept[1] + self.rebuilt[1])))


@dataclass(frozen=True)
class Choice:
    """What fits a budget.

    Attributes:
        budget_mib: the budget.
        recompute: the setting.
        batch: images a step, of one process.
        predicted_bytes: what the step holds then.
        counted: bytes of a step with each setting at this batch.
        batch_chosen: whether the batch was chosen too.
    """

    budget_mib: float
    recompute: str
    batch: int
    predicted_bytes: int
    counted: dict[str, int]
    batch_chosen: bool = False

    def plain(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Choice:
        """Return it from :meth:`plain`."""
        return cls(**plain)

    def describe(self) -> str:
        """Say in three lines what each setting holds, what was chosen, and why."""
        shown = ", ".join(f"{name} {_mib(size)}" for name, size in self.counted.items())
        what = (
            "the largest batch that fits, and the cheapest setting at it"
            if self.batch_chosen
            else "the setting that computes least again of those that fit"
        )
        return (
            f"Memory of a step on {self.batch} images (counted), by what is computed again: "
            f"{shown} MiB.\n"
            f"Chosen for {self.budget_mib:g} MiB: {self.recompute}, batch {self.batch}: {what}.\n"
            f"Predicted: {_mib(self.predicted_bytes)} MiB; working memory of single operations "
            "comes on top."
        )


def check_budget(budget_mib: float | None) -> None:
    """Raise ``ValueError`` unless a budget is none or a positive number of MiB."""
    if budget_mib is not None and not (math.isfinite(budget_mib) and budget_mib > 0):
        raise ValueError(f"memory_budget is {budget_mib}; it must be a number of MiB above 0")


def count_costs(
    blocks: Sequence[nn.Module], kept: Callable[[int], int], held: int
) -> dict[str, Cost]:
    """Count what a step holds with each setting that the blocks can have.

    The blocks have the setting ``"none"`` afterwards.

    Args:
        blocks: of the tower; empty for a model without one.
        kept: runs a forward pass with gradients on so many images, and returns the bytes that
            autograd keeps of it, with those of the images.
        held: bytes of parameters, buffers, gradients and optimizer states.
    """
    found: dict[str, Cost] = {}
    recorded = 0
    try:
        for recompute in RECOMPUTE:
            if recompute == "none":
                reinstall(blocks, recompute)
                recorded, first = _count_recorded(blocks, lambda: kept(COUNTED_BATCHES[0]))
            elif not recorded or cannot_recompute(blocks, recompute) is not None:
                continue
            else:
                reinstall(blocks, recompute)
                first = kept(COUNTED_BATCHES[0])
            line = _line(first, kept(COUNTED_BATCHES[1]))
            rebuilt = (Fraction(0), Fraction(0))
            if recompute != "none":  # of one block at a time
                plain = found["none"].kept
                rebuilt = (
                    (plain[0] - line[0]) / recorded,
                    (plain[1] - line[1]) / recorded,
                )
            found[recompute] = Cost(recompute, held, line, rebuilt)
    finally:
        reinstall(blocks, "none")
    return found


def choose(
    costs: Mapping[str, Cost],
    budget_mib: float,
    *,
    batch: int | None = None,
    limit: int | None = None,
    multiple: int = 1,
) -> Choice:
    """Choose the setting, and the batch where none is given, that fit a budget.

    Of a given batch the first setting that fits is taken, in the order in which they compute more
    again. Without one it is the largest batch that any setting fits, and then the first setting.

    Args:
        costs: of :func:`count_costs`.
        budget_mib: the budget in MiB.
        batch: images a step.
        limit: the most images of a step.
        multiple: what the batch has to be a multiple of.

    Raises:
        BudgetError: nothing fits.
    """
    budget = math.floor(budget_mib * MIB)
    chosen = batch is None
    if batch is None:
        largest = max(cost.largest(budget) for cost in costs.values())
        batch = largest if limit is None else min(largest, limit)
        batch -= batch % multiple
        batch = max(batch, multiple)
    counted = {name: cost.at(batch) for name, cost in costs.items()}
    fitting = next((name for name, size in counted.items() if size <= budget), None)
    if fitting is None:
        name = min(counted, key=counted.__getitem__)
        least = costs[name].at(multiple)
        smaller = f"; one of {multiple} would take {_up(least)} MiB" if batch > multiple else ""
        raise BudgetError(
            f"a memory budget of {budget_mib:g} MiB fits no step on {batch} images: the least is "
            f"{_up(counted[name])} MiB, with recompute={name!r}{smaller}; of that "
            f"{_up(costs[name].held)} MiB are weights, gradients and optimizer states. Give a "
            "larger budget, a smaller batch, or a smaller model or image size"
        )
    return Choice(budget_mib, fitting, batch, counted[fitting], counted, chosen)


def held_bytes(module: nn.Module, beside: Iterable[Tensor] = ()) -> int:
    """Return the bytes of parameters, buffers, gradients and AdamW's states of a module.

    Args:
        module: what has ``requires_grad`` trains.
        beside: other tensors that stay, such as embeddings of texts.
    """
    storages = (t.untyped_storage() for t in [*module.parameters(), *module.buffers(), *beside])
    held = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
    trained = [p for p in module.parameters() if p.requires_grad]
    return held + sum(3 * p.nbytes + _STEP_COUNTER for p in trained)  # gradient, two moments


def _count_recorded(blocks: Sequence[nn.Module], run: Callable[[], int]) -> tuple[int, int]:
    """Return in how many blocks autograd records what they are given, and what ``run`` returns."""
    recorded: set[int] = set()

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        values = itertools.chain(args, kwargs.values())
        if any(isinstance(v, Tensor) and v.requires_grad for v in values) and (
            torch.is_grad_enabled()
        ):
            recorded.add(id(module))

    handles = [b.register_forward_pre_hook(see, with_kwargs=True) for b in blocks]
    try:
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    return len(recorded), result


def _line(first: int, second: int) -> tuple[Fraction, Fraction]:
    small, large = COUNTED_BATCHES
    slope = Fraction(second - first, large - small)
    return first - small * slope, slope


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"


def _up(size: int) -> str:
    """Return MiB that suffice."""
    return f"{math.ceil(10 * size / MIB) / 10:.1f}"
