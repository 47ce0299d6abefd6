"""The features of single transformer blocks, as maps, from a patched or a plain vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastht.backbones import UnsupportedModelError, find_backbone
from fastht.wrappers import unwrap


def default_blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks at a quarter, a half and three quarters of a tower's depth.

    Of twelve they are the paper's 3, 6 and 9 (arXiv 2506.08849, section III-B). A tower of fewer
    than four has fewer of them.
    """
    return tuple(sorted({depth * part // 4 for part in (1, 2, 3)}))


class _DeepestReached(Exception):  # noqa: N818  # no error: it ends a forward pass
    """No block after the one that raised it is needed."""


class BlockFeatures(nn.Module):
    """Run a vision tower up to the deepest of some blocks and return what each of them puts out.

    What a block puts out includes its HT adapter's update. Blocks after the deepest one do not run,
    so adapters there would never get a gradient: patch with ``layers`` up to :attr:`deepest`.

    Args:
        model: open_clip, OpenAI's clip, timm or transformers, with one vision transformer inside.
        blocks: indices of blocks from 0, each once; ``None`` takes :func:`default_blocks`.

    Raises:
        UnsupportedModelError: there is no vision transformer in the model.
        ValueError: ``blocks`` is empty, repeats one, or names one that the tower does not have.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None = None) -> None:
        super().__init__()
        backbone = find_backbone(unwrap(model))
        if backbone.family == "siglip2":
            raise UnsupportedModelError(
                f"{type(backbone.tower).__name__} takes patches that are cut out already, and "
                "these heads show images; take SiglipModel with a SigLIP 2 of fixed resolution"
            )
        depth = len(backbone.blocks)
        if blocks is None:
            blocks = default_blocks(depth)
        if not blocks or len(set(blocks)) < len(blocks):
            raise ValueError(f"blocks is {list(blocks)}; name at least one block, each once")
        if missing := [index for index in blocks if not 0 <= index < depth]:
            raise ValueError(
                f"the tower has no block {missing[0]}; its {depth} blocks are 0 to {depth - 1}; "
                "name others by --blocks, or leave it out: the depth decides then"
            )
        self.model = model
        self.blocks = tuple(blocks)
        self.dim = backbone.dim

    @property
    def deepest(self) -> int:
        """The index of the last block that runs."""
        return max(self.blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return ``[B, D, H, W]`` for each of the blocks, in their order.

        Args:
            images: ``[B, 3, height, width]``, as the tower takes them.
        """
        backbone = find_backbone(unwrap(self.model))
        own: Any = getattr(backbone.tower, "forward_intermediates", None)
        if own is None:
            return self._by_hooks(images)
        order = sorted(self.blocks)
        found = own(images, indices=order, stop_early=True, intermediates_only=True)
        maps = found["image_intermediates"] if isinstance(found, dict) else found
        return [maps[order.index(index)] for index in self.blocks]

    def _by_hooks(self, images: Tensor) -> list[Tensor]:
        """Listen to the blocks of a tower whose library does not return them."""
        backbone = find_backbone(unwrap(self.model))
        tokens: dict[int, Tensor] = {}
        grid: list[tuple[int, int]] = []

        def see_grid(module: nn.Module, inputs: Any, output: Tensor) -> None:
            grid.append((output.shape[-2], output.shape[-1]))

        def keep(index: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                tokens[index] = output[0] if isinstance(output, tuple) else output
                if index == self.deepest:
                    raise _DeepestReached

            return hook

        # Towers of transformers take other image sizes only when they are told to.
        options = {"interpolate_pos_encoding": True} if backbone.family == "transformers" else {}
        handles = [backbone.patch_projection.register_forward_hook(see_grid)]
        handles += [backbone.blocks[i].register_forward_hook(keep(i)) for i in self.blocks]
        try:
            backbone.tower(images, **options)
        except _DeepestReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        maps = []
        for index in self.blocks:
            found = tokens[index].transpose(0, 1) if backbone.sequence_first else tokens[index]
            patches = found[:, backbone.num_prefix_tokens :]
            maps.append(patches.transpose(1, 2).unflatten(2, grid[-1]))
        return maps
