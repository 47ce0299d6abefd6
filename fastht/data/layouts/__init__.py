"""The ways in which image sets lie on disk: one module each, and the choice among them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fastht.data.account import add_account
from fastht.data.cases import CaseSet, Reading, Task
from fastht.data.images import DataError
from fastht.data.layouts import busi, ddti, folder, prostate, published, table, tn3k


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout: how it looks, whether a path has it, its reader and the reader's option."""

    looks: str
    fits: Callable[[Path], bool]
    read: Callable[..., Reading]
    option: str | None = None
    of_table: bool = False  # whether TABLE_OPTIONS are for it


TABLE_OPTIONS = ("separator", "label_key", "patient_key", "frame_key")
LAYOUTS = {
    "published": Layout(
        "all/images, all/masks, segmentation/NAME/{train,val,test}.txt, "
        "classification/NAME/{train,val,test}.txt and labels.csv (NextGen-UIA)",
        published.fits,
        published.read,
        "name",
    ),
    "busi": Layout(
        "benign/, malignant/, normal/ with 'benign (1).png' and 'benign (1)_mask.png'",
        busi.fits,
        busi.read,
        "include_normal",
    ),
    "ddti": Layout("1.xml beside 1_1.jpg, 1_2.jpg", ddti.fits, ddti.read, "benign_malignant"),
    "tn3k": Layout(
        "trainval-image/, trainval-mask/, test-image/, test-mask/", tn3k.fits, tn3k.read, "fold"
    ),
    "prostate": Layout(
        "train/ and test/ with micro_ultrasound_scans/ and expert_annotations/ of .nii.gz files",
        prostate.fits,
        prostate.read,
        "skip_empty",
    ),
    "table": Layout(
        "a .csv or .tsv file with columns filepath, mask, label, patient, split, title",
        table.fits,
        table.read,
        of_table=True,
    ),
    # Last: any folder of folders of images has it, so it counts only where no other fits.
    "folder": Layout(
        "images/, masks/ and perhaps labels.csv, or a folder of images for each class; either "
        "perhaps under train/, val/ and test/",
        folder.fits,
        folder.read,
    ),
}


def load_cases(
    data: str | os.PathLike[str],
    *,
    task: Task = "segment",
    layout: str | None = None,
    name: str | None = None,
    include_normal: bool = False,
    benign_malignant: bool = False,
    fold: int | None = None,
    skip_empty: bool = False,
    separator: str | None = None,
    label_key: str | None = None,
    patient_key: str | None = None,
    frame_key: str | None = None,
    leave_out: bool = False,
) -> CaseSet:
    """Find the images of a data set with their masks or labels; no pixel is read yet.

    data: "sample", the simulated set inside the package; a folder, or a table.
    task: masks are looked up for "segment" alone; for "classify" each image needs a label.
    layout: a key of LAYOUTS; None finds it out.
    name: which data set of layout published.
    include_normal: take the images without lesion of layout busi.
    benign_malignant: label by benign and malignant in layout ddti, instead of by TI-RADS category.
    fold: which fold of layout tn3k; None takes fold 0 if there is one.
    skip_empty: leave out the slices of layout prostate in which nothing is marked.
    separator, label_key, patient_key, frame_key: how a table is read, see table.read.
    leave_out: leave out and count single images that cannot be used, as one that is missing or has
        no label, instead of raising; what is wrong with each is in the set's `unusable`.

    Raises DataError for the first thing that is wrong; fastht.data.check finds all of them.
    """
    found, problems = scan_cases(
        data,
        task=task,
        layout=layout,
        name=name,
        include_normal=include_normal,
        benign_malignant=benign_malignant,
        fold=fold,
        skip_empty=skip_empty,
        separator=separator,
        label_key=label_key,
        patient_key=patient_key,
        frame_key=frame_key,
    )
    if leave_out and found.unusable:
        problems = [problem for problem in problems if problem not in found.unusable]
        usable = tuple(c for c in found if task == "segment" or c.label is not None)
        if not usable:
            problems.append(found.unusable[0])
        counted = found.left_out | {"unusable": len(found.unusable)}
        found = replace(found, cases=usable, left_out=counted)
    if problems:
        more = f" ({len(problems) - 1:,} more: see `fastht data check`)" if problems[1:] else ""
        raise DataError(problems[0] + more)
    return found


def scan_cases(
    data: str | os.PathLike[str],
    *,
    task: Task,
    layout: str | None = None,
    **options: str | bool | int | None,
) -> tuple[CaseSet, list[str]]:
    """As load_cases, but return the problems beside what could be found.

    Raises DataError only where nothing can be found at all.
    """
    source = os.fspath(data)
    root = table.sample_path() if source == "sample" else Path(source)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; check the path")
    if layout is None:
        layout = _detect(root)
    if layout not in LAYOUTS:
        raise DataError(f"{source}: no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    chosen = LAYOUTS[layout]
    # Compared by identity, as fold 0 is an option and equals False.
    given = {
        key: value for key, value in options.items() if value is not None and value is not False
    }
    own = {chosen.option, *(TABLE_OPTIONS if chosen.of_table else ())}
    for option in sorted(given.keys() - own):
        owners = (key for key, other in LAYOUTS.items() if other.option == option)
        owner = next(owners, "table")
        raise DataError(f"{source}: {option} is for layout {owner}, not for {layout}; omit it")
    reading = chosen.read(root, task, **given)
    found = reading.finish(source, layout, task)
    return add_account(found, root, reading.used, task), reading.problems


def _detect(root: Path) -> str:
    """The layout of a path."""
    fitting = [key for key, layout in LAYOUTS.items() if layout.fits(root)]
    if len(fitting) > 1 and fitting[-1] == "folder":
        fitting.pop()
    if len(fitting) == 1:
        return fitting[0]
    what = f"fits several layouts ({', '.join(fitting)})" if fitting else "fits no layout"
    known = "\n".join(f"  {key:<10} {layout.looks}" for key, layout in LAYOUTS.items())
    raise DataError(f"{root}: {what}; point at the folder itself and name its layout:\n{known}")
