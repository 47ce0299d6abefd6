"""How sure scores are: percentile bootstrap intervals over patients, all resamples at once.

A resample draws as many patients as there are, with replacement, and counts all images of each as
often as it was drawn: images of one patient resemble each other, so that intervals over single
images would be too narrow. (Cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their
Application, 1997, section 3.8.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
FEW = 10  # patients or images, below which intervals are rough
_LARGEST = 2**23  # numbers of a matrix of weights that is made at once: 64 MiB


class Interval(NamedTuple):
    """The ends of an interval; NaN where there is none."""

    low: float
    high: float


class Resampling:
    """The same resamples of a set of images for all scores, so that they can be compared in pairs.

    Args:
        groups: the patient of each image; ``None`` where it is not known, which is nobody else's.
            If none is known, the units that are drawn are images.
        files: the file of each image; images of one file without patient, such as the slices of a
            volume or an image with two captions, are drawn together. Default: each by itself.
        resamples: how many.
        seed: of the drawing. It depends on nothing else but the number of units, and these are
            numbered by their names, so that the order of the images does not matter.
        level: of the intervals, between 0 and 1.

    Attributes:
        unit: what is drawn, "patient" or "image".
        units: how many of them there are, images without patient among them.
        images: how many images there are.
        without_patient: how many of them have none though others do.

    Raises:
        ValueError: there is no image, or not a file for each, or a number is out of range.
    """

    def __init__(
        self,
        groups: Sequence[Hashable | None],
        files: Sequence[str] | None = None,
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
        level: float = LEVEL,
    ) -> None:
        if not groups:
            raise ValueError("no images to resample; give the patient of at least one, or None")
        if files is not None and len(files) != len(groups):
            raise ValueError(f"{len(files)} files for {len(groups)} images; give one for each")
        if resamples < 1 or not 0 < level < 1:
            raise ValueError(
                f"{resamples} resamples, level {level}; choose at least 1, and between 0 and 1"
            )
        self.resamples, self.seed, self.level = resamples, seed, level
        self.images = len(groups)
        unknown = sum(group is None for group in groups)
        self.unit = "image" if unknown == len(groups) else "patient"
        self.without_patient = 0 if self.unit == "image" else unknown
        keys: list[tuple[str, Hashable]] = [
            ("patient", group)
            if group is not None
            else ("alone", i)
            if files is None
            else ("file", files[i])
            for i, group in enumerate(groups)
        ]
        numbers = {key: number for number, key in enumerate(sorted(set(keys), key=_place))}
        self._owner = torch.tensor([numbers[key] for key in keys])
        self.units = len(numbers)

    @cached_property
    def weights(self) -> Tensor:
        """How often each image counts in each resample: float64 ``[resamples, n]``, whole numbers.

        It is large where there are many images; :meth:`statistics` makes it in parts.
        """
        return torch.cat(list(self._draw(max(1, _LARGEST // self.units))))

    def statistics(self, score: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return scores of each resample, ``[resamples]`` each.

        Args:
            score: weights ``[r, n]``, a row for each of some resamples, to the scores of these,
                ``[r]`` each.
        """
        parts = [score(weights) for weights in self._parts()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def means(self, values: Tensor) -> Tensor:
        """Return the mean over the images in each resample.

        Args:
            values: ``[n]``, or ``[n, k]`` for k scores; NaN is left out.

        Returns:
            ``[resamples]`` or ``[resamples, k]``, float64; NaN where all images drawn are left out.
        """
        return torch.cat([weighted_means(values, weights) for weights in self._parts()])

    def mean(self, values: Tensor) -> Interval:
        """Return the interval of a mean over the images, ``values`` ``[n]``; see :meth:`means`."""
        return self.percentile(self.means(values))

    def percentile(self, statistics: Tensor) -> Interval:
        """Return the interval of a score.

        Resamples in which it is not defined, as the AUC is where a class was not drawn, are left
        out. Where they are more than the interval leaves outside, or there is but one unit to
        draw, there is no interval: both ends are NaN.

        Args:
            statistics: the score of each resample, ``[resamples]``.
        """
        defined = statistics[~statistics.isnan()].double()
        outside = 1 - self.level
        if self.units < 2 or len(defined) < (1 - outside) * len(statistics):
            return Interval(math.nan, math.nan)
        ends = torch.tensor([outside / 2, 1 - outside / 2], dtype=torch.float64)
        return Interval(*defined.quantile(ends).tolist())

    def percentiles(self, statistics: Mapping[str, Tensor]) -> dict[str, Interval]:
        """Return the interval of each score; see :meth:`percentile`."""
        return {name: self.percentile(found) for name, found in statistics.items()}

    def difference(self, a: Tensor, b: Tensor) -> Interval:
        """Return the interval of a paired difference, of ``a`` less ``b``.

        Args:
            a: a score in each of these resamples, ``[resamples]``.
            b: another one, or that of another model on the same images.
        """
        return self.percentile(a - b)

    def describe(self) -> str:
        """Say in a sentence what the intervals are of."""
        units = f"{self.units:,} {self.unit}{'' if self.units == 1 else 's'}"
        text = (
            f"{100 * self.level:g} % intervals over {units}, percentile bootstrap of "
            f"{self.resamples:,} resamples, seed {self.seed}"
        )
        if self.unit == "image":
            text += "; no patient is named, so images count as if each were of another patient"
        if self.without_patient:
            text += f"; {self.without_patient:,} images without patient count as one each"
        if self.units == 1:
            return f"{text}: of one there are none."
        return f"{text}; intervals of {units} are rough." if self.units < FEW else f"{text}."

    def record(self, **versions: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return intervals and what they are of, as plain JSON types, for a ``results.json``.

        Args:
            versions: scores in each resample by their names, as :meth:`statistics` returns them,
                of the model ``before`` and ``after`` it was adapted, or of one of these.

        Returns:
            ``level``, ``resamples``, ``seed``, ``unit``, ``units`` and ``without_patient``; a
            ``note`` that says all this; the intervals of each version by score, ``[low, high]``;
            and with both versions those of the paired ``difference``, after less before.
        """
        names = ("level", "resamples", "seed", "unit", "units", "without_patient")
        made: dict[str, Any] = {name: getattr(self, name) for name in names}
        made["note"] = self.describe()
        for version, statistics in versions.items():
            made[version] = {name: list(self.percentile(s)) for name, s in statistics.items()}
        if {"before", "after"} <= versions.keys():
            before, after = versions["before"], versions["after"]
            made["difference"] = {
                name: list(self.difference(after[name], before[name]))
                for name in after
                if name in before
            }
        return made

    def _parts(self) -> Iterator[Tensor]:
        if self.resamples * self.images <= _LARGEST:
            yield self.weights
        else:
            yield from self._draw(max(1, _LARGEST // self.images))

    def _draw(self, rows: int) -> Iterator[Tensor]:
        """Yield weights ``[rows, n]``, the same ones in sum whatever the number of rows."""
        generator = np.random.default_rng(self.seed)
        for start in range(0, self.resamples, rows):
            count = min(rows, self.resamples - start)
            drawn = generator.integers(0, self.units, (count, self.units))
            drawn += np.arange(count)[:, None] * self.units
            counts = np.bincount(drawn.ravel(), minlength=count * self.units)
            of_units = torch.from_numpy(counts).view(count, self.units).double()
            yield of_units[:, self._owner]


def _place(key: tuple[str, Hashable]) -> tuple[str, Any]:
    """Return what units are sorted by."""
    kind, name = key
    return kind, name if kind == "alone" else repr(name)


def weighted_means(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over the images in each resample; NaN is left out.

    Args:
        values: ``[n]`` or ``[n, k]``.
        weights: ``[r, n]``.

    Returns:
        ``[r]`` or ``[r, k]``, float64; NaN where nothing is left.
    """
    values = values.double()
    defined = ~values.isnan()
    total = weights @ values.where(defined, torch.zeros_like(values))
    # The weights of a resample of patients of unlike size need not sum to n.
    return total / (weights @ defined.double())


def shared_weights(weights: Tensor, owner: Tensor, count: int) -> Tensor:
    """Return the weights of what several images share, as a caption: the mean of theirs.

    Args:
        weights: of the images, ``[r, n]``.
        owner: which of the shared things each image has, ``[n]``, int64.
        count: how many of these there are.

    Returns:
        ``[r, count]``; all 1 where those of the images are.
    """
    sums = weights.new_zeros(len(weights), count).index_add_(1, owner, weights)
    return sums / owner.bincount(minlength=count)
