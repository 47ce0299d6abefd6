"""A pytest plugin that patches every model which another library's test suite creates.

``-p patch_plugin`` with FASTHT_CLIENTS=1 puts fresh adapters into the models that ``timm`` and
``open_clip`` create, in this process alone. Fresh ones compute nothing new, so that a suite's own
expectations hold. What has no vision transformer is refused and stays as it is. All are counted.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from typing import Any

import torch

import fastht

counts: Counter[str] = Counter()
_making: list[str] = []  # open_clip creates timm's models inside of its own


def _patched(model: Any) -> Any:
    if isinstance(model, torch.jit.ScriptModule):
        counts["scripted"] += 1
        return model
    try:
        with torch.random.fork_rng():  # the suites seed what they compare
            # Without dropout: it draws from the generator of the base's own.
            fastht.patch(model, fastht.HTConfig(dropout=0.0))
        counts["patched"] += 1
    except fastht.UnsupportedModelError:
        counts["refused"] += 1
    return model


def _wrap(module: Any, name: str) -> None:
    create = getattr(module, name)

    @functools.wraps(create)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _making.append(name)
        try:
            made = create(*args, **kwargs)
        finally:
            _making.pop()
        if _making:  # what is made around it is patched
            return made
        return (_patched(made[0]), *made[1:]) if isinstance(made, tuple) else _patched(made)

    setattr(module, name, wrapper)


if os.environ.get("FASTHT_CLIENTS"):
    import open_clip
    import timm

    _wrap(timm, "create_model")
    _wrap(open_clip, "create_model_and_transforms")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep the tests of the models in FASTHT_CLIENTS_MODELS."""
    wanted = set(os.environ["FASTHT_CLIENTS_MODELS"].split())

    def fits(item: Any) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return parameters.get("model_name") in wanted

    left_out = [item for item in items if not fits(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if fits(item)]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many models were patched."""
    terminalreporter.write_line(f"models: {dict(counts)}")
