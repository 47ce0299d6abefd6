"""How well classes are told apart: from confusion matrices and ranks, also of weighted images.

Every score is computed from weights, ``[R, n]``: how often each of n images counts in each of R
resamples. The scores of the images themselves are those of one resample that has each image once,
so that an interval and its point are the same measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastht.tasks.scores import calibration

SPECIFICITIES = (90, 95)  # percent, at which sensitivities are given
_CHUNK = 32  # resamples at a time: their weights stay in a cache


def classification_scores(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str] | None = None
) -> dict[str, float]:
    """Score predicted classes over all images.

    Args:
        probabilities: ``[n, classes]``, rows that sum to 1; the first largest one is predicted.
        labels: ``[n]``, class indices.
        classes: their names; ``None`` leaves the scores of single classes out.

    Returns:
        Scores in [0, 1], but for the last one. ``accuracy``. ``recall``, ``precision``, ``f1`` and
        ``auc``: with two classes those of the second one, with more their unweighted means over the
        classes that occur or are predicted; AUC is of one class against the rest, and NaN where a
        class does not occur. ``balanced_accuracy``, the mean sensitivity of the classes that occur,
        ``macro_f1``, the mean F1 of those that occur or are predicted, whatever their number, and
        ``weighted_f1``, its mean over the images by their true class.
        ``ece`` and ``brier``: see :func:`calibration.calibration_scores`.

        For each class against the rest, as ``{score}/{class}``: ``sensitivity``, ``specificity``,
        ``ppv`` (positive predictive value), ``auc`` and ``sensitivity_at_90_specificity`` (and 95),
        the largest sensitivity of any threshold on the class's probability whose specificity is at
        least that. They are NaN where nothing is to be divided by: no image of the class, none of
        others, none predicted. ``precision`` and ``recall`` count such a class as 0, as
        torchmetrics does.
    """
    weights = torch.ones(1, len(labels), dtype=torch.float64)
    found = resampled(probabilities, labels, weights, classes)
    return {name: values.item() for name, values in found.items()}


def resampled(
    probabilities: Tensor, labels: Tensor, weights: Tensor, classes: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Return what :func:`classification_scores` does, for each of many resamples.

    Args:
        probabilities: ``[n, classes]``.
        labels: ``[n]``, class indices.
        weights: ``[R, n]``, how often an image counts in a resample; need not be whole.
        classes: names of the classes; ``None`` leaves the scores of single classes out.

    Returns:
        ``[R]`` each, float64.
    """
    count = probabilities.shape[1]
    if classes is not None and len(classes) != count:
        raise ValueError(f"{len(classes)} names for {count} classes; give one for each")
    pairs = labels * count + probabilities.argmax(dim=1)
    rankings = [_Ranking.of(probabilities[:, i], labels == i) for i in range(count)]
    parts: list[dict[str, Tensor]] = []
    for chunk in weights.split(_CHUNK):
        weighed = chunk.T.double().contiguous()  # [n, r]: sums run over contiguous rows
        confusion = weighed.new_zeros(count * count, len(chunk)).index_add_(0, pairs, weighed)
        parts.append(
            _scores(
                confusion.view(count, count, -1), [r.scores(weighed) for r in rankings], classes
            )
        )
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return found | calibration.resampled(probabilities, labels, weights)


