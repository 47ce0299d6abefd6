"""Finding the vision transformer in a model: its blocks, width, patch grid and prefix tokens."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastht.families import FAMILIES, SUPPORTED, Family, GridReader, UnsupportedModelError
from fastht.layout import observed_sequence_first
from fastht.wrappers import unwrap_part

__all__ = ["Backbone", "GridReader", "UnsupportedModelError", "find_backbone"]


@dataclass(frozen=True)
class Backbone:
    """One vision transformer inside a model.

    Attributes:
        family: the layout's name, e.g. ``"timm"``.
        path: the tower's module path inside the model, ``""`` for the model itself.
        tower: the module that holds the blocks.
        blocks: the transformer blocks in order.
        patch_projection: the module that is called once for the images and tells their patch grid.
        dim: features a token, D.
        grid_size: ``(H, W)`` at the image size that the tower was built for.
        num_prefix_tokens: class and register tokens before the patches, P.
        declared_sequence_first: :attr:`sequence_first`, where the blocks say so.
        read_grid: returns ``(H, W)`` from the patch projection's arguments and output.
        masked: the module that is told which patches are padding, or ``None``.
    """

    family: str
    path: str
    tower: nn.Module
    blocks: tuple[nn.Module, ...]
    patch_projection: nn.Module
    dim: int
    grid_size: tuple[int, int]
    num_prefix_tokens: int
    declared_sequence_first: bool | None
    read_grid: GridReader
    masked: nn.Module | None = None

    @functools.cached_property
    def sequence_first(self) -> bool:
        """Whether the blocks take ``[N, B, D]`` instead of ``[B, N, D]``.

        Raises:
            UnsupportedModelError: they do not say, and a trial does not show it.
        """
        if self.declared_sequence_first is not None:
            return self.declared_sequence_first
        tried = (observed_sequence_first(block, self.dim) for block in self.blocks)
        observed = next((answer for answer in tried if answer is not None), None)
        if observed is None:
            raise UnsupportedModelError(
                f"it cannot be told whether a {type(self.blocks[0]).__name__} takes tokens as "
                "[batch, token, feature] or [token, batch, feature]: images might be mixed"
            )
        return observed

    def shape(self) -> dict[str, Any]:
        """Return what must agree for an adapter to fit, as plain JSON types."""
        return {
            "dim": self.dim,
            "depth": len(self.blocks),
            "grid_size": list(self.grid_size),
            "num_prefix_tokens": self.num_prefix_tokens,
        }


def find_backbone(model: nn.Module) -> Backbone:
    """Find the one vision transformer inside ``model``.

    Args:
        model: a CLIP-like model, its vision tower, or a bare vision transformer.

    Raises:
        UnsupportedModelError: there is none, there are several, or it drops patches in training.
    """
    found: list[tuple[str, nn.Module, Family]] = []
    for path, module in model.named_modules():
        if any(not p or path.startswith(f"{p}.") for p, _, _ in found):
            continue  # inside a tower that was found already
        if unwrap_part(module) is not module:
            continue  # the module inside comes next
        family = next((family for family in FAMILIES if family.matches(module)), None)
        if family is not None:
            found.append((path, module, family))
    if not found:
        if isinstance(model, torch.jit.ScriptModule | torch.fx.GraphModule):
            raise UnsupportedModelError(
                f"{type(model).__name__} is a graph that was made of a model; patch the model "
                "itself, before torch.jit, torch.fx or torch.export see it"
            )
        raise UnsupportedModelError(
            f"found no vision transformer in {_describe(model)}; fastht patches {SUPPORTED}"
        )
    if len(found) > 1:
        paths = ", ".join(repr(path) for path, _, _ in found)
        raise UnsupportedModelError(
            f"{type(model).__name__} holds several vision transformers ({paths}); "
            "patch the one that you want by passing that submodule"
        )
    path, tower, family = found[0]
    layout = family.read(tower)
    height, width = layout.grid_size
    return Backbone(
        family=family.name,
        path=path,
        tower=tower,
        blocks=tuple(unwrap_part(block) for block in layout.blocks),
        patch_projection=unwrap_part(layout.patch_projection),
        dim=layout.dim,
        grid_size=(int(height), int(width)),
        num_prefix_tokens=layout.num_prefix_tokens,
        declared_sequence_first=layout.sequence_first,
        read_grid=layout.read_grid,
        masked=layout.masked,
    )


def _describe(model: nn.Module) -> str:
    """Name the model's class and what stands where a vision tower would."""
    names = [type(model).__name__]
    for attribute in ("visual", "trunk", "vision_model"):
        child = getattr(model, attribute, None)
        if isinstance(child, nn.Module):
            names.append(f"{attribute}={type(child).__name__}")
            model = child
    return " with ".join([names[0], ", ".join(names[1:])]) if len(names) > 1 else names[0]
