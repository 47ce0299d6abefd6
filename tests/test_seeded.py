"""Draws from a seed of their own leave everybody else's as they are, those of GPUs too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastht
from fastht.seeded import seeded


def test_the_draws_are_those_of_the_seed_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpus: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", on_gpus.append)
    torch.manual_seed(3)
    assert on_gpus == [3]  # what it is seen by
    before = torch.get_rng_state()
    drawn = []
    for seed in (5, 5, 6):
        with seeded(seed):
            drawn.append(torch.rand(4))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert on_gpus == [3]


def test_nothing_in_the_package_reseeds_gpus_but_what_forks_them() -> None:
    package = Path(fastht.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "torch.manual_seed(" in path.read_text(encoding="utf-8")
    }
    assert found == {"bench/lineup.py"}
