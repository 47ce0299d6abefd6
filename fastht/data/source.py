"""Which data set a command reads, and how it lies on disk: the options that commands share."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fastht.data.cases import CaseSet, Task
from fastht.data.layouts import load_cases


@dataclass(frozen=True)
class DataSource:
    """A data set with masks or labels.

    Attributes:
        data: "sample" (simulated images that come with fastht), a folder, or a CSV or TSV table.
        layout: published, busi, ddti, tn3k, prostate, folder or table; default: found out.
        name: which data set of layout published, e.g. BUSI.
        include_normal: take the images without lesion of layout busi.
        benign_malignant: label layout ddti by benign and malignant, not by TI-RADS category.
        fold: which fold of layout tn3k; default: 0 if there is one.
        skip_empty: leave out the slices of layout prostate in which nothing is marked.
        separator: column separator of a table; default: found out.
        label_key: column of the classes of a table; default: label.
        patient_key: column of the patients, none of whom is on two sides; default: patient, or a
            name that means the same.
        frame_key: column of the frames of multi-frame files; default: frame.
    """

    data: str = "sample"
    layout: str | None = None
    name: str | None = None
    include_normal: bool = False
    benign_malignant: bool = False
    fold: int | None = None
    skip_empty: bool = False
    separator: str | None = None
    label_key: str | None = None
    patient_key: str | None = None
    frame_key: str | None = None

    def load(self, task: Task, *, leave_out: bool = False) -> CaseSet:
        """Find its images with their masks or labels; see load_cases, which raises DataError."""
        # Not asdict: commands add options of their own to these.
        options = {field.name: getattr(self, field.name) for field in fields(DataSource)}
        return load_cases(options.pop("data"), task=task, leave_out=leave_out, **options)
