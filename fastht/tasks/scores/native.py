"""How well masks agree at the image's own size: overlaps, and distances in pixels and in mm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerances:
    """How far from the true outline a predicted one still counts as right.

    Attributes:
        px: in pixels of the image's own size.
        mm: in millimetres, where the spacing of the pixels is known.
    """

    px: float = 2.0
    mm: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("px", self.px), ("mm", self.mm)):
            if not 0 <= value < math.inf:
                raise ValueError(f"tolerance_{name} is {value}; it must be a number from 0")

    @property
    def names(self) -> tuple[str, str]:
        """The scores that they belong to: normalised surface Dice within them."""
        return f"nsd_native@{self.px:g}px", f"nsd@{self.mm:g}mm"


def native_scores(
    prediction: Tensor,
    truth: Tensor,
    tolerances: Tolerances,
    spacing: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Compare a predicted mask with a true one at the image's own size.

    Args:
        prediction: ``[H, W]``, 0 or 1.
        truth: ``[H, W]``, 0 or 1.
        tolerances: of the normalised surface Dice.
        spacing: millimetres from one row to the next and from one column to the next.

    Returns:
        ``dice_native`` and ``iou_native`` in [0, 1]; ``hd95_native_px``, the 95th percentile of the
        Hausdorff distance, and ``asd_native_px``, the average distance of the predicted surface to
        the true one, in pixels; ``nsd_native@{px}px``, the normalised surface Dice: the share of
        both outlines that lies within the tolerance of the other one (arXiv 1809.04430; Metrics
        Reloaded, arXiv 2206.01653). ``hd95_mm``, ``asd_mm`` and ``nsd@{mm}mm`` are the same in
        millimetres, NaN without spacing. The areas are ``predicted_pixels_native`` and
        ``true_pixels_native``. Two empty masks agree (1), an empty and a filled one do not (0); no
        distance is defined to an empty mask: NaN.
    """
    prediction, truth = prediction.bool(), truth.bool()
    nsd_px, nsd_mm = tolerances.names
    predicted, true = int(prediction.sum()), int(truth.sum())
    if predicted and true:
        shared = int((prediction & truth).sum())
        edges = surface_edges(prediction, truth)
        dice, iou = 2 * shared / (predicted + true), shared / (predicted + true - shared)
        in_px = surface_scores(*edges, tolerances.px)
        in_mm = None if spacing is None else surface_scores(*edges, tolerances.mm, spacing)
    else:
        dice = iou = float(predicted == true)
        in_px = (math.nan, math.nan, dice)
        in_mm = None if spacing is None else in_px
    names = ("dice_native", "iou_native", "hd95_native_px", "asd_native_px", nsd_px)
    scores = dict(zip(names, (dice, iou, *in_px), strict=True))
    scores |= zip(("hd95_mm", "asd_mm", nsd_mm), in_mm or (math.nan,) * 3, strict=True)
    return scores | {"predicted_pixels_native": predicted, "true_pixels_native": true}


def surface_edges(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the border pixels of two masks ``[H, W]`` of bool, which are not both empty.

    Only the rectangle that holds both masks is looked at: what is outside has no border, and an
    image of a million pixels costs no more than its lesion.
    """
    from monai.metrics.utils import get_mask_edges  # which takes long to import

    both = prediction | truth
    rows, columns = (both.any(dim=side).nonzero().flatten() for side in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    first, second = get_mask_edges(prediction[box], truth[box], crop=False)
    return torch.as_tensor(first), torch.as_tensor(second)


def surface_scores(
    prediction: Tensor, truth: Tensor, tolerance: float, spacing: Sequence[float] | None = None
) -> tuple[float, float, float]:
    """Return HD95, average distance of predicted to true surface, and normalised surface Dice.

    They are those of MONAI's metrics of these names, from distances that it computes once.

    Args:
        prediction: border pixels ``[h, w]``, not empty.
        truth: likewise.
        tolerance: of the surface Dice, in the unit of the spacing.
        spacing: of rows and columns; default: 1, which makes the unit a pixel.
    """
    from monai.metrics.utils import get_surface_distance

    pairs = ((prediction, truth), (truth, prediction))
    there, back = (
        torch.as_tensor(get_surface_distance(one, other, "euclidean", spacing))
        for one, other in pairs
    )
    hd95 = max(torch.quantile(distances, 0.95).item() for distances in (there, back))
    every = torch.cat([there, back])
    return hd95, there.mean().item(), (every <= tolerance).float().mean().item()
