"""Whether probabilities are what they say: calibration errors, and the temperature that mends them.

Temperature scaling: Guo et al., On Calibration of Modern Neural Networks, 2017, section 4.2. The
calibration error is that of the predicted class, over bins of equal mass instead of equal width.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

BINS = 15
PER_BIN = 10  # images that a bin has at least, or there are fewer bins
BOUNDS = (0.01, 100.0)  # of temperatures
_CHUNK = 32  # resamples at a time: their weights stay in a cache


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy of bins of about as many images each, by rising confidence.

    Attributes:
        confidence: means of the predicted class's probability.
        accuracy: shares of right predictions.
        images: their numbers.
    """

    confidence: list[float]
    accuracy: list[float]
    images: list[int]


@dataclass(frozen=True)
class Temperature:
    """A temperature and what it was fitted on.

    Attributes:
        value: what logits are divided by.
        images: how many it was fitted on.
        at_bound: the likelihood still rose at a bound of the temperatures that are tried: all
            predictions are right, or they are worse than none.
    """

    value: float
    images: int
    at_bound: bool


def bins_for(images: int) -> int:
    """Return the number of bins: 15, or as many as have ten images each."""
    return max(1, min(BINS, images // PER_BIN))


def calibration_scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return ``ece``, the expected calibration error, in [0, 1], and ``brier``, in [0, 2].

    Args:
        probabilities: ``[n, classes]``, rows that sum to 1.
        labels: ``[n]``, class indices.

    Returns:
        ``ece``: the mean over bins, by their images, of the distance between the mean probability
        of the predicted class and the share of right predictions, in :func:`bins_for` bins; see
        :func:`reliability`. ``brier``: the mean over images of the squared distance between the
        probabilities and the truth, summed over all classes; with two classes twice what is called
        so there.
    """
    found = resampled(probabilities, labels, torch.ones(1, len(labels), dtype=torch.float64))
    return {name: values.item() for name, values in found.items()}


def resampled(probabilities: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Return what :func:`calibration_scores` does, for each of many resamples.

    The number of bins is that of all images, their borders those of the resample.

    Args:
        probabilities: ``[n, classes]``.
        labels: ``[n]``, class indices.
        weights: ``[R, n]``, how often an image counts in a resample; need not be whole.

    Returns:
        ``[R]`` each, float64.
    """
    p = probabilities.double()
    squared = (p - torch.nn.functional.one_hot(labels, p.shape[1])).square().sum(1)
    ranked = _Ranked.of(p, labels)
    bins = bins_for(len(labels))
    errors, briers = [], []
    for chunk in weights.split(_CHUNK):
        weighed = chunk.T.double().contiguous()  # [n, r]
        total = weighed.sum(0)
        gaps, place = (
            ranked.sums(weighed, ranked.right - ranked.confidence),
            ranked.bins(weighed, bins),
        )
        summed = weighed.new_zeros(bins, weighed.shape[1]).scatter_add_(0, place, gaps)
        errors.append(summed.abs().sum(0) / total)
        briers.append((squared[:, None] * weighed).sum(0) / total)
    return {"ece": torch.cat(errors), "brier": torch.cat(briers)}


def reliability(probabilities: Tensor, labels: Tensor, bins: int | None = None) -> Reliability:
    """Return the reliability curve.

    Images in order of their confidence are cut into bins of equal mass: an image, or all images of
    one and the same confidence together, belong to the bin in which their middle lies. Bins
    without images are left out.

    Args:
        probabilities: ``[n, classes]``, rows that sum to 1.
        labels: ``[n]``, class indices.
        bins: how many; default: :func:`bins_for`.
    """
    count = bins or bins_for(len(labels))
    ranked = _Ranked.of(probabilities.double(), labels)
    ones = torch.ones(len(labels), 1, dtype=torch.float64)
    place = ranked.bins(ones, count)
    images, confidence, right = (
        torch.zeros(count, 1, dtype=torch.float64).scatter_add_(0, place, ranked.sums(ones, values))
        for values in (torch.ones_like(ranked.confidence), ranked.confidence, ranked.right)
    )
    filled = images > 0
    return Reliability(
        confidence=(confidence / images)[filled].tolist(),
        accuracy=(right / images)[filled].tolist(),
        images=images[filled].int().tolist(),
    )


@dataclass(frozen=True)
class _Ranked:
    """Images by rising confidence: the probability of the class that is predicted.

    Attributes:
        order: ``[n]``, the images.
        confidence: ``[n]`` in that order.
        right: ``[n]`` in that order, 1 for right predictions.
        ends: ``[g]``, places of the last image of each run of equal confidences.
    """

    order: Tensor
    confidence: Tensor
    right: Tensor
    ends: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, labels: Tensor) -> _Ranked:
        confidence, predicted = probabilities.max(dim=1)
        ranked, order = confidence.sort()
        last = torch.ones_like(order, dtype=torch.bool)
        last[:-1] = ranked[1:] != ranked[:-1]
        right = (predicted == labels)[order].double()
        return cls(order, ranked, right, last.nonzero()[:, 0])

    def sums(self, weighed: Tensor, values: Tensor) -> Tensor:
        """Return weighted sums of ``[n]`` values, in order, over runs of ties: ``[g, r]``."""
        summed = (weighed[self.order] * values[:, None]).cumsum(0)[self.ends]
        return torch.cat([summed[:1], summed[1:] - summed[:-1]])

    def bins(self, weighed: Tensor, count: int) -> Tensor:
        """Return the bin of each run of ties, ``[g, r]``: where the middle of its weight lies."""
        end = weighed[self.order].cumsum(0)[self.ends]
        start = torch.cat([torch.zeros_like(end[:1]), end[:-1]])
        # One division of whole numbers, which is exact where it has no rest.
        return ((start + end) * count / (2 * end[-1])).long().clamp(max=count - 1)


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean of ``-ln p`` of the true classes, of ``[n, classes]`` and ``[n]``."""
    return -_logarithms(probabilities).gather(1, labels[:, None]).mean().item()


def fit_temperature(probabilities: Tensor, labels: Tensor) -> Temperature:
    """Find the temperature of the largest likelihood, within 0.01 and 100.

    The negative log-likelihood is convex in 1/T, so that halving the interval in which its slope
    changes sign finds its only minimum.

    Args:
        probabilities: ``[n, classes]``, of validation images.
        labels: ``[n]``, class indices.

    Raises:
        ValueError: there is no image.
    """
    if not len(labels):
        raise ValueError("no image to fit a temperature on; give the validation side")
    logits = _logarithms(probabilities)
    truth = logits.gather(1, labels[:, None])[:, 0]

    def slope(log_temperature: float) -> float:
        """Return the derivative by 1/T: the mean expected logit above that of the truth."""
        p = (logits * math.exp(-log_temperature)).softmax(dim=1)
        return ((p * logits).sum(1) - truth).mean().item()

    low, high = (math.log(bound) for bound in BOUNDS)
    # It falls as the temperature rises.
    if slope(low) <= 0:
        return Temperature(BOUNDS[0], len(labels), True)
    if slope(high) >= 0:
        return Temperature(BOUNDS[1], len(labels), True)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return Temperature(math.exp((low + high) / 2), len(labels), False)


def apply_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """Return ``softmax(ln p / T)``, ``[n, classes]``, float64: logits divided by T.

    It changes how sure predictions are, and never what is predicted.
    """
    return (_logarithms(probabilities) / temperature).softmax(dim=1)


def describe_calibration(
    probabilities: Tensor, labels: Tensor, temperature: Temperature | None, note: str
) -> dict[str, Any]:
    """Return calibration before and after a temperature, as plain JSON types.

    Args:
        probabilities: ``[n, classes]``, of the images that are scored.
        labels: ``[n]``, class indices.
        temperature: fitted on other images; ``None``: there is none.
        note: what it was fitted on, or why it was not.

    Returns:
        ``bins`` of the ECE; ``temperature``, its ``fitted_images`` and ``at_bound``, ``None``
        without; ``note``; ``uncalibrated`` and ``calibrated``: ECE, Brier score and ``nll``, the
        last one in nats; ``calibrated`` is ``None`` without a temperature.
    """

    def scores(p: Tensor) -> dict[str, float]:
        return calibration_scores(p, labels) | {"nll": negative_log_likelihood(p, labels)}

    known = {} if temperature is None else asdict(temperature)
    return {
        "bins": bins_for(len(labels)),
        "temperature": known.get("value"),
        "fitted_images": known.get("images"),
        "at_bound": known.get("at_bound"),
        "note": note,
        "uncalibrated": scores(probabilities),
        "calibrated": None
        if temperature is None
        else scores(apply_temperature(probabilities, temperature.value)),
    }


def _logarithms(probabilities: Tensor) -> Tensor:
    p = probabilities.double()
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()  # none is -inf
