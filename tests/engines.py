"""What the shared tests run through: every usable backend, of ``cpu`` each instruction-set path.

An engine is ``"backend"`` or ``"backend/path"``; the fixture ``backend`` of conftest.py turns one
into the name of a backend that takes that path.
"""

import itertools

import pytest
import torch

from fastht import backends
from fastht.ops import cpu, registry

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING_PATHS = ("amx_bf16", "avx512_bf16")  # their products are in bfloat16 alone


def takes(backend, dtype):
    """Tell whether a backend, on the path that is forced, takes tokens of a dtype here."""
    if registry._BACKENDS[backend].refuses(DEVICE, dtype) is not None:
        return False
    try:
        return backend != "cpu" or bool(cpu.path(dtype))
    except ValueError:
        return False


def _engine(name):
    return pytest.param(name, marks=pytest.mark.gpu) if DEVICE == "cuda" else name


def _names():
    for name, status in backends().items():
        if status.usable and registry._BACKENDS[name].refuses(DEVICE, torch.float32) is None:
            yield from [f"cpu/{path}" for path in cpu.paths()] if name == "cpu" else [name]


ENGINES = [_engine(name) for name in _names()]
FUSED = [_engine(name) for name in _names() if name != "reference"]
# Those that take float32, and the fused ones among them.
WIDE = [_engine(name) for name in _names() if not name.endswith(ROUNDING_PATHS)]
WIDE_FUSED = [_engine(n) for n in _names() if n != "reference" and not n.endswith(ROUNDING_PATHS)]


def long_if_interpreted(engines, *axes, when=lambda *case: True, longer=lambda *case: False):
    """Return engines times the values of each axis, for ``pytest.mark.parametrize``.

    Of those that Triton's interpreter would run, the ones of which ``when`` is true are for
    ``-m slow``, and those of which ``longer`` is true for ``-m sweep``.
    """
    found = []
    for engine, *case in itertools.product(engines, *axes):
        values = engine.values if hasattr(engine, "values") else [engine]
        marks = list(getattr(engine, "marks", ()))
        if values[0] == "triton" and DEVICE == "cpu":
            if longer(*case):
                marks.append(pytest.mark.sweep)
            elif when(*case):
                marks.append(pytest.mark.slow)
        found.append(pytest.param(*values, *case, marks=marks))
    return found
