"""Whether models keep their order when they are scored otherwise, as by other prompts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import kendalltau


@dataclass(frozen=True)
class RankStability:
    """The order of models by several ways of scoring them.

    Attributes:
        order: the models by their mean score, best first.
        kept: ways that rank all of them in that order.
        best_kept: ways by which the first one is best, alone or with others.
        of: ways that score every model.
        tau: mean of Kendall's tau-b between the scores of each two ways; NaN where no two ways have
            one.
        tau_low: the lowest of these.
    """

    order: tuple[str, ...]
    kept: int
    best_kept: int
    of: int
    tau: float
    tau_low: float

    def plain(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self) | {"order": list(self.order)}


def rank_stability(scores: Mapping[str, Sequence[float]]) -> RankStability:
    """Compare the order of models by each way of scoring.

    Args:
        scores: of each model by each way, in the same order; larger is better. Ways in which a
            score is NaN are left out.

    Raises:
        ValueError: there are fewer than two models, or not as many scores of each.
    """
    names = list(scores)
    if len(names) < 2 or len({len(values) for values in scores.values()}) != 1:
        raise ValueError("give the scores of two models or more, as many of each")
    ways = [way for way in zip(*scores.values(), strict=True) if not any(map(math.isnan, way))]
    means = [sum(way[i] for way in ways) for i in range(len(names))]
    places = sorted(range(len(names)), key=lambda i: -means[i])
    kept = sum(all(way[a] > way[b] for a, b in itertools.pairwise(places)) for way in ways)
    best = sum(way[places[0]] == max(way) for way in ways)
    taus = [
        tau
        for i, one in enumerate(ways)
        for other in ways[i + 1 :]
        if not math.isnan(tau := float(kendalltau(one, other).statistic))
    ]
    return RankStability(
        tuple(names[i] for i in places),
        kept,
        best,
        len(ways),
        sum(taus) / len(taus) if taus else math.nan,
        min(taus, default=math.nan),
    )


def prompt_lines(runs: Sequence[Mapping[str, Any]], score: str = "balanced_accuracy") -> list[str]:
    """Say whether models keep their order whatever prompt they are scored by.

    Args:
        runs: of zero-shot on one data set, of which those count that were scored by each prompt
            alone (``prompt_sensitivity``); by the same prompts and on the same number of images.
        score: by which.
    """
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for run in runs:
        variants = (run.get("prompt_sensitivity") or {}).get("variants", ())
        alone = [variant for variant in variants if variant["kind"] == "alone"]
        if not alone:
            continue
        key = (run.get("prompts"), run.get("split"), run.get("test_images"), len(alone))
        version = "after" if "after" in alone[0] else "before"
        values = [variant[version]["scores"][score] for variant in alone]
        name = f"{run['method']} of {run['model']}, seed {run['seed']}"
        found = [math.nan if value is None else float(value) for value in values]
        groups.setdefault(key, {}).setdefault(name, found)
    lines = []
    for (prompts, *_), scores in groups.items():
        if len(scores) < 2:
            continue
        ranks = rank_stability(scores)
        measure = score.replace("_", " ")
        line = (
            f"By each prompt of {prompts} alone, {len(scores)} models by {measure}: "
            f"{ranks.kept} of {ranks.of} prompts rank them as their mean does, "
            f"{ranks.best_kept} have {ranks.order[0]} best"
        )
        if not math.isnan(ranks.tau):
            line += f"; Kendall's tau of two prompts: mean {ranks.tau:.2f}, low {ranks.tau_low:.2f}"
        lines.append(f"{line}.")
    return lines
