"""Whether a tower's blocks are given the patches where its adapters take them to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastht.backbones import find_backbone


def misplaced(model: nn.Module, size: tuple[int, int], run: Callable[[Tensor], Any]) -> str | None:
    """Change one patch of an image; return what is wrong with the token that changes most.

    Args:
        model: has one vision transformer inside.
        size: ``(height, width)`` of the images in pixels.
        run: shows images ``[B, 3, height, width]`` to the model.

    Returns:
        ``None`` where it is the patch's, in row-major order after the prefix.
    """
    backbone = find_backbone(model)
    rows, columns = backbone.grid_size
    row, column = rows // 2, columns // 3
    height, width = size[0] // rows, size[1] // columns
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(5))
    changed = image.clone()
    changed[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width] += 3.0
    seen: list[Tensor] = []

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        tokens = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        seen.append(tokens.transpose(0, 1) if backbone.sequence_first else tokens)

    handle = backbone.blocks[0].register_forward_pre_hook(see, with_kwargs=True)
    try:
        with torch.no_grad():
            run(image)
            run(changed)
    finally:
        handle.remove()
    before, after = seen[0], seen[-1]
    if before.ndim != 3:
        return f"TOKENS OF SHAPE {tuple(before.shape)}"
    found = int((after - before)[0].norm(dim=-1).argmax())
    expected = backbone.num_prefix_tokens + row * columns + column
    # A stem of several convolutions also reads the patches around.
    whole = getattr(backbone.patch_projection, "kernel_size", None) == (height, width)
    near = {0} if whole else {0, 1, columns - 1, columns, columns + 1}
    if abs(found - expected) in near:
        return None
    return f"PATCH {row},{column} IS TOKEN {found}, NOT {expected}"
