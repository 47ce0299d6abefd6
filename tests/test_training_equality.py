"""Thirty training steps of a small patched ViT, fused against reference: the same training."""

import pytest
import torch
from engines import DEVICE, WIDE_FUSED
from tiny_towers import images, randomize, tiny_tower

import fastht

STEPS = 30

pytestmark = pytest.mark.slow


def train(backend):
    """Return every loss and the final parameters."""
    torch.manual_seed(2)
    model = tiny_tower()
    config = fastht.HTConfig(bottleneck_dim=8, dropout=0.0)
    fastht.patch(model, config, backend=backend)
    randomize(fastht.adapter_parameters(model))
    model.to(DEVICE).train()
    x = images().to(DEVICE)
    parameters = list(fastht.adapter_parameters(model))
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    target = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), {k: v.cpu() for k, v in fastht.adapter_state_dict(model).items()}


@pytest.mark.parametrize("backend", WIDE_FUSED, indirect=True)
def test_thirty_steps_are_those_of_the_reference(backend):
    expected, wanted = train("reference")
    losses, parameters = train(backend)
    assert expected[-1] < 0.5 * expected[0]  # it does train
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    for name, value in wanted.items():
        torch.testing.assert_close(parameters[name], value, rtol=1e-3, atol=1e-4, msg=name)
