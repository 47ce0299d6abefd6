"""What every picture says of itself: images, patients, the model, and whether it is simulated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastht.data.cases import Case

SIMULATED = "These images are SIMULATED: they show that things work, nothing clinical."
"""What a command prints where its data is the sample."""


@dataclass(frozen=True)
class Shown:
    """What a picture is of.

    Attributes:
        images: how many; ``None``: not known, or not the same in all that is drawn.
        patients: how many patients they are of; ``None``: not known.
        model: name of the base and of its weights, as ``"ViT-B-16/openai"``; "none" are random
            ones. ``None``: several.
        data: source of the images; "sample" are simulated ones.
    """

    images: int | None = None
    patients: int | None = None
    model: str | None = None
    data: str | None = None

    def sentence(self) -> str:
        """Return the line below the picture."""
        parts = []
        if self.images is not None:
            count = f"n = {self.images:,} image{'' if self.images == 1 else 's'}"
            if self.patients is not None:
                count += f", {self.patients:,} patient{'' if self.patients == 1 else 's'}"
            parts.append(count)
        if self.model is not None:
            name, _, weights = self.model.rpartition("/")
            random = weights == "none" and bool(name)
            parts.append(f"model {name}, RANDOM weights" if random else f"model {self.model}")
        if self.data == "sample":
            parts.append("SIMULATED images")
        return "; ".join(parts)


def shown_cases(cases: Sequence[Case], model: str, data: str) -> Shown:
    """Return what a picture of cases is of: patients are counted where every case names one."""
    return Shown(len(cases), count_patients(case.patient for case in cases), model, data)


def shown_runs(runs: Sequence[Mapping[str, Any]]) -> Shown:
    """Return what a picture of runs on one data set is of: what is the same in all of them."""
    patients = [
        found.get("units") if found.get("unit") == "patient" else None
        for found in (run.get("intervals") or {} for run in runs)
    ]
    return Shown(
        images=_common(run.get("test_images") for run in runs),
        patients=_common(patients),
        model=_common(run["model"] for run in runs),
        data=_common(run["data"] for run in runs),
    )


def count_patients(patients: Iterable[str | None]) -> int | None:
    """Return how many different patients there are; ``None`` where one is not known."""
    different = set(patients)
    return None if None in different else len(different)


def _common(values: Iterable[Any]) -> Any:
    different = set(values)
    return different.pop() if len(different) == 1 else None
