"""The ways in which image sets lie on disk: one module each, and the choice among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastht.data.account import add_account
from fastht.data.cases import CaseSet, Need, Reading
from fastht.data.images import DataError
from fastht.data.layouts import (
    auitd,
    aul,
    busbra,
    buscot,
    busi,
    ddti,
    document,
    folder,
    pmc_oa,
    prostate,
    published,
    reports,
    rocov2,
    table,
    tn3k,
    tn5000,
    us365k,
)
from fastht.data.refusals import Refusals, leave_out_refusals

_SEVERAL = ("tag_keys", "group_keys")
_KEYS = ("image_key", "caption_key", "label_key", "patient_key", "split_key", *_SEVERAL)


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout: how it looks, whether a path has it, its reader and the reader's options.

    refusals: whether captions that refuse to describe are left out where nothing else is asked.
    tags: fields that are read as tags where none are named.
    """

    looks: str
    fits: Callable[[Path], bool]
    read: Callable[..., Reading]
    options: tuple[str, ...] = ()
    refusals: bool = False
    tags: tuple[str, ...] = ()


TABLE_OPTIONS = ("separator", "frame_key", *_KEYS)
LAYOUTS = {
    "published": Layout(
        "all/images, all/masks, segmentation/NAME/{train,val,test}.txt, "
        "classification/NAME/{train,val,test}.txt and labels.csv (NextGen-UIA)",
        published.fits,
        published.read,
        ("name",),
    ),
    "busi": Layout(
        "benign/, malignant/, normal/ with 'benign (1).png' and 'benign (1)_mask.png'",
        busi.fits,
        busi.read,
        ("include_normal",),
    ),
    "ddti": Layout("1.xml beside 1_1.jpg, 1_2.jpg", ddti.fits, ddti.read, ("benign_malignant",)),
    "tn3k": Layout(
        "trainval-image/, trainval-mask/, test-image/, test-mask/", tn3k.fits, tn3k.read, ("fold",)
    ),
    "prostate": Layout(
        "train/ and test/ with micro_ultrasound_scans/ and expert_annotations/ of .nii.gz files",
        prostate.fits,
        prostate.read,
        ("skip_empty",),
    ),
    "aul": Layout(
        "Benign/, Malignant/, Normal/ with image/1.jpg and segmentation/mass/1.json",
        aul.fits,
        aul.read,
    ),
    "bus-bra": Layout(
        "bus_data.csv, Images/bus_0001-l.png, Masks/mask_0001-l.png, 5-fold-cv.csv",
        busbra.fits,
        busbra.read,
        ("fold",),
    ),
    "bus-cot": Layout(
        "DatasetFiles/lesion_dataset.json and BUS-Expert_dataset.json, BUS-Lesion/",
        buscot.fits,
        buscot.read,
        ("exclude_origin",),
    ),
    "tn5000": Layout(
        "JPEGImages/, Annotations/ID.xml, ImageSets/Main/{train,val,test}.txt",
        tn5000.fits,
        tn5000.read,
    ),
    "auitd": Layout(
        "train/ and test/ with benign/, malignant/ and normal thyroid/, folders inside them or not",
        auitd.fits,
        auitd.read,
    ),
    "reports": Layout(
        "new_{Liver,Mammary,Thyroid}2.json beside {Liver,Mammary,Thyroid}_report/",
        reports.fits,
        reports.read,
        ("name", "caption_key"),
    ),
    "pmc-oa": Layout("pmc_oa.jsonl and images/", pmc_oa.fits, pmc_oa.read),
    "rocov2": Layout(
        "{train,valid,test}_captions.csv and {train,valid,test}_images/",
        rocov2.fits,
        rocov2.read,
        ("concept",),
    ),
    "us365k": Layout(
        "full_data.json, train.jsonl, valid.jsonl, test.jsonl and images/ or images.zip",
        us365k.fits,
        us365k.read,
        ("tag_keys", "image_dirs"),
        refusals=True,
        tags=us365k.FIELDS,
    ),
    "json": Layout(
        "a .json or .jsonl file of rows with an image each, or train.jsonl, val.jsonl, test.jsonl",
        document.fits_json,
        document.read_json_rows,
        (*_KEYS, "image_dirs"),
    ),
    "parquet": Layout(
        "a .parquet file with images inside, or a folder of them",
        document.fits_parquet,
        document.read_parquet_rows,
        _KEYS,
    ),
    "table": Layout(
        "a .csv or .tsv file with columns filepath, mask, label, patient, split, title",
        table.fits,
        table.read,
        TABLE_OPTIONS,
    ),
    # Last: any folder of folders of images has it, so it counts only where no other fits.
    "folder": Layout(
        "images/, masks/ and perhaps labels.csv, or a folder of images for each class; either "
        "perhaps under train/, val/ and test/",
        folder.fits,
        folder.read,
    ),
}


