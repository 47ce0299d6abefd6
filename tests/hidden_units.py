"""What the noise gate's ReLU is given, read off the reference."""

import pytest
import torch.nn.functional as F

from fastht import reference


def hidden_units(x, params, **options):
    """Return the gate's hidden units before the ReLU, ``[B, C // 4]``."""
    given = []
    relu = F.relu

    def note(hidden):
        given.append(hidden.detach())
        return relu(hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "relu", note)
        reference.ht_adapter(x, params, **options)
    (hidden,) = given
    return hidden
