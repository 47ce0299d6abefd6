"""Soft targets of a batch from its tags: time on the CPU, behind a check against loops."""

from __future__ import annotations

import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastht.losses import SoftTargets
from fastht.losses.targets import factors
from fastht.taxonomy import load_taxonomy
from fastht.taxonomy.similarity import dimension_numbers, similarity_matrix

TAGS = 4  # a record, of any dimensions
CHECKED = 24  # records that loops are run for


def targets(batch: int) -> tuple[SoftTargets, torch.Tensor]:
    """Return random targets as published, and the tags they are of."""
    taxonomy = load_taxonomy()
    generator = torch.Generator().manual_seed(0)
    tags = torch.randint(0, len(taxonomy.tags), (batch, TAGS), generator=generator)
    similarity = torch.from_numpy(similarity_matrix(taxonomy)).float()
    dimensions = torch.from_numpy(dimension_numbers(taxonomy))
    return SoftTargets.from_tags(tags, similarity, dimensions, missing="zero"), tags


def dense(made: SoftTargets) -> torch.Tensor:
    """Return ``[B, B]`` from tag numbers: what a loss takes of them, and the product."""
    q, p, _, _ = factors(made.rows, made.columns, made.table, torch.float32)
    assert q is not None
    assert p is not None
    return (q @ p.T).fill_diagonal_(1.0)


def check(found: torch.Tensor, tags: torch.Tensor) -> None:
    """Compare the first records with the mean similarity over pairs of tags, one by one."""
    taxonomy = load_taxonomy()
    similarity, of = similarity_matrix(taxonomy), dimension_numbers(taxonomy)
    for i in range(CHECKED):
        for j in range(CHECKED):
            total = 0.0
            for dimension in range(len(taxonomy.dimensions)):
                a, b = ([t for t in tags[row].tolist() if of[t] == dimension] for row in (i, j))
                if a and b:
                    total += sum(similarity[x, y] for x in a for y in b) / (len(a) * len(b))
            expected = 1.0 if i == j else total / len(taxonomy.dimensions)
            assert abs(float(found[i, j]) - expected) < 1e-6


@pytest.mark.parametrize("batch", [256, 1024, 4096])
@pytest.mark.benchmark(timer=time.process_time)
def test_soft_targets(benchmark: BenchmarkFixture, batch: int) -> None:
    if benchmark.disabled and batch > 256:
        pytest.skip("one size is enough where nothing is measured")
    made, tags = targets(batch)
    check(dense(made), tags)
    benchmark.pedantic(dense, (made,), rounds=7, iterations=4, warmup_rounds=1)
