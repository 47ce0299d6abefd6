"""Pictures of runs have few pixels here; and pairs that have tags of findings in columns."""

import csv

import pytest


@pytest.fixture(autouse=True)
def _coarse(coarse_pictures):
    """Draw all pictures of these tests so."""


@pytest.fixture(scope="session")
def tagged_pairs(pairs):
    """The pairs with two columns of tags, which some rows lack."""
    with pairs.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        solid = "solid" in row["title"]
        row["Diagnosis"] = "" if i < 5 else "mass" if solid else "cyst"
        row["Echogenicity"] = "" if i % 3 == 0 else "hyperechoic" if solid else "anechoic"
    path = pairs.with_name("tagged.csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
