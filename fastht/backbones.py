"""Where a vision transformer keeps its blocks, width, patch grid and prefix tokens.

Towers are recognised by structure, not by class, so a fork, a subclass or another release of the
same library is found too. One :class:`Family` per layout; a new one is one more entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

SUPPORTED = (
    "the ViT towers of open_clip, OpenAI's clip, timm (vit*, deit*, beit*, eva*, vitamin*, DINOv2) "
    "and transformers (CLIP, SigLIP)"
)


# Where torch.compile and torch's checkpoint_wrapper keep the module that they wrap. Either may be
# put around a block, before or after patching; the adapter belongs to the block itself.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")


class UnsupportedModelError(ValueError):
    """The model has no vision transformer that fastht knows how to patch."""


@dataclass(frozen=True)
class Backbone:
    """One vision transformer inside a model.

    Attributes:
        family: the layout's name, e.g. ``"timm"``.
        path: the tower's module path inside the model, ``""`` for the model itself.
        tower: the module that holds the blocks.
        blocks: the transformer blocks in order.
        patch_projection: the module whose output ``[B, D, H, W]`` is the patch grid.
        dim: features a token, D.
        grid_size: ``(H, W)`` at the image size that the tower was built for.
        num_prefix_tokens: class and register tokens before the patches, P.
        sequence_first: whether the blocks take ``[N, B, D]`` instead of ``[B, N, D]``.
    """

    family: str
    path: str
    tower: nn.Module
    blocks: tuple[nn.Module, ...]
    patch_projection: nn.Module
    dim: int
    grid_size: tuple[int, int]
    num_prefix_tokens: int
    sequence_first: bool = False

    def shape(self) -> dict[str, Any]:
        """Return what must agree for an adapter to fit, as plain JSON types."""
        return {
            "dim": self.dim,
            "depth": len(self.blocks),
            "grid_size": list(self.grid_size),
            "num_prefix_tokens": self.num_prefix_tokens,
        }


@dataclass(frozen=True)
class Family:
    """A way to lay out a vision transformer: how to recognise it, and how to read it."""

    name: str
    matches: Callable[[nn.Module], bool]
    read: Callable[[nn.Module], dict[str, Any]]


def _is_openai(module: nn.Module) -> bool:
    return (
        isinstance(getattr(module, "conv1", None), nn.Conv2d)
        and hasattr(module, "class_embedding")
        and hasattr(getattr(module, "transformer", None), "resblocks")
    )


def _read_openai(module: Any) -> dict[str, Any]:
    grid = getattr(module, "grid_size", None)
    if grid is None:
        side = module.input_resolution // module.conv1.stride[0]
        grid = (side, side)
    _refuse_patch_dropout(getattr(module, "patch_dropout", None), "force_patch_dropout=0.0")
    return {
        "blocks": tuple(module.transformer.resblocks),
        "patch_projection": module.conv1,
        "dim": module.conv1.out_channels,
        "grid_size": grid,
        "num_prefix_tokens": 1,
        # OpenAI's package has no such attribute: its blocks are always sequence first.
        "sequence_first": not getattr(module.transformer, "batch_first", False),
    }


# What timm's towers have whose class token joins the patches after the blocks, or halfway: CaiT,
# XCiT, ConViT. Their blocks do not see the tokens that num_prefix_tokens promises.
_LATE_CLASS_TOKEN = ("blocks_token_only", "cls_attn_blocks", "local_up_to_layer")


def _is_timm(module: nn.Module) -> bool:
    return (
        not any(hasattr(module, name) for name in _LATE_CLASS_TOKEN)
        and isinstance(getattr(getattr(module, "patch_embed", None), "proj", None), nn.Module)
        and isinstance(getattr(module, "blocks", None), nn.Sequential | nn.ModuleList)
        and isinstance(getattr(module, "embed_dim", None), int)
        and isinstance(getattr(module, "num_prefix_tokens", None), int)
    )


def _read_timm(module: Any) -> dict[str, Any]:
    _refuse_patch_dropout(getattr(module, "patch_drop", None), "patch_drop_rate=0")
    return {
        "blocks": tuple(module.blocks),
        "patch_projection": module.patch_embed.proj,
        "dim": module.embed_dim,
        "grid_size": module.patch_embed.grid_size,
        "num_prefix_tokens": module.num_prefix_tokens,
    }


def _is_transformers(module: nn.Module) -> bool:
    embeddings = getattr(module, "embeddings", None)
    return isinstance(getattr(embeddings, "patch_embedding", None), nn.Conv2d) and isinstance(
        getattr(getattr(module, "encoder", None), "layers", None), nn.ModuleList
    )


def _read_transformers(module: Any) -> dict[str, Any]:
    embeddings = module.embeddings
    side = embeddings.image_size // embeddings.patch_size
    return {
        "blocks": tuple(module.encoder.layers),
        "patch_projection": embeddings.patch_embedding,
        "dim": embeddings.embed_dim,
        "grid_size": (side, side),
        "num_prefix_tokens": 1 if hasattr(embeddings, "class_embedding") else 0,
    }


FAMILIES = (
    Family("openai", _is_openai, _read_openai),
    Family("timm", _is_timm, _read_timm),
    Family("transformers", _is_transformers, _read_transformers),
)


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
    height, width = layout.pop("grid_size")
    return Backbone(
        family=family.name,
        path=path,
        tower=tower,
        blocks=tuple(unwrap_part(block) for block in layout.pop("blocks")),
        patch_projection=unwrap_part(layout.pop("patch_projection")),
        grid_size=(int(height), int(width)),
        **layout,
    )


def unwrap_part(module: nn.Module) -> nn.Module:
    """Return what wrappers around a part of a model hold, or ``module`` itself."""
    for name in _WRAPPED:
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return unwrap_part(inner)
    return module


def plain_name(name: str) -> str:
    """Return a parameter's name as it is without wrappers around parts of the model."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _describe(model: nn.Module) -> str:
    """Name the model's class and what stands where a vision tower would."""
    names = [type(model).__name__]
    for attribute in ("visual", "trunk", "vision_model"):
        child = getattr(model, attribute, None)
        if isinstance(child, nn.Module):
            names.append(f"{attribute}={type(child).__name__}")
            model = child
    return " with ".join([names[0], ", ".join(names[1:])]) if len(names) > 1 else names[0]


def _refuse_patch_dropout(module: nn.Module | None, remedy: str) -> None:
    """Raise if the tower drops patches in training: the rest form no grid to convolve over."""
    if getattr(module, "prob", 0.0):
        raise UnsupportedModelError(
            "the tower drops patches in training (patch dropout), so that the remaining ones form "
            f"no grid for the adapter's convolutions; build the model with {remedy}"
        )
