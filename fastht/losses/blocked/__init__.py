"""The sweeps in plain PyTorch, block by block: any device, no more than a few blocks of memory."""

from fastht.losses.blocked.at_once import can_be_at_once, forward_and_backward
from fastht.losses.blocked.backward_sweep import backward
from fastht.losses.blocked.forward_sweep import forward

__all__ = ["backward", "can_be_at_once", "forward", "forward_and_backward"]
