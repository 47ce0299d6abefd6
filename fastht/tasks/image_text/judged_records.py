"""What a run or a model is judged on: the options that commands share, and how they begin."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

import fastht
from fastht.data import DataError, ImageTextDataset, Record, RecordSet, load_records
from fastht.data.captions import Cleaning
from fastht.data.cases import Case
from fastht.data.headers import with_frames_noted
from fastht.tasks.image_text.reading import READING_OPTIONS, PairsData
from fastht.tasks.image_text.run import (
    UNKNOWN_FILES,
    ClipRun,
    check_folder,
    file_key,
    load_clip,
    read_split,
    results_folder,
)
from fastht.tasks.results.known_images import KNOWN_NAME, Copies, judge_copies
from fastht.tasks.results.provenance import provenance
from fastht.tasks.results.shown import SIMULATED
from fastht.tasks.training.run_files import read_run_arguments

ItemT = TypeVar("ItemT", Case, Record)
_OPTIONS_OF_PAIRS = [name for name in READING_OPTIONS if name != "cleaning"]


@dataclass(frozen=True)
class JudgedModel:
    """A run or a model that is judged, and where the results go.

    Attributes:
        run: folder of a run of fastht train, which names the model.
        model: without a run: open_clip's name of the model, hf-hub:ORG/REPO, local-dir:FOLDER,
            "biomedclip", or "fastht-tiny".
        pretrained: without a run: open_clip's tag, the file of the weights, or "none" for random
            ones.
        adapter: without a run: folder of a saved HT adapter; default: the base alone.
        unseen_by: without a run: folder of one whose training images are left out as if it were
            judged, so that a baseline and the run are scored on the same images.
        copies: images that are copies of those that the run trained on: warn or leave-out.
        batch_size: images at a time.
        workers: processes that load images.
        out: folder of the results; default: COMMAND-DATA in the folder of the run, else
            runs/COMMAND-DATA-MODEL.
    """

    run: Path | None = None
    model: str = "ViT-B-16"
    pretrained: str = "openai"
    adapter: Path | None = None
    unseen_by: Path | None = None
    copies: Copies = "warn"
    batch_size: int = 32
    workers: int = 2
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.run is not None and self.unseen_by is not None:
            raise ValueError(
                "--run and --unseen-by are both given: what a run trained on is left out anyway; "
                "leave out one"
            )

    @property
    def trainer(self) -> Path | None:
        """The run whose training images are not scored."""
        return self.run or self.unseen_by

    def unseen(self) -> dict[str, str]:
        """Return what a ``results.json`` says of a baseline that a run's images are left out of."""
        return {} if self.unseen_by is None else {"unseen_by": str(self.unseen_by)}


@dataclass(frozen=True)
class JudgedPairs(PairsData):
    """Images with captions that a model is judged on.

    Attributes:
        data: "run" (what the run held out, or the sample if there is no run), "sample", a CSV or
            TSV table, webdataset shards ("shards/{000..009}.tar"), or a folder, JSON or Parquet
            file of a set with captions (`fastht data list`).
        cleaning: what texts keep: letters of every script, or ASCII alone as in the paper;
            default: as the run did, else letters.
    """

    data: str = "run"
    cleaning: Cleaning | None = None


@dataclass(frozen=True)
class PairsArguments(JudgedModel, JudgedPairs):
    """Options of the commands that judge a model by images and their captions."""


@dataclass(frozen=True)
class Opened:
    """A model that is to be judged, and the run whose training images are not scored.

    Attributes:
        clip: the model.
        trained: arguments of that run; empty where there is none.
    """

    clip: ClipRun
    trained: Mapping[str, Any]

    def data(self, given: str) -> str:
        """Return which data is meant: the run's own where it is "run", the sample without one."""
        return given if given != "run" else str(self.trained.get("data", "sample"))

    def is_trained_on(self, data: str) -> bool:
        """Return whether data, as it is called, is what the run trained on."""
        trained = self.trained.get("data")
        if trained is None or "sample" in (data, trained):
            return data == trained
        return os.path.realpath(data) == os.path.realpath(trained)

    def reading(
        self, data: str, given: Mapping[str, Any], known: Collection[str]
    ) -> dict[str, Any]:
        """Return how the run's own data is read, where ``given`` leaves it open, and tell of it.

        Args:
            data: as it is called; of other data nothing is known.
            given: options of a command.
            known: names of those that the data's layout has.
        """
        if not self.is_trained_on(data):
            return {}
        found = {
            name: tuple(value) if isinstance(value, list) else value
            for name in READING_OPTIONS
            if name in known and name in given and not given[name]
            if (value := self.trained.get(name))
        }
        if found:
            told = ", ".join(_option(name, value) for name, value in found.items())
            print(f"{data} is read as the run read it: {told}.")
        return found


