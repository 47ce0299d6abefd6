"""What a training step holds in memory, counted, and which settings of it fit a budget.

What a step holds is what lives while it runs: parameters, buffers, gradients, AdamW's two states,
its images, what autograd keeps for the backward pass, and what one block computes again there; and
on a CPU 5 KB for each block that does so, the state of random numbers that it will begin with. All
of that is a line in the batch size, so two small batches tell it for every other one, and a line in
the number of blocks that compute again. Operations' working memory and what an allocator rounds up
come on top, and are not counted.

What is computed again is on top of what is kept where the last block does so, with which the
backward pass begins. Where it does not, the blocks after the first one that does have given back
more by then than that one takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, TypeAlias

from torch import Tensor, nn

from fastht.recompute import (
    RECOMPUTE,
    cannot_recompute,
    chosen_blocks,
    is_recorded,
    parse_recompute,
    random_state_bytes,
    reinstall,
)

MIB = 2**20
COUNTED_BATCHES = (2, 4)
_STEP_COUNTER = 4  # bytes: AdamW counts the steps of each parameter
_ZERO = Fraction(0)
_Line: TypeAlias = tuple[Fraction, Fraction]  # fixed, and an image


class BudgetError(ValueError):
    """Nothing fits a memory budget; the message names the least that would."""


@dataclass(frozen=True)
class Cost:
    """Bytes that a step holds with one setting, as a line in the batch size.

    Attributes:
        recompute: as :func:`fastht.patch` takes it.
        held: parameters, buffers, gradients and optimizer states.
        kept: ``(fixed, per image)``: what autograd keeps, and the images; and states of random
            numbers.
        rebuilt: ``(fixed, per image)``: what the last block computes again in the backward pass.
    """

    recompute: str
    held: int
    kept: _Line
    rebuilt: _Line = (_ZERO, _ZERO)

    def kept_bytes(self, batch: int) -> int:
        """Return ``kept`` of ``batch`` images."""
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
        counted: bytes of a step at this batch with each setting for all blocks, and with this one.
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


def check_budget(budget_mib: float | None, recompute: str = "none") -> None:
    """Raise ``ValueError`` unless a budget is none or a positive number of MiB.

    With a budget no setting is given, which it chooses.
    """
    parse_recompute(recompute)
    if budget_mib is None:
        return
    if not (math.isfinite(budget_mib) and budget_mib > 0):
        raise ValueError(f"memory_budget is {budget_mib}; it must be a number of MiB above 0")
    if recompute != "none":
        raise ValueError(
            f"--memory-budget chooses what is computed again, and --recompute {recompute} is given "
            "too; leave out one"
        )


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

    Returns:
        The costs by setting, in the order in which they are tried: ``"none"``, ``"mlp:1"``,
        ``"mlp:2"``, … ``"mlp"``, and whole blocks likewise.
    """

    def count(recompute: str, batches: Sequence[int] = COUNTED_BATCHES) -> list[int]:
        reinstall(blocks, recompute)
        return [kept(batch) for batch in batches]

    try:
        reinstall(blocks, "none")
        recorded, first = _count_recorded(blocks, lambda: kept(COUNTED_BATCHES[0]))
        plain = _line(first, kept(COUNTED_BATCHES[1]))
        found = {"none": Cost("none", held, plain)}
        for what in RECOMPUTE[1:]:
            if not recorded or cannot_recompute(blocks, what) is not None:
                continue
            whole = _line(*count(what))
            names = [f"{what}:{number}" for number in range(1, len(blocks) + 1)]
            again = {name: recorded.intersection(chosen_blocks(blocks, name)) for name in names}
            numbers = {name: len(places) for name, places in again.items()}
            lines = _lines_of_blocks(numbers, len(recorded), whole, count)
            # All but the last one, whose part is on top of what is kept.
            others = next((lines[n] for n in names if numbers[n] == len(recorded) - 1), plain)
            last = _part(others, whole)
            for name in names:
                rebuilt = last if max(recorded) in again[name] else (_ZERO, _ZERO)
                states = sum(random_state_bytes(blocks[place]) for place in again[name])
                found[name] = Cost(name, held, _more(lines[name], states), rebuilt)
            # As the last name, but for blocks of which nothing is kept.
            states = sum(random_state_bytes(blocks[place]) for place in recorded)
            found[what] = Cost(what, held, _more(whole, states), last)
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

    Of a given batch the first setting that fits is taken: nothing is computed again, or the MLPs of
    the fewest blocks, or the fewest whole blocks. Without one it is the largest batch that any
    setting fits, and then the first setting.

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
    sizes = {name: cost.at(batch) for name, cost in costs.items()}
    fitting = next((name for name, size in sizes.items() if size <= budget), None)
    if fitting is None:
        name = min(sizes, key=sizes.__getitem__)
        least = costs[name].at(multiple)
        smaller = f"; one of {multiple} would take {_up(least)} MiB" if batch > multiple else ""
        raise BudgetError(
            f"a memory budget of {budget_mib:g} MiB fits no step on {batch} images: the least is "
            f"{_up(sizes[name])} MiB, with recompute={name!r}{smaller}; of that "
            f"{_up(costs[name].held)} MiB are weights, gradients and optimizer states. Give a "
            "larger budget, a smaller batch, or a smaller model or image size"
        )
    counted = {name: size for name, size in sizes.items() if name in (*RECOMPUTE, fitting)}
    return Choice(budget_mib, fitting, batch, sizes[fitting], counted, chosen)


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


