"""The rule of correctness where images are like their texts, and the KL term is small.

It is then a small difference of large numbers, of which the dense form in float32 keeps more digits
than sums do that were rounded on their own.
"""

import pytest
import torch
from loss_cases import CANDIDATES, make_batch
from numerics import Draw, violations
from torch.nn import functional as F

from fastht.losses import SoftLabels, SoftTargets, soft_label_loss

LABELS = SoftLabels(kl=1.0, mse=0.0, temperature=0.07)


def broken(backend, spoil=1.0):
    def draw(i):
        batch = make_batch(48, torch.float32, alike=1.0, width=64, seed=i)
        own = F.one_hot(batch.tags[:, 0].clamp(min=0), 6)[:, :5].float()  # some have none

        def value(dtype, backend):
            targets = SoftTargets.from_factors(
                (own @ batch.similarity[:5, :5] / 10).to(dtype), own.to(dtype)
            )
            images, texts = batch.images.to(dtype), batch.texts.to(dtype)
            loss = soft_label_loss(images, texts, targets, LABELS, backend=backend)
            return {"loss": loss.double()}

        exact, plain = value(torch.float64, "reference"), value(torch.float32, "reference")
        assert 1e-5 < exact["loss"] < 1e-2
        found = {"loss": spoil * value(torch.float32, backend)["loss"]}
        return Draw(found, plain, exact, batch.images, batch.images)

    return violations(draw, 3, ceilings=False)


@pytest.mark.parametrize("backend", CANDIDATES)
def test_error_at_most_twice_that_of_plain_pytorch(backend):
    assert broken(backend) == {}


def test_a_thousandth_breaks_the_rule():
    assert set(broken("blocked", spoil=1.001)) == {"loss"}
