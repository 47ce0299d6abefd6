"""Linear probes of frozen features: scikit-learn's logistic regression, its C chosen on others.

Features are scaled to mean 0 and variance 1 of what is learned from; the regression is that of
lbfgs, classes weighing alike, at most 3,000 iterations. C is the one of a few by which images that
are not learned from have the largest F1, a mean weighted by the classes' images; of equal ones the
smallest, which regularises most. (Protocol: EchoCare-CLIP, arXiv 2605.02126.)
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
FIXED = 1.0  # where there is too little to choose by
_ITERATIONS = 3000
_FOLDS = 5


@dataclass(frozen=True)
class Strength:
    """The C of a regression, and how it was chosen.

    Attributes:
        c: inverse of the regularisation.
        how: in words.
    """

    c: float
    how: str


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        pipeline: scaler and regression.
        strength: its C.
        converged: whether the last fit came to its end.
    """

    pipeline: Pipeline
    strength: Strength
    converged: bool

    def probabilities(self, features: Tensor, classes: int) -> Tensor:
        """Return ``[n, classes]``, float64: 0 for a class that nothing was learned of."""
        found = torch.zeros(len(features), classes, dtype=torch.float64)
        known = torch.from_numpy(np.asarray(self.pipeline.classes_, np.int64))
        found[:, known] = torch.from_numpy(
            np.asarray(self.pipeline.predict_proba(_array(features)), np.float64)
        )
        return found


def fit_probe(features: Tensor, labels: Tensor, strength: Strength) -> Probe:
    """Learn a probe.

    Args:
        features: ``[n, D]``.
        labels: ``[n]``, class indices, of two classes at least.
        strength: its C.
    """
    pipeline, converged = _fit(_array(features), labels.numpy(), strength.c)
    return Probe(pipeline, strength, converged)


def choose_on(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    strengths: Sequence[float] = STRENGTHS,
) -> Strength:
    """Choose C by the weighted F1 of validation images.

    Args:
        train: features ``[n, D]`` and labels ``[n]`` to learn from.
        val: those to choose by.
        strengths: of which.
    """
    if len(strengths) == 1:
        return Strength(strengths[0], "given")
    x, y = _array(train[0]), train[1].numpy()
    val_x, val_y = _array(val[0]), val[1].numpy()
    scores = [_weighted_f1(val_y, _fit(x, y, c)[0].predict(val_x)) for c in strengths]
    count = len(val_y)
    return Strength(strengths[int(np.argmax(scores))], f"of {count:,} images of val")


def choose_inside(
    features: Tensor,
    labels: Tensor,
    groups: Sequence[Hashable],
    strengths: Sequence[float] = STRENGTHS,
    *,
    seed: int = 0,
) -> Strength:
    """Choose C by cross-validation within what is learned from.

    At most five folds that part no group, classes alike in each as far as can be. Where a class has
    fewer than two groups there is nothing to choose by, and C is 1, or the middle one of those
    given.

    Args:
        features: ``[n, D]``.
        labels: ``[n]``, class indices.
        groups: the patient, or else the file, of each image.
        strengths: of which.
        seed: of the folds.
    """
    if len(strengths) == 1:
        return Strength(strengths[0], "given")
    fixed = FIXED if FIXED in strengths else sorted(strengths)[len(strengths) // 2]
    x, y = _array(features), labels.numpy()
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    owners = np.array([numbers[group] for group in groups])
    fewest = min(len(set(owners[y == label].tolist())) for label in set(y.tolist()))
    if fewest < 2:
        return Strength(fixed, "fixed: a class has one shot or patient, too few to choose by")
    folds = list(_folds(x, y, owners, min(_FOLDS, fewest), seed))
    every = set(y.tolist())
    if any(set(y[train].tolist()) != every for train, _ in folds):
        return Strength(fixed, "fixed: no folds have every class to learn from")
    scores = []
    for c in strengths:
        predicted = np.empty_like(y)
        for train, held_out in folds:
            predicted[held_out] = _fit(x[train], y[train], c)[0].predict(x[held_out])
        scores.append(_weighted_f1(y, predicted))
    return Strength(strengths[int(np.argmax(scores))], f"of {len(folds)} folds within the shots")


def _folds(
    x: np.ndarray, y: np.ndarray, owners: np.ndarray, count: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    made = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for train, held_out in made.split(x, y, owners):
        if len(held_out):
            yield train, held_out


def _fit(x: np.ndarray, y: np.ndarray, c: float) -> tuple[Pipeline, bool]:
    regression = LogisticRegression(
        C=c, class_weight="balanced", max_iter=_ITERATIONS, solver="lbfgs"
    )
    pipeline = make_pipeline(StandardScaler(), regression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `converged`
        pipeline.fit(x, y)
    return pipeline, bool((regression.n_iter_ < _ITERATIONS).all())


def _weighted_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(true, predicted, average="weighted", zero_division=0))


def _array(features: Tensor) -> np.ndarray:
    return features.double().numpy()
