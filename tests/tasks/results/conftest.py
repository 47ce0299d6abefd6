"""These tests look at pictures."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def pictures():
    """Draw them all."""
