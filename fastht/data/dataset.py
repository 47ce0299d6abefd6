"""Records as a torch Dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fastht.data.embedded import is_embedded, read_embedded
from fastht.data.images import read_image
from fastht.data.records import Record


class ImageTextDataset(Dataset[dict[str, Any]]):
    """Images and captions of records, each read when asked for.

    An item is {"image": transform(image), "index": position in the records, "caption": str};
    transform gets a PIL image of mode "RGB". The same index gives the same item in any worker
    and any epoch unless transform draws random numbers. Picklable if transform is.

    Indexing raises DataError, with the name of the file, for an image that cannot be read.
    """

    def __init__(
        self, records: Sequence[Record], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.records = tuple(records)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        index = range(len(self))[i]  # negative positions count from the end
        record = self.records[index]
        source = read_embedded(record.image) if is_embedded(record.image) else record.image
        image = read_image(source, frame=record.frame, name=record.image)
        return {"image": self.transform(image), "index": index, "caption": record.caption}

    def file(self, i: int) -> str:
        """Name of the image at position i, for messages."""
        return self.records[i].image