def _scores(
    confusion: Tensor, ranked: Sequence[dict[str, Tensor]], classes: Sequence[str] | None
) -> dict[str, Tensor]:
    """Return all scores from ``[true, predicted, r]`` and those of the rank of each class."""
    count = len(confusion)
    right = confusion.diagonal(dim1=0, dim2=1).T  # [classes, r]
    true, predicted, total = confusion.sum(1), confusion.sum(0), confusion.sum((0, 1))
    sensitivity, ppv = right / true, right / predicted
    f1 = 2 * right / (true + predicted)
    specificity = (total - true - predicted + right) / (total - true)
    areas = torch.stack([found["auc"] for found in ranked])
    scores = {"accuracy": right.sum(0) / total}
    for name, values in (("recall", sensitivity), ("precision", ppv), ("f1", f1)):
        defined = values.nan_to_num(0)
        # What neither occurs nor is predicted is in no mean.
        scores[name] = defined[1] if count == 2 else _mean(defined, true + predicted > 0)
    scores["auc"] = areas[1] if count == 2 else areas.mean(0)
    scores["balanced_accuracy"] = _mean(sensitivity, true > 0)
    scores["macro_f1"] = _mean(f1, true + predicted > 0)
    scores["weighted_f1"] = (f1.where(true > 0, 0) * true).sum(0) / total
    for place, name in enumerate(classes or ()):
        scores[f"sensitivity/{name}"] = sensitivity[place]
        scores[f"specificity/{name}"] = specificity[place]
        scores[f"ppv/{name}"] = ppv[place]
        scores |= {f"{score}/{name}": values for score, values in ranked[place].items()}
    return scores


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return means over the first dimension of the values that count."""
    return values.where(counted, 0).sum(0) / counted.sum(0)


@dataclass(frozen=True)
class _Ranking:
    """Images in falling order of one class's probability.

    Attributes:
        order: ``[n]``, the images.
        own: ``[n]`` in that order, which are of the class.
        ends: ``[g]``, places of the last image of each run of equal probabilities: images that no
            threshold tells apart pass it together.
    """

    order: Tensor
    own: Tensor
    ends: Tensor

    @classmethod
    def of(cls, values: Tensor, own: Tensor) -> _Ranking:
        """Rank the images by ``[n]`` probabilities of a class that ``[n]`` are of."""
        ranked, order = values.sort(descending=True)
        last = torch.ones_like(own)
        last[:-1] = ranked[1:] != ranked[:-1]
        return cls(order, own[order], last.nonzero()[:, 0])

    def passed(self, weighed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of others and of the class above each threshold, ``[g + 1, r]``."""
        ordered = weighed[self.order]
        everything = ordered.cumsum(0)[self.ends]
        true = (ordered * self.own[:, None]).cumsum(0)[self.ends]
        start = torch.zeros_like(true[:1])  # a threshold that nothing reaches
        return torch.cat([start, everything - true]), torch.cat([start, true])

    def scores(self, weighed: Tensor) -> dict[str, Tensor]:
        """Return AUC and sensitivities at fixed specificities, ``[r]`` each."""
        false, true = self.passed(weighed)
        others, own = false[-1], true[-1]
        # The trapezoids count a tie as half.
        area = ((false[1:] - false[:-1]) * (true[1:] + true[:-1])).sum(0) / (2 * others * own)
        found = {"auc": area}
        for percent in SPECIFICITIES:
            # In whole numbers: 1 - 0.9 is not 0.1.
            enough = 100 * false <= (100 - percent) * others
            best = true.where(enough, 0).amax(0) / own
            found[f"sensitivity_at_{percent}_specificity"] = best.where(others > 0, math.nan)
        return found


def roc_curves(probabilities: Tensor, labels: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Return false and true positive rates of each class against the rest.

    Classes without images of their own or of others have no curve. With two classes only the
    second one has one: that of the first is its mirror image.

    Args:
        probabilities: ``[n, classes]``.
        labels: ``[n]``, class indices.
    """
    classes = probabilities.shape[1]
    weighed = torch.ones(len(labels), 1, dtype=torch.float64)
    curves = {}
    for index in [1] if classes == 2 else range(classes):
        own = labels == index
        if 0 < int(own.sum()) < len(own):
            false, true = _Ranking.of(probabilities[:, index], own).passed(weighed)
            curves[index] = (false[:, 0] / false[-1], true[:, 0] / true[-1])
    return curves


def confusion_matrix(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return how many images of each class are predicted as each, ``[true, predicted]``, int64."""
    count = probabilities.shape[1]
    pairs = labels * count + probabilities.argmax(dim=1)
    return pairs.bincount(minlength=count * count).view(count, count)


def chance_accuracy(labels: Tensor, classes: Sequence[str]) -> dict[str, float | str]:
    """Return what accuracy needs no image: by the shares of the classes in what is scored.

    Args:
        labels: ``[n]``, class indices.
        classes: their names.

    Returns:
        ``majority``, the accuracy of always the commonest class, which is ``majority_class``;
        ``prior_matched``, that expected of guessing each class as often as it occurs: the sum of
        the squared shares.
    """
    shares = labels.bincount(minlength=len(classes)).double() / len(labels)
    return {
        "majority": shares.max().item(),
        "majority_class": classes[int(shares.argmax())],
        "prior_matched": shares.square().sum().item(),
    }


def prediction_warnings(probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> list[str]:
    """Return what is wrong with predictions at a glance: one class for all, or classes never made.

    Args:
        probabilities: ``[n, classes]``.
        labels: ``[n]``, class indices.
        classes: their names.
    """
    confusion = confusion_matrix(probabilities, labels)
    true, predicted = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    if sum(count > 0 for count in predicted) == 1 and sum(count > 0 for count in true) > 1:
        name = classes[max(range(len(classes)), key=predicted.__getitem__)]
        return [f"predicts one class: all {len(labels):,} images are taken for {name!r}"]
    return [
        f"never predicts {name!r}, which {count:,} of {len(labels):,} images are"
        for name, count, made in zip(classes, true, predicted, strict=True)
        if count and not made
    ]