def options_of(data: str | os.PathLike[str], layout: str | None = None) -> tuple[str, ...]:
    """The options that a data set's layout has, as load_cases takes them.

    Raises DataError if there is no such path or layout.
    """
    return LAYOUTS[_layout(data, layout)[1]].options


def tag_options(data: str | os.PathLike[str], wanted: Sequence[str]) -> dict[str, Any]:
    """The option by which a data set's layout reads these fields too, if it can and has to be told.

    A layout with tags of its own reads these, unless any of them is among the fields: then it is
    the fields.

    Raises DataError if there is no such path.
    """
    layout = LAYOUTS[_layout(data, None)[1]]
    told = "tag_keys" in layout.options and (not layout.tags or {*layout.tags} & {*wanted})
    return {"tag_keys": tuple(wanted)} if wanted and told else {}


def load_cases(
    data: str | os.PathLike[str],
    *,
    task: Need = "segment",
    layout: str | None = None,
    leave_out: bool = False,
    refusals: Refusals | None = None,
    **options: Any,
) -> CaseSet:
    """Find the images of a data set with their masks or labels; no pixel is read yet.

    data: "sample", the simulated set inside the package; a folder, or a table.
    task: what is needed: masks are looked up for "segment" alone; for "classify" each image needs
        a label; "pairs" and "image" need neither.
    layout: a key of LAYOUTS; None finds it out.
    refusals: of captions that refuse to describe: "drop" leaves their images out, counts and
        lists them, "keep" does not look for them; None: as the layout has it.
    options: those of the layout, as DataSource describes them.
    leave_out: leave out and count single images that cannot be used, as one that is missing or has
        no label, instead of raising; what is wrong with each is in the set's `unusable`.

    Raises DataError for the first thing that is wrong; fastht.data.check finds all of them.
    """
    found, problems = scan_cases(data, task=task, layout=layout, refusals=refusals, **options)
    if leave_out and found.unusable:
        problems = [problem for problem in problems if problem not in found.unusable]
        usable = tuple(c for c in found if task != "classify" or c.label is not None)
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
    task: Need,
    layout: str | None = None,
    refusals: Refusals | None = None,
    **options: Any,
) -> tuple[CaseSet, list[str]]:
    """As load_cases, but return the problems beside what could be found.

    Raises DataError only where nothing can be found at all.
    """
    source = os.fspath(data)
    root, layout = _layout(data, layout)
    chosen = LAYOUTS[layout]
    # By identity, as fold 0 is an option and equals False.
    given = {
        key: value
        for key, value in options.items()
        if value is not None and value is not False and value != ()
    }
    for option in sorted(given.keys() - set(chosen.options)):
        owners = [key for key, other in LAYOUTS.items() if option in other.options]
        if not owners:
            raise TypeError(f"no layout has an option {option}")
        *others, last = owners
        names = f"layouts {', '.join(others)} and {last}" if others else f"layout {last}"
        what = f"{option} is for {names}, not for {layout}"
        raise DataError(f"{source}: {what}; omit it")
    reading = chosen.read(root, task, **given)
    if refusals == "drop" or (refusals is None and chosen.refusals):
        leave_out_refusals(reading)
    found = reading.finish(source, layout, task)
    return add_account(found, root, reading.used, task), reading.problems


def _layout(data: str | os.PathLike[str], layout: str | None) -> tuple[Path, str]:
    """Where a data set lies and its layout."""
    source = os.fspath(data)
    root = table.sample_path() if source == "sample" else Path(source)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; check the path")
    if layout is None:
        layout = _detect(root)
    if layout not in LAYOUTS:
        raise DataError(f"{source}: no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    return root, layout


def _detect(root: Path) -> str:
    """The layout of a path."""
    fitting = [key for key, layout in LAYOUTS.items() if layout.fits(root)]
    for general in ("folder", "json"):
        if len(fitting) > 1 and general in fitting:
            fitting.remove(general)
    if len(fitting) == 1:
        return fitting[0]
    what = f"fits several layouts ({', '.join(fitting)})" if fitting else "fits no layout"
    known = "\n".join(f"  {key:<10} {layout.looks}" for key, layout in LAYOUTS.items())
    raise DataError(f"{root}: {what}; point at the folder itself and name its layout:\n{known}")
