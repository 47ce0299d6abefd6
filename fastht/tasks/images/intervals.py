"""How sure the scores of a goal are: intervals over the patients of its cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastht.data.cases import Case, split_part
from fastht.tasks.images.supervised import Goal
from fastht.tasks.scores.intervals import Resampling


def resample_cases(cases: Sequence[Case]) -> Resampling:
    """Return resamples of patients; frames of a file without patient are drawn together."""
    return Resampling([case.patient for case in cases], [split_part(c.image)[0] for c in cases])


def score_intervals(
    goal: Goal, cases: Sequence[Case], **judged: Mapping[str, list[Any]]
) -> dict[str, Any]:
    """Return the intervals of a goal's scores; see :meth:`Resampling.record`.

    Args:
        goal: what is scored.
        cases: the images.
        judged: their entries in this order, as :meth:`Goal.judge` gives them, of the model
            ``before`` and ``after`` its training, or of one of these.
    """
    made = resample_cases(cases)
    statistics = {}
    for version, entries in judged.items():
        found = dict(entries)
        statistics[version] = made.statistics(lambda w, found=found: goal.resampled(found, w))  # type: ignore[misc]
    return made.record(**statistics)