def _count_recorded(blocks: Sequence[nn.Module], run: Callable[[], int]) -> tuple[set[int], int]:
    """Return the indices of blocks of which autograd keeps anything, and what ``run`` returns."""
    recorded: set[int] = set()
    places = {block: index for index, block in enumerate(blocks)}

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        if is_recorded(module, itertools.chain(args, kwargs.values())):
            recorded.add(places[module])

    handles = [b.register_forward_pre_hook(see, with_kwargs=True) for b in blocks]
    try:
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    return recorded, result


def _lines_of_blocks(
    numbers: Mapping[str, int], recorded: int, whole: _Line, count: Callable[..., list[int]]
) -> dict[str, _Line]:
    """Return what is kept with each setting.

    Blocks are mostly alike but for the first, before which nothing may train: one and all of them
    tell, and a second one tells that it is so. Where it is not, each setting is counted.

    Args:
        numbers: of blocks that keep anything and compute it again, by setting, the least first.
        recorded: of blocks that keep anything.
        whole: what is kept where all of them compute again.
        count: counts a setting in the batches that are given.
    """
    first, *others = numbers
    if numbers[first] == 1:
        one = _line(*count(first))
        each = _part(one, whole, max(1, recorded - 1))
        lines = {
            name: (one[0] - (number - 1) * each[0], one[1] - (number - 1) * each[1])
            for name, number in numbers.items()
        }
        if recorded < 3:
            return lines
        batch, (fixed, slope) = COUNTED_BATCHES[0], lines[others[0]]
        if count(others[0], [batch]) == [fixed + batch * slope]:
            return lines
    return {name: _line(*count(name)) for name in numbers}


def _part(more: _Line, less: _Line, parts: int = 1) -> _Line:
    """Return one of so many parts of what one line has more than another."""
    return (more[0] - less[0]) / parts, (more[1] - less[1]) / parts


def _more(line: _Line, fixed: int) -> _Line:
    """Return a line with so many bytes more whatever the batch."""
    return line[0] + fixed, line[1]


def _line(first: int, second: int) -> _Line:
    small, large = COUNTED_BATCHES
    slope = Fraction(second - first, large - small)
    return first - small * slope, slope


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"


def _up(size: int) -> str:
    """Return MiB that suffice."""
    return f"{math.ceil(10 * size / MIB) / 10:.1f}"