def _option(name: str, value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return " ".join([f"--{name.replace('_', '-')}", *map(str, values)])


def open_model(arguments: JudgedModel) -> Opened:
    """Load what is judged; errors as :func:`run.load_clip`, and where ``out`` is no folder."""
    check_folder(arguments.out)
    clip = load_clip(arguments.run, arguments.model, arguments.pretrained, arguments.adapter)
    if arguments.unseen_by is None:
        return Opened(clip, clip.arguments)
    trained = read_run_arguments(arguments.unseen_by, "--adapter")
    return Opened(replace(clip, sides=read_split(arguments.unseen_by)), trained)


def choose_folder(command: str, arguments: JudgedModel, data: str) -> Path:
    """Return where the results go.

    Raises:
        OSError: nothing can be written there.
        ValueError: it is a file.
    """
    out = arguments.out or results_folder(command, data, arguments.run, arguments.model)
    check_folder(out)
    return out


def encode_records(records: Sequence[Record], clip: ClipRun, arguments: JudgedModel) -> Tensor:
    """Return the normalised embeddings ``[n, E]`` of the images of pairs, on the CPU.

    Raises:
        DataError: an image cannot be read.
    """
    images = ImageTextDataset(records, clip.transform)
    return clip.encode_images(images, arguments.batch_size, arguments.workers)


def leave_copies(
    arguments: JudgedModel, clip: ClipRun, items: Sequence[ItemT], images: Iterable[str]
) -> tuple[tuple[ItemT, ...], dict[str, Any] | None]:
    """Tell of images that are copies of training images, and leave them out if asked to.

    Args:
        arguments: the options.
        clip: the model.
        items: what is to be scored.
        images: all images of the data, scored or not.

    Returns:
        As :func:`judge_copies`.

    Raises:
        DataError: as :func:`judge_copies`.
    """
    run = arguments.trainer
    kept, known = judge_copies(run, items, arguments.copies)
    if run and known is None and not clip.knows(images):
        print(UNKNOWN_FILES.format(run=run))
    return kept, known


@dataclass(frozen=True)
class Judged:
    """Pairs that a model is judged on, as a command finds them.

    Attributes:
        clip: the model.
        data: as it is called.
        out: folder of the results.
        found: everything that was read.
        records: what is scored.
        left_out: pairs that the run trained on.
        known: what results tell of copies of training images.
        unseen: as of :meth:`JudgedModel.unseen`.
        started: when, by the monotonic clock.
    """

    clip: ClipRun
    data: str
    out: Path
    found: RecordSet
    records: tuple[Record, ...]
    left_out: int
    known: dict[str, Any] | None
    unseen: dict[str, str]
    started: float

    def describe(self, task: str) -> dict[str, Any]:
        """Return what a ``results.json`` says of the task, the model and the pairs."""
        return {
            "task": task,
            "data": self.data,
            **self.clip.describe(),
            "test_images": len({(record.image, record.frame) for record in self.records}),
            "captions": len({record.caption for record in self.records}),
            "left_out": self.left_out,
            KNOWN_NAME: self.known,
            **self.unseen,
        }

    def close(self, **more: Sequence[Record]) -> dict[str, Any]:
        """Return how the results came about, for the end of a ``results.json``.

        Args:
            more: sides beside that which is scored.
        """
        return {
            "provenance": provenance(
                {"scored": self.records, **more},
                self.found.dropped | {"the run trained on": self.left_out},
                device=next(self.clip.model.parameters()).device,
                seconds=time.monotonic() - self.started,
                notes=self.found.notes,
            ),
            "fastht_version": fastht.__version__,
        }


def open_pairs(
    command: str,
    arguments: PairsArguments,
    *,
    opened: Opened | None = None,
    columns: Iterable[str] = (),
    texts: bool = True,
) -> Judged:
    """Load a model and the pairs that it is judged on, and print the account of these.

    Args:
        command: its name, for the folder of the results.
        arguments: the options.
        opened: the model, if it is loaded already.
        columns: columns that records are to keep.
        texts: captions are embedded; their account says which are too long.

    Raises:
        DataError: the data cannot be used, or no image is left.
        ResumeError: the run's weights cannot be read.
        ValueError: the run or the model cannot be had.
    """
    started = time.monotonic()
    opened = opened or open_model(arguments)
    clip, own = opened.clip, arguments.data == "run"
    data = opened.data(arguments.data)
    out = choose_folder(command, arguments, data)
    options = opened.trained if own and opened.trained else vars(arguments)
    if not own:
        options = {**options, **opened.reading(data, options, _OPTIONS_OF_PAIRS)}
    found = load_judged(data, options, arguments.cleaning or clip.cleaning, columns)
    records = keep_unseen(found, own and arguments.trainer is not None, clip)
    if texts:
        cut = clip.fit_captions([record.caption for record in found])
        found = replace(found, notes=(*found.notes, *cut.notes(clip.caption_part)))
    print(found.account())
    left_out = len(found) - len(records)
    if arguments.trainer is not None:
        print(f"{left_out} of them left out, as {arguments.trainer} trained on them.")
    records, known = leave_copies(arguments, clip, records, (record.image for record in found))
    if data == "sample":
        print(SIMULATED)
    return Judged(clip, data, out, found, records, left_out, known, arguments.unseen(), started)


def load_judged(
    data: str, options: Mapping[str, Any], cleaning: Cleaning, attributes: Iterable[str]
) -> RecordSet:
    """Read pairs by the options that are given, and note those whose frame is not.

    What is empty or ``None`` is left alone.
    """
    given = {name: options[name] for name in READING_OPTIONS if options.get(name)}
    given |= {"cleaning": cleaning, "attribute_keys": tuple(attributes)}
    return with_frames_noted(load_records(data, **given))


def keep_unseen(found: RecordSet, own: bool, clip: ClipRun) -> tuple[Record, ...]:
    """Return what the run held out of its own data, or what it has not trained on of other data."""
    if own:
        kept = tuple(r for r in found if clip.sides.get(file_key(r.image)) == "val")
        remedy = "were the images moved since? Then give them by --data"
    else:
        kept = tuple(r for r in found if not clip.trained_on(r.image))
        remedy = "give others by --data"
    if not kept:
        raise DataError(f"{found.source}: no image is left that the run held out; {remedy}")
    return kept
