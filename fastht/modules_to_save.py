"""Which modules of the base train beside the adapters, and are saved with them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fastht.backbones import find_backbone


def resolve_modules(root: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that ``names`` are, or else those that end with them.

    Raises:
        TypeError: ``names`` is no sequence of texts.
        ValueError: a name fits no module that has parameters, or one with adapters inside.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"modules_to_save is {names!r}; give a list of names")
    own = {path: m for path, m in root.named_modules() if path and list(m.parameters())}
    found = []
    for name in names:
        fitting = [name] if name in own else [path for path in own if path.endswith(f".{name}")]
        if not fitting:
            children = [n for n, child in root.named_children() if list(child.parameters())]
            raise ValueError(
                f"modules_to_save names {name!r}, and {type(root).__name__} has no module of that "
                f"name with parameters; it holds {', '.join(children)}"
            )
        found += fitting
    paths = tuple(sorted(set(found)))
    blocks = set(find_backbone(root).blocks)
    for path in paths:
        if blocks & set(own[path].modules()):
            raise ValueError(
                f"modules_to_save names {path!r}, which holds the vision blocks; name smaller parts"
            )
        if any(p.is_inference() for p in own[path].parameters()):
            raise ValueError(
                f"modules_to_save names {path!r}, whose parameters were made in "
                "torch.inference_mode and cannot train; build the model outside of it"
            )
    return paths
