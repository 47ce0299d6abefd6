"""The labelled images that a run or a model is judged on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fastht.data.cases import Case, CaseSet, read_case_image
from fastht.data.layouts import options_of
from fastht.data.source import DataSource
from fastht.tasks.image_text.judged_records import JudgedModel, Opened
from fastht.tasks.image_text.run import ClipRun


class CaseImages(Dataset[dict[str, Any]]):
    """The images of cases, each read when asked for: ``{"image": transform(image)}``.

    Indexing raises DataError, with the name of the file, for an image that cannot be read.
    """

    def __init__(self, cases: Sequence[Case], transform: Callable[[Image.Image], Tensor]) -> None:
        self.cases = cases
        self.transform = transform

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.transform(read_case_image(self.cases[i]))}


def encode_cases(cases: Sequence[Case], clip: ClipRun, arguments: JudgedModel) -> Tensor:
    """Return the normalised embeddings ``[n, E]`` of the images of cases, on the CPU.

    Raises:
        DataError: an image cannot be read.
    """
    images = CaseImages(cases, clip.transform)
    return clip.encode_images(images, arguments.batch_size, arguments.workers)


def labelled_data(data: str, trainer: Path | None, opened: Opened) -> str:
    """Return which labelled images are meant: those of a run are the sample, or are to be named.

    Raises:
        ValueError: the run trained on other data.
    """
    found = opened.data(data)
    if data != "run" or found == "sample":
        return found
    raise ValueError(
        f"{trainer} trained on {found}, whose captions are no labels: name labelled images to "
        "classify by --data"
    )


def load_labelled(arguments: DataSource, data: str, opened: Opened) -> CaseSet:
    """Find labelled images; those of the run's own data as the run found them, if nothing is given.

    Raises:
        DataError: the data cannot be used.
    """
    options = opened.reading(data, vars(arguments), options_of(data, arguments.layout))
    return replace(arguments, data=data, **options).load("classify", leave_out=True)


def prediction_rows(
    cases: Sequence[Case], classes: Sequence[str], probabilities: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Return a row for each image: what it is, and what each version of the model takes it for."""
    rows: list[dict[str, Any]] = [
        {"file": case.image, "patient": case.patient, "label": case.label} for case in cases
    ]
    for version, found in probabilities.items():
        for row, values in zip(rows, found.tolist(), strict=True):
            row[f"predicted {version}"] = classes[values.index(max(values))]
            row |= {f"p({name}) {version}": p for name, p in zip(classes, values, strict=True)}
    return rows
