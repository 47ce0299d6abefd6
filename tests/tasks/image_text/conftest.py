"""Pictures of runs have few pixels here."""

import pytest


@pytest.fixture(autouse=True)
def _coarse(coarse_pictures):
    """Draw all pictures of these tests so."""
