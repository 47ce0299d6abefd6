"""``fastht bench --memory-budget``: each method with the setting that fits, at one batch."""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastht.backbones import find_backbone
from fastht.bench.lineup import Case, LeftOut, make_images, make_step
from fastht.bench.methods import UnusableError, find_method
from fastht.budget import COUNTED_BATCHES, BudgetError, Choice, Cost, choose, count_costs

_CHOOSING = ("ht", "lora")  # have a version for every setting


@dataclass(frozen=True)
class Fitted:
    """What of a comparison fits a budget.

    Attributes:
        case: with the batch that is compared.
        names: methods to compare, each with the setting that was chosen for it.
        choices: by the names that were given.
        left_out: those that do not fit at this batch, or have no prediction.
    """

    case: Case
    names: list[str]
    choices: dict[str, Choice]
    left_out: dict[str, LeftOut]

    def describe(self) -> str:
        """Say what each method holds and what was chosen, in three lines a method."""
        return "\n".join(f"{name}: {choice.describe()}" for name, choice in self.choices.items())


def fit(case: Case, names: Sequence[str], budget_mib: float, batch: int | None) -> Fitted:
    """Choose settings, and the batch where none is given, for a budget of each method's own step.

    HT and LoRA may compute again; a method that names its setting keeps it, and others keep what
    they keep. Without a batch it is the largest at which all of HT's and LoRA's fit. What is
    compiled is counted as it is without ``torch.compile``.

    Args:
        case: what is trained; its batch does not count.
        names: as :func:`fastht.bench.methods.find_method` takes them.
        budget_mib: MiB.
        batch: images a step, or ``None``.

    Raises:
        BudgetError: no method fits.
    """
    costs: dict[str, dict[str, Cost]] = {}
    left_out: dict[str, LeftOut] = {}
    unknown: list[str] = []  # cannot train this model: the line-up says why
    counted = functools.cache(functools.partial(_count, case))
    for name in names:
        method = find_method(name)
        kind = name.partition("-")[0]
        if method.recompute == "library":
            reason = "a library's own checkpointing has no prediction for --memory-budget"
            left_out[name] = LeftOut(reason)
            continue
        plain = name.removesuffix("-compiled")
        choosing = kind in _CHOOSING and "reference" not in plain
        try:
            found = counted(kind if choosing else plain)
        except UnusableError:
            unknown.append(name)
            continue
        if plain != kind and method.recompute not in found:
            unknown.append(name)
            continue
        # A name without a setting leaves it open.
        costs[name] = found if plain == kind else {method.recompute: found[method.recompute]}
    if batch is None:
        batch = _common_batch(costs, budget_mib)
    choices: dict[str, Choice] = {}
    chosen: list[str] = []
    errors: dict[str, BudgetError] = {}
    for name, cost in costs.items():
        try:
            choices[name] = choose(cost, budget_mib, batch=batch)
        except BudgetError as error:
            errors[name] = error
            left_out[name] = LeftOut(str(error))
        else:
            chosen.append(_with_setting(name, choices[name].recompute))
    if not choices:
        least = min(costs, key=lambda n: min(c.at(batch) for c in costs[n].values()), default=None)
        if least is not None:
            raise BudgetError(f"{least}: {errors[least]}") from None
    names = list(dict.fromkeys([*chosen, *unknown]))
    return Fitted(replace(case, batch=batch), names, choices, left_out)


def _common_batch(costs: dict[str, dict[str, Cost]], budget_mib: float) -> int:
    """Return the largest batch at which all methods fit that can choose, or else all others."""
    of_choice = [c for name, c in costs.items() if name.partition("-")[0] in _CHOOSING]
    batches = []
    for cost in of_choice or costs.values():
        try:
            batches.append(choose(cost, budget_mib).batch)
        except BudgetError:
            continue  # it is left out, with the reason
    return min(batches, default=1)


def _count(case: Case, name: str) -> dict[str, Cost]:
    small = replace(case, batch=max(COUNTED_BATCHES))
    step = make_step(small, name, functools.partial(make_images, small, 1))
    blocks = find_backbone(step.model).blocks if name in _CHOOSING else ()
    try:
        return count_costs(blocks, step.kept_bytes, step.predicted_held_bytes())
    finally:
        del step, blocks
        gc.collect()


def _with_setting(name: str, recompute: str) -> str:
    """Return the method that is ``name`` with a setting."""
    plain = name.removesuffix("-compiled")
    if recompute == "none" or find_method(name).recompute == recompute:
        return name
    return f"{plain}-{recompute}{name[len(plain) :]}"
