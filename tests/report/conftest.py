"""A run in a file of its own, and a folder in the place of benchmarks/results."""

from __future__ import annotations

from pathlib import Path

import pytest
from fabricated_results import CPU, write

from benchmarks.report import __main__ as report
from benchmarks.report import style


@pytest.fixture
def file(tmp_path: Path):
    """Write a run to a file of its own."""

    def make(*entries, name: str = "run.json", machine=CPU, **other) -> Path:
        return write(tmp_path / name, *entries, machine=machine, **other)

    return make


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for benchmarks/results."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw with few pixels; those of a page are looked at in the test of each machine."""
    monkeypatch.setattr(style, "DPI", 30)
