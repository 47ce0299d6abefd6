"""What a suite leaves out: who cannot run here, and most cases where nothing is measured."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import cases, operators


def shape_to_run(
    benchmark: BenchmarkFixture, contestant: str, dtype: str, shape: cases.Shape, *, first: bool
) -> cases.Shape:
    """Return the shape of a test's case, or ``TINY`` where nothing is measured.

    Skips the test if the contestant cannot run here on tokens of ``dtype``, and where nothing is
    measured if the case is not the ``first`` of the suite.
    """
    if reason := operators.unusable(contestant, dtype):
        pytest.skip(reason)
    if benchmark.disabled:
        if not first:
            pytest.skip("one case is enough where nothing is measured")
        return cases.TINY
    return shape
