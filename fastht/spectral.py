"""Moving a full spectral filter from one patch grid to another."""

from __future__ import annotations

import torch
from torch import Tensor


def resample_spectral_filter(
    weight: Tensor, from_grid: tuple[int, int], to_grid: tuple[int, int]
) -> Tensor:
    """Resample a full spectral filter to the frequencies of another grid, differentiably.

    A filter value belongs to a frequency in cycles a patch, not to an index, and a spectrum is
    periodic. So the half plane that ``rfft2`` keeps is completed by its point symmetry and read
    at the new grid's frequencies, by bilinear interpolation on the torus. A filter of ones stays
    one, and the same grid returns ``weight`` itself.

    Args:
        weight: ``[C, H0, W0 // 2 + 1]``, any floating dtype.
        from_grid: ``(H0, W0)``, the grid that ``weight`` was made for.
        to_grid: ``(H, W)``.

    Returns:
        ``[C, H, W // 2 + 1]`` in ``weight``'s dtype.

    Raises:
        ValueError: ``weight`` does not have the shape that ``from_grid`` gives.
    """
    height, width = from_grid
    if tuple(weight.shape[1:]) != (height, width // 2 + 1):
        raise ValueError(
            f"the spectral filter has shape {tuple(weight.shape)}; "
            f"a {height}x{width} grid needs (C, {height}, {width // 2 + 1})"
        )
    if tuple(from_grid) == tuple(to_grid):
        return weight
    row, col = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mirrored = col > width // 2
    row = torch.where(mirrored, (-row) % height, row).to(weight.device)
    col = torch.where(mirrored, width - col, col).to(weight.device)
    plane = weight[:, row, col]
    plane = _interpolate_periodic(plane, dim=1, count=to_grid[0], size=to_grid[0])
    return _interpolate_periodic(plane, dim=2, count=to_grid[1] // 2 + 1, size=to_grid[1])


def _interpolate_periodic(plane: Tensor, dim: int, count: int, size: int) -> Tensor:
    """Read ``plane`` along ``dim`` at the first ``count`` of ``size`` evenly spaced frequencies."""
    period = plane.shape[dim]
    position = torch.arange(count, device=plane.device, dtype=torch.float64) * period / size
    left = position.floor()
    shape = [1] * plane.ndim
    shape[dim] = count
    fraction = (position - left).to(plane.dtype).view(shape)
    low = plane.index_select(dim, left.long() % period)
    high = plane.index_select(dim, (left.long() + 1) % period)
    return low + (high - low) * fraction
