"""How libraries lay out their vision transformers: one :class:`Family` per layout.

Towers are recognised by structure, not by class, so a fork, a subclass or another release of the
same library is found too. A new layout is one more entry of :data:`FAMILIES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastht.layout import declared_sequence_first

SUPPORTED = (
    "the ViT towers of open_clip, OpenAI's clip, timm (vit*, deit*, beit*, eva*, vitamin*, DINOv2, "
    "DINOv3, MAE's encoders) and transformers (CLIP, SigLIP, SigLIP 2, ViT, DeiT, BEiT, Data2Vec, "
    "DINOv2 with and without registers, DINOv3, ViT-MSN, I-JEPA, AIMv2, FLAVA, InternVL); not "
    "towers with windows or stages of several resolutions (Swin, Hiera, SAM), with patches of time "
    "(VideoMAE), or whose number of tokens changes from block to block"
)

GridReader = Callable[[Any, Any], "tuple[int, int]"]


class UnsupportedModelError(ValueError):
    """The model has no vision transformer that fastht knows how to patch."""


@dataclass(frozen=True)
class Layout:
    """What :func:`fastht.backbones.find_backbone` reads of a tower.

    Attributes:
        blocks: the transformer blocks in order.
        patch_projection: the module that is called once for the images and tells their patch grid.
        dim: features a token, D.
        grid_size: ``(H, W)`` at the image size that the tower was built for.
        num_prefix_tokens: class and register tokens before the patches, P.
        sequence_first: whether the blocks take ``[N, B, D]``; ``None`` where they have to be tried.
        read_grid: returns ``(H, W)`` from the patch projection's arguments and output.
        masked: the module that is told which patches of smaller images are padding; ``None`` where
            a tower knows of no padding.
    """

    blocks: tuple[nn.Module, ...]
    patch_projection: nn.Module
    dim: int
    grid_size: tuple[int, int]
    num_prefix_tokens: int
    sequence_first: bool | None
    read_grid: GridReader
    masked: nn.Module | None = None


@dataclass(frozen=True)
class Family:
    """A way to lay out a vision transformer: how to recognise it, and how to read it."""

    name: str
    matches: Callable[[nn.Module], bool]
    read: Callable[[Any], Layout]


def map_grid(args: Any, output: Any) -> tuple[int, int]:
    """Read the grid off a map of patches ``[B, D, H, W]``."""
    height, width = output.shape[-2:]
    return height, width


def one_spatial_shape(args: Any, output: Any) -> tuple[int, int]:
    """Read the grid that all images of a batch share from SigLIP 2's ``spatial_shapes``.

    Raises:
        ValueError: the images differ in size, or are padded.
    """
    shapes = {(int(height), int(width)) for height, width in args[1].tolist()}
    grid = next(iter(shapes))
    if len(shapes) > 1 or grid[0] * grid[1] != output.shape[1]:
        shown = ", ".join(f"{height}x{width}" for height, width in sorted(shapes))
        raise ValueError(
            f"the images of a batch have grids of {shown} patches in rows of {output.shape[1]}; HT "
            "adapters convolve over one grid: give images of one size a batch, without padding "
            "(max_num_patches of the processor equal to their number of patches)"
        )
    return grid


# open_clip, OpenAI's clip


def _is_openai(module: nn.Module) -> bool:
    return (
        isinstance(getattr(module, "conv1", None), nn.Conv2d)
        and hasattr(module, "class_embedding")
        and hasattr(getattr(module, "transformer", None), "resblocks")
    )


def _read_openai(module: Any) -> Layout:
    grid = getattr(module, "grid_size", None)
    if grid is None:
        side = module.input_resolution // module.conv1.stride[0]
        grid = (side, side)
    _refuse_patch_dropout(getattr(module, "patch_dropout", None), "force_patch_dropout=0.0")
    blocks = tuple(module.transformer.resblocks)
    said = (declared_sequence_first(block) for block in blocks)
    sequence_first = next((answer for answer in said if answer is not None), None)
    batch_first = getattr(module.transformer, "batch_first", None)
    if sequence_first is None and batch_first is not None:
        sequence_first = not batch_first
    return Layout(
        blocks=blocks,
        patch_projection=module.conv1,
        dim=module.conv1.out_channels,
        grid_size=grid,
        num_prefix_tokens=1,
        sequence_first=sequence_first,
        read_grid=map_grid,
    )


# timm

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


def _read_timm(module: Any) -> Layout:
    _refuse_patch_dropout(getattr(module, "patch_drop", None), "patch_drop_rate=0")
    return Layout(
        blocks=tuple(module.blocks),
        patch_projection=module.patch_embed.proj,
        dim=module.embed_dim,
        grid_size=module.patch_embed.grid_size,
        num_prefix_tokens=module.num_prefix_tokens,
        sequence_first=False,
        read_grid=map_grid,
    )


# transformers

# What tells its embeddings which patches are padding.
MASK = "patch_attention_mask"
# Where its towers keep their blocks, by release and by model.
_BLOCKS = (
    "encoder.layers",
    "encoder.layer",
    "model.layer",
    "layers",
    "layer",
)
# What its embeddings call the convolution over patches.
_PROJECTIONS = (
    "patch_embeddings.projection",
    "patch_embeddings",
    "patch_embedding",
    "patch_embed",
)
_PREFIX_TOKENS = ("cls_token", "distillation_token", "register_tokens")


def _part(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _transformers_blocks(module: nn.Module) -> nn.ModuleList | None:
    found = (_part(module, path) for path in _BLOCKS)
    return next((blocks for blocks in found if isinstance(blocks, nn.ModuleList)), None)


def _transformers_projection(module: nn.Module) -> nn.Conv2d | None:
    embeddings = getattr(module, "embeddings", None)
    found = (_part(embeddings, path) for path in _PROJECTIONS)
    return next((part for part in found if isinstance(part, nn.Conv2d)), None)


# Of embeddings whose tokens are not those of one image's patches: ViLT, YOLOS, TimeSformer, SegGPT.
_OTHER_TOKENS = ("text_embeddings", "detection_tokens", "time_embeddings", "segment_token_input")


def _is_transformers(module: nn.Module) -> bool:
    blocks = _transformers_blocks(module)
    return (
        _transformers_projection(module) is not None
        and blocks is not None
        # Stages (Swin) hold blocks of their own.
        and not any(isinstance(part, nn.ModuleList) for part in blocks[0].children())
        and not any(hasattr(module.embeddings, name) for name in _OTHER_TOKENS)
        # EoMT puts its queries before the patches of the last blocks.
        and not isinstance(getattr(module, "query", None), nn.Embedding)
        # RF-DETR cuts its tokens into windows between the embeddings and the blocks.
        and getattr(getattr(module, "config", None), "num_windows", 1) == 1
        and _image_size(module) is not None
    )


def _image_size(module: Any) -> Any:
    """Return the image size that a tower was built for; ``None`` where none is known."""
    size = getattr(getattr(module, "config", None), "image_size", None)
    return getattr(module.embeddings, "image_size", None) if size is None else size


def _read_transformers(module: Any) -> Layout:
    embeddings = module.embeddings
    if hasattr(embeddings, "random_masking"):
        raise UnsupportedModelError(
            f"{type(module).__name__} shuffles and drops patches (masked autoencoding), so that "
            "the remaining ones form no grid for the adapter's convolutions; load its weights "
            "into transformers.ViTModel and patch that"
        )
    projection, blocks = _transformers_projection(module), _transformers_blocks(module)
    assert projection is not None
    assert blocks is not None
    return Layout(
        blocks=tuple(blocks),
        patch_projection=projection,
        dim=projection.out_channels,
        grid_size=_built_grid(module, projection),
        num_prefix_tokens=_prefix_tokens(embeddings),
        sequence_first=False,
        read_grid=map_grid,
        # Idefics 2 and 3, SmolVLM, Aria, Phi-4
        masked=embeddings if MASK in inspect.signature(embeddings.forward).parameters else None,
    )


def _built_grid(module: Any, projection: nn.Conv2d) -> tuple[int, int]:
    """Return the grid at the image size that the tower was built for."""
    size = _image_size(module)
    height, width = (size, size) if isinstance(size, int) else size
    vertical, horizontal = projection.stride
    return height // vertical, width // horizontal


def _prefix_tokens(embeddings: Any) -> int:
    """Count class, distillation and register tokens by the parameters that hold them."""
    count = 0 if getattr(embeddings, "class_embedding", None) is None else 1
    held = (getattr(embeddings, name, None) for name in _PREFIX_TOKENS)
    # [1, tokens, D]: Pixio has several class tokens
    return count + sum(tokens.shape[-2] for tokens in held if isinstance(tokens, Tensor))


def _is_siglip2(module: nn.Module) -> bool:
    """Tell the tower whose patches come cut and flattened, with the grid beside them."""
    embeddings = getattr(module, "embeddings", None)
    return (
        isinstance(getattr(embeddings, "patch_embedding", None), nn.Linear)
        and hasattr(embeddings, "resize_positional_embeddings")
        and _transformers_blocks(module) is not None
    )


def _read_siglip2(module: Any) -> Layout:
    side = module.embeddings.position_embedding_size
    return Layout(
        blocks=tuple(module.encoder.layers),
        patch_projection=module.embeddings,
        dim=module.embeddings.patch_embedding.out_features,
        grid_size=(side, side),
        num_prefix_tokens=0,
        sequence_first=False,
        read_grid=one_spatial_shape,
    )


FAMILIES = (
    Family("openai", _is_openai, _read_openai),
    Family("timm", _is_timm, _read_timm),
    Family("transformers", _is_transformers, _read_transformers),
    Family("siglip2", _is_siglip2, _read_siglip2),
)


def _refuse_patch_dropout(module: nn.Module | None, remedy: str) -> None:
    """Raise if the tower drops patches in training: the rest form no grid to convolve over."""
    if getattr(module, "prob", 0.0):
        raise UnsupportedModelError(
            "the tower drops patches in training (patch dropout), so that the remaining ones form "
            f"no grid for the adapter's convolutions; build the model with {remedy}"
        )
