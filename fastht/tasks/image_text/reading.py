"""How a table of images and captions is read: the options that training and judging share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class PairsData:
    """Images with captions, and how their table is read.

    Attributes:
        data: "sample" (simulated images that come with fastht), a CSV or TSV table, webdataset
            shards ("shards/{000..009}.tar"), or a folder, JSON or Parquet file of a set with
            captions (`fastht data list`), where the keys below are fields, with dots for those
            inside others.
        image_key: column of the image files; default: filepath, or filename.
        caption_key: column of the captions; default: title, or Caption.
        label_key: column of the classes; default: label.
        patient_key: column of the patients, none of whom is both trained on and held out; default:
            patient, or a name that means the same.
        split_key: column of the sides; default: split, if there.
        frame_key: column of the frames of multi-frame files; default: frame.
        separator: column separator of the table; default: found out.
        image_dirs: folders in which relative image paths are looked up, before the table's own.
    """

    data: str = "sample"
    image_key: str | None = None
    caption_key: str | None = None
    label_key: str | None = None
    patient_key: str | None = None
    split_key: str | None = None
    frame_key: str | None = None
    separator: str | None = None
    image_dirs: tuple[Path, ...] = ()


READING_OPTIONS = (*(field.name for field in fields(PairsData) if field.name != "data"), "cleaning")
