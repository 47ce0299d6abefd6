"""Which data set a command reads, and how it lies on disk: the options that commands share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fastht.data.cases import CaseSet, Need
from fastht.data.layouts import load_cases
from fastht.data.refusals import Refusals


@dataclass(frozen=True)
class DataSource:
    """A data set with masks, labels or captions.

    Attributes:
        data: "sample" (simulated images that come with fastht), a folder, or a CSV, TSV, JSON or
            Parquet table.
        layout: a name that `fastht data list` tells; default: found out.
        name: which data set of layout published, e.g. BUSI, or which organ of layout reports.
        include_normal: take the images without lesion of layout busi.
        benign_malignant: label layout ddti by benign and malignant, not by TI-RADS category.
        fold: which fold of layout tn3k, default 0 if there is one; or which fold of layout bus-bra
            tests, from 1, default: none.
        skip_empty: leave out the slices of layout prostate in which nothing is marked.
        exclude_origin: sets that layout bus-cot pools and that are left out, e.g. BUSI BUSBRA.
        concept: take only the images of layout rocov2 that have this UMLS concept (CUI).
        separator: column separator of a table; default: found out.
        image_key: column of the images of a table, default: filepath, filename or image; or their
            field in layouts json and parquet, with dots for fields inside fields, default: image,
            in Parquet the one column of images.
        caption_key: likewise of the captions, also in layout reports; default: title or caption.
        label_key: column of the classes of a table, or likewise; default: label.
        patient_key: column of the patients, none of whom is on two sides, or likewise; default:
            patient, in a table also a name that means the same.
        split_key: column of the split of a table, or likewise; default: split.
        frame_key: column of the frames of multi-frame files; default: frame.
        tag_keys: columns or fields of tags, of which each may hold several; default: those of
            layout us365k, else none.
        group_keys: likewise of keys that tie images together beside the patient, e.g. case_id.
        image_dirs: folders below which layouts json and us365k look for images; default: that of
            the file.
        refusals: "drop" leaves out images whose caption is a language model's refusal to describe,
            "keep" does not; default: drop in layout us365k.
    """

    data: str = "sample"
    layout: str | None = None
    name: str | None = None
    include_normal: bool = False
    benign_malignant: bool = False
    fold: int | None = None
    skip_empty: bool = False
    exclude_origin: tuple[str, ...] = ()
    concept: str | None = None
    separator: str | None = None
    image_key: str | None = None
    caption_key: str | None = None
    label_key: str | None = None
    patient_key: str | None = None
    split_key: str | None = None
    frame_key: str | None = None
    tag_keys: tuple[str, ...] = ()
    group_keys: tuple[str, ...] = ()
    image_dirs: tuple[str, ...] = ()
    refusals: Refusals | None = None

    def load(self, task: Need, *, leave_out: bool = False) -> CaseSet:
        """Find its images with their masks or labels; see load_cases, which raises DataError."""
        return load_cases(task=task, leave_out=leave_out, **self.reading())

    def reading(self) -> dict[str, Any]:
        """The options by name; those that commands add to them are not among these."""
        return {field.name: getattr(self, field.name) for field in fields(DataSource)}
