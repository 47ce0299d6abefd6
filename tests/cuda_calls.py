"""One call of the CUDA backend on a CPU, launch by launch, every array in the test's hands."""

import ctypes

import numpy as np
import torch

from fastht import HTAdapter, HTConfig
from fastht.ops.cuda import adapter, native, simulated
from fastht.ops.custom_op import parameter_names

FORMATS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}


class SmallCall:
    """A small adapter's call: arrays by name, full of NaN where nothing was written yet."""

    def __init__(self, dtype, products, *, tf32=False, dim=128, channels=64, grid=(5, 6), prefix=1,
                 spectral="channel", dropout=0.1, batch=2):  # fmt: skip
        torch.manual_seed(0)
        config = HTConfig(bottleneck_dim=channels, spectral=spectral, init="paper")
        module = HTAdapter(dim, config, grid_size=grid)
        named = dict(module.named_parameters())
        self.params = {name: named[name].detach() for name in parameter_names(True, True)}
        tokens, padded = prefix + grid[0] * grid[1], native.padded_channels(channels)
        self.configuration = adapter.Configuration(
            batch, prefix, *grid, dim, channels, channels // 4, 1e-5, True,
            1 if spectral == "channel" else 2, FORMATS[dtype], FORMATS[products], tf32, dropout,
            True,
        )  # fmt: skip
        self.dropout, self.dtype, self.dim, self.tokens = dropout, dtype, dim, tokens

        def empty(kind, *shape):
            return torch.full(shape, float("nan"), dtype=kind)

        self.x = torch.randn(batch, tokens, dim).to(dtype)
        self.out = empty(dtype, batch, tokens, dim)
        self.saved = {
            "u": empty(products, batch, tokens, padded),
            "u_norm": empty(products, batch, tokens, padded),
            "stats": empty(torch.float32, batch, tokens, 2),
            "pooled": empty(torch.float32, batch, padded),
            "gate": empty(torch.float32, batch, 4),
        }
        self.seed = torch.tensor([7], dtype=torch.int64)
        self.dout = torch.randn(batch, tokens, dim).to(dtype)
        self.dx = empty(dtype, batch, tokens, dim)
        self.grads = {name: torch.full_like(p, float("nan")) for name, p in self.params.items()}

    def arrays(self):
        """Return every array that a launch may touch, by name."""
        return {
            "x": self.x, "out": self.out, "seed": self.seed, "workspace": self.workspace,
            "dout": self.dout, "dx": self.dx, **self.saved, **self.params,
            **{f"grad of {name}": g for name, g in self.grads.items()},
        }  # fmt: skip

    def run(self, needs, observe=None):
        """Run a pass in the simulator; ``observe(kernel, blocks, threads, shared, params address,
        simulate)`` is called instead of each launch, and calls ``simulate()`` for it."""
        plan, wanted = adapter.plan_of(self.configuration, simulated.DEVICE, needs)
        self.workspace = torch.full((plan.workspace_bytes,), 255, dtype=torch.uint8)
        threads = [count for _, _, count in plan.kernels]
        launch = simulated.launcher(wanted, threads)

        def observed(kernel, blocks, shared, params):
            def simulate():
                launch(kernel, blocks, shared, params)

            if observe is None:
                simulate()
            else:
                observe(wanted[kernel], blocks, threads[kernel], shared, params, simulate)

        def tokens(t):
            return t.data_ptr(), t.stride(0), t.stride(1)

        def listed(tensors):
            return [(t.data_ptr(), FORMATS[t.dtype]) for t in tensors.values()]

        ends = (
            self.seed.data_ptr() if self.dropout else 0,
            [t.data_ptr() for t in self.saved.values()],
            self.workspace.data_ptr(),
        )
        problem, target = self.configuration.problem(), native.Target(observed)
        if needs is None:
            plan.run(
                problem, target, 0, tokens(self.x), tokens(self.out), listed(self.params), *ends
            )
            return
        rebuild = needs[2:] == (True,)  # x of the output, where dx comes afterwards
        plan.run(
            problem, target, 0, tokens(self.dout), tokens(self.dx if rebuild else self.x),
            tokens(self.dx) if needs[0] else None, listed(self.params),
            listed(self.grads) if needs[1] else None, *ends,
            tokens(self.out) if rebuild else None,
        )  # fmt: skip


def raw(tensor):
    """Return a tensor's memory as numpy bytes, shared with it."""
    size = tensor.numel() * tensor.element_size()
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(tensor.data_ptr()))
