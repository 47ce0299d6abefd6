"""Cases as a torch Dataset for segmentation and classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fastht.data.cases import Case, read_case_image
from fastht.data.images import DataError
from fastht.data.masks import read_mask
from fastht.data.preprocess import SquarePreprocess
from fastht.data.resize import Placement, Resize, shrink_mask
from fastht.seeded import seeded

Augmentation = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
_NO_LABEL = -1


class TaskDataset(Dataset[dict[str, Any]]):
    """Images with masks or labels, each read when asked for.

    An item is {"image": float [3, size, size], normalised; "index": position in the cases}, and
    - "mask": int64 [size, size] of {0, 1}, and "shape": int64 [2], height and width of the file's
      image, if with_masks;
    - "inside": bool [size, size], where the image lies in the square, if with_masks and it is
      letterboxed;
    - "label": position in classes, -1 for a case without label, if classes are given.

    resize: "squash" squeezes image and mask into the square without regard to their shape, as in
        the paper, which also computes its metrics at this size and not at that of the file;
        "letterbox" keeps the shape and leaves a black border, which is added after augmentation.

    The same seed, epoch and position give the same item in any worker, and the global random
    numbers stay as they were. set_epoch reaches the workers, persistent ones too. Picklable if
    augment is.

    mean, std: of the three channels, for values from 0 to 1.
    augment: takes and returns image, uint8 [3, H, W], and mask, uint8 [H, W] or None, of the part
        of the square that holds the image; draws its random numbers from torch's global generator.

    Raises DataError if a label is not among the classes; indexing raises it, with the name of the
    file, for an image or mask that cannot be read, or is too long and thin for a letterbox.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[str] | None = None,
        with_masks: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
        resize: Resize = "squash",
    ) -> None:
        self.cases = tuple(cases)
        self.size = size
        self.with_masks = with_masks
        self.augment = augment
        self.seed = seed
        self.resize: Resize = resize
        self.preprocess = SquarePreprocess(size, tuple(mean), tuple(std), resize)
        self._labels = None if classes is None else [_position(case, classes) for case in cases]
        # Shared memory: persistent workers have copies of the dataset made in the first epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.cases)

    def set_epoch(self, epoch: int) -> None:
        """Draw other augmentations from now on; call it before the epoch's iterator is made."""
        self._epoch.fill_(epoch)

    def __getitem__(self, i: int) -> dict[str, Any]:
        index = range(len(self))[i]  # negative positions count from the end
        case = self.cases[index]
        picture = read_case_image(case)
        place, image = self.preprocess.resized(picture, case.image)
        mask = None
        if self.with_masks:
            inner = (place.width, place.height)
            mask = torch.from_numpy(shrink_mask(read_mask(case, picture.size), inner))
        if self.augment is not None:
            with seeded(self._item_seed(index)):
                image, mask = self.augment(image, mask)
        image = place.pad(image)
        item = {"image": self.preprocess.normalise(image), "index": index}
        if mask is not None:
            item["mask"] = place.pad(mask.long())
            item["shape"] = torch.tensor([picture.height, picture.width])
            if self.resize == "letterbox":
                item["inside"] = place.inside()
        if self._labels is not None:
            item["label"] = self._labels[index]
        return item

    def picture(self, i: int) -> Tensor:
        """The image at position i at its own size, uint8 [3, height, width]."""
        return _to_tensor(read_case_image(self.cases[i])).permute(2, 0, 1)

    def placement(self, shape: tuple[int, int]) -> Placement:
        """Where in the square an image of `shape` (height, width) comes to lie."""
        return self.preprocess.placement(shape)

    def file(self, i: int) -> str:
        """Name of the image at position i, for messages."""
        return self.cases[i].image

    def _item_seed(self, index: int) -> int:
        entropy = (self.seed, int(self._epoch), index)
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def _position(case: Case, classes: Sequence[str]) -> int:
    if case.label is None:
        return _NO_LABEL
    if case.label not in classes:
        known = ", ".join(classes)
        raise DataError(f"{case.image}: label {case.label!r} is none of {known}; correct it")
    return classes.index(case.label)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))  # a copy, since PIL's own memory is read-only
