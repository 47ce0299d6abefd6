"""The final scoring of segmentation: at the model's size, and at the image's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastht.data.cases import Case
from fastht.data.images import DataError
from fastht.data.masks import read_mask
from fastht.data.resize import Placement
from fastht.data.spacing import read_spacing
from fastht.data.task_dataset import TaskDataset
from fastht.tasks.images.goals import SegmentationGoal
from fastht.tasks.scores.native import native_scores
from fastht.tasks.scores.segmentation import REFUSED


class NativeSegmentation(SegmentationGoal):
    """Judges masks at both sizes and leaves those of the image's own. See :class:`Goal`.

    The training and the choice of the best epoch know nothing of it: they stay at the model's size.

    Args:
        data: the samples that are judged, without augmentation.
        folder: gets a PNG of each predicted mask, 0 and 255, named after its case.
        goal: whose tolerances count.
    """

    def __init__(self, data: TaskDataset, folder: Path, goal: SegmentationGoal) -> None:
        super().__init__(goal.tolerances)
        self.data = data
        self.folder = folder

    def judge(self, logits: Tensor, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the scores of each image at the model's size and its own, and leave its mask."""
        judged = super().judge(logits, batch)
        margins = lesion_margins(logits)
        found = []
        for margin, shape, index in zip(margins, batch["shape"], batch["index"], strict=True):
            case, (height, width) = self.data.cases[int(index)], shape.tolist()
            mask = native_mask(margin, self.data.placement((height, width)), (height, width))
            picture = Image.fromarray(mask.to(torch.uint8).numpy() * 255)
            picture.save(self.folder / f"{case.name}.png")
            found.append(self._native(case, mask))
        return judged | {name: [entries[name] for entries in found] for name in found[0]}

    def _native(self, case: Case, mask: Tensor) -> dict[str, Any]:
        """Return the entries of one image at its own size."""
        height, width = mask.shape
        truth = torch.from_numpy(read_mask(case, (width, height)))
        try:
            spacing = read_spacing(case)
            source = "" if spacing is None else spacing.source
        except DataError as error:  # it can be scored, but not in millimetres
            spacing, source = None, f"{REFUSED}{error}"
        mm = None if spacing is None else spacing.mm
        row, column = mm or (None, None)
        return {
            **native_scores(mask, truth, self.tolerances, mm),
            "width": width,
            "height": height,
            "row_spacing_mm": row,
            "column_spacing_mm": column,
            "spacing": source,
        }


def lesion_margins(logits: Tensor) -> Tensor:
    """Return how far a lesion is likelier than none, ``[B, 1, H, W]``, of ``[B, 2, H, W]``."""
    return logits[:, 1:2] - logits[:, 0:1]


def native_mask(margin: Tensor, place: Placement, shape: tuple[int, int]) -> Tensor:
    """Return the mask of an image at its own size, bool ``[*shape]``.

    Args:
        margin: ``[1, size, size]``, of :func:`lesion_margins`.
        place: of the image in the model's square.
        shape: of the image, height and width.
    """
    return place.restore(margin[None], shape)[0, 0] > 0


def spacing_sentence(judged: dict[str, list[Any]]) -> str:
    """Say which images are scored in millimetres; nothing if no file states a spacing."""
    sources = judged["spacing"]
    if not any(sources):
        return ""
    refused = [source for source in sources if source.startswith(REFUSED)]
    known = sum(map(bool, sources)) - len(refused)
    text = f"scores in mm are of {known:,} of {len(sources):,} images, whose spacing is known"
    if refused:
        text += f"; {len(refused):,} {'is' if len(refused) == 1 else 'are'} left out, the first "
        text += f"{refused[0]}"
    return text
