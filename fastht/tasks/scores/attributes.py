"""Scores of attributes: each record has some values of each of several dimensions, or none.

The tie rule of all of them: a record is right where the best of its own values scores higher than
every other value, so that features that tell nothing apart are right nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastht.tasks.scores.intervals import weighted_means


class AttributeScores:
    """Accuracy and recall of dimensions, and their means.

    The accuracy of a dimension is that of the records that have a value of it. Its recall is the
    mean over the values that occur, of the accuracy of the records that have the value. The means
    are over the dimensions of which a record has a value.

    Args:
        similarities: of each dimension: ``[n, values]``, the higher the likelier.
        owned: likewise whether a record has a value, ``[n, values]`` bool.
    """

    def __init__(self, similarities: Mapping[str, Tensor], owned: Mapping[str, Tensor]) -> None:
        self.owned = {name: own for name, own in owned.items() if bool(own.any())}
        self.right = {name: _right(similarities[name], own) for name, own in self.owned.items()}
        self.predicted = {name: similarities[name].argmax(dim=1) for name in self.owned}

    def scores(self) -> dict[str, float]:
        """Return ``NAME_accuracy`` and ``NAME_recall`` of dimensions, ``mean_...`` of both."""
        n = len(next(iter(self.right.values()))) if self.right else 0
        once = torch.ones(1, n, dtype=torch.float64)
        return {name: values.item() for name, values in self.resampled(once).items()}

    def resampled(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the same ``[r]`` of resamples that count each record ``[r, n]`` times.

        A value or dimension that a resample has not is left out of its means.
        """
        result = {}
        for name, right in self.right.items():
            result[f"{name}_accuracy"] = weighted_means(right, weights)
            own = self.owned[name]
            of_values = torch.where(own, right[:, None], torch.nan)[:, own.any(dim=0)]
            result[f"{name}_recall"] = weighted_means(of_values, weights).nanmean(dim=1)
        for score in ("accuracy", "recall"):
            found = [values for name, values in result.items() if name.endswith(f"_{score}")]
            if found:
                result[f"mean_{score}"] = torch.stack(found).nanmean(dim=0)
        return result


def _right(similarities: Tensor, own: Tensor) -> Tensor:
    """Return 1 or 0 for each record, NaN for those without a value; ``[n]`` float64."""
    best = similarities.masked_fill(~own, -torch.inf).amax(dim=1)
    other = similarities.masked_fill(own, -torch.inf).amax(dim=1)
    return (best > other).double().masked_fill(~own.any(dim=1), torch.nan)


def fit_probe(
    features: Tensor, owned: Tensor, *, penalty: float = 1e-2, steps: int = 100
) -> Tensor | None:
    """Fit a multinomial logistic regression on features: a linear probe of one dimension.

    Records with one value alone are learned from. The same input gives the same bits.

    Args:
        features: ``[n, E]``.
        owned: whether a record has a value, ``[n, values]`` bool.
        penalty: of half the squared weights, beside a mean over records.
        steps: at most, of L-BFGS.

    Returns:
        ``[E + 1, values]`` float64, the last row of biases; -inf there for values that no record
        has. ``None``: fewer than two values occur.
    """
    single = owned.sum(dim=1) == 1
    x, labels = features[single].double(), owned[single].int().argmax(dim=1)
    seen = labels.unique()
    if len(seen) < 2:
        return None
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    target = torch.searchsorted(seen, labels)
    weight = x.new_zeros(x.shape[1], len(seen), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight, target)
        loss = loss + penalty / 2 * weight[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    result = x.new_zeros(x.shape[1], owned.shape[1])
    result[-1] = -torch.inf
    result[:, seen] = weight.detach()
    return result


def probe_logits(features: Tensor, weight: Tensor) -> Tensor:
    """Return ``[n, values]`` of features ``[n, E]`` and what :func:`fit_probe` returned."""
    logits: Tensor = features.double() @ weight[:-1] + weight[-1]
    return logits


def standardised(train: Tensor, other: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return features of mean 0 and variance 1 over the training ones, which come first."""
    mean, std = train.double().mean(dim=0), train.double().std(dim=0)
    std = torch.where(std > 0, std, 1.0)
    return tuple((x.double() - mean) / std for x in (train, *other))
