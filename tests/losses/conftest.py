"""Fixtures of the losses' tests."""

import pytest
import torch


@pytest.fixture
def strict():
    """Allow no TensorFloat-32, as PyTorch does where nobody asks for it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before
