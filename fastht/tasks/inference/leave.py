"""What predictions leave in a folder: a line an image at once, then tables, masks and overlays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from fastht.data.cases import Case
from fastht.data.images import DataError
from fastht.data.preprocess import SquarePreprocess
from fastht.data.spacing import read_spacing
from fastht.files import write_atomically, write_json
from fastht.tasks.images.native import lesion_margins, native_mask
from fastht.tasks.inference.predictors import Predictor
from fastht.tasks.results.tables import PREDICTIONS_NAME, write_table
from fastht.tasks.scores.segmentation import REFUSED
from fastht.tasks.training.state import ResumeError

LINES_NAME = "predictions.jsonl"  # what is done, for --resume
ABOUT_NAME = "predict.json"
SKIPPED_NAME = "skipped.csv"
MASKS_NAME, OVERLAYS_NAME = "masks", "overlays"
_OUTLINE = (230, 159, 0)  # light, as most of an ultrasound image is dark
_QUICKLY = 1  # of zlib's levels: by the usual one, PNGs took more time than all else
_TOUCHING = np.ones((3, 3))  # pixels that meet at a corner are of one region

Row = dict[str, Any]


def read_lines(out: Path, settings: Mapping[str, Any]) -> list[Row]:
    """Return what an interrupted call has done in its folder.

    Raises:
        ResumeError: there is none, or it was of another model or other options.
    """
    try:
        before = json.loads((out / ABOUT_NAME).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{out} holds no predictions to go on with ({error}); leave out --resume"
        ) from error
    now = json.loads(json.dumps(settings))
    if differing := sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n)):
        raise ResumeError(
            f"{out} was begun with other settings ({', '.join(differing)}); give another --out"
        )
    rows: list[Row] = []
    lines = out / LINES_NAME
    for line in lines.read_text(encoding="utf-8").splitlines() if lines.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last one, cut off by what ended the call
            break
    # Lines that follow a torn one would be glued to it.
    write_atomically(lines, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    return rows


def leave_image(out: Path, case: Case, picture: Image.Image, logits: Tensor, of: Predictor) -> Row:
    """Return the row of an image; of segmentation leave its mask and its overlay.

    Args:
        out: the folder.
        case: names the file and the outputs.
        picture: the image at its own size.
        logits: of the image, as the predictor returns them.
        of: the predictor.
    """
    if of.task != "segment":
        p = logits.double().softmax(dim=0)
        row: Row = {"file": case.image, "predicted": of.classes[int(p.argmax())]}
        row |= {f"p({n})": v for n, v in zip(of.classes, p.tolist(), strict=True)}
        if of.temperature is not None:
            p = (logits.double() / of.temperature).softmax(dim=0)
            row |= {f"calibrated p({n})": v for n, v in zip(of.classes, p.tolist(), strict=True)}
        return row
    assert isinstance(of.prepare, SquarePreprocess)
    shape = (picture.height, picture.width)
    mask = native_mask(lesion_margins(logits[None])[0], of.prepare.placement(shape), shape)
    _save(out / MASKS_NAME / f"{case.name}.png", Image.fromarray(mask.numpy().astype("u1") * 255))
    _save(out / OVERLAYS_NAME / f"{case.name}.png", outlined(picture, mask))
    pixels = int(mask.sum())
    return {
        "file": case.image,
        "mask": f"{MASKS_NAME}/{case.name}.png",
        "width": picture.width,
        "height": picture.height,
        "regions": int(ndimage.label(mask.numpy(), _TOUCHING)[1]),
        "area_pixels": pixels,
        "area_share": pixels / mask.numel(),
        **_in_millimetres(case, pixels),
    }


def outlined(picture: Image.Image, mask: Tensor) -> Image.Image:
    """Return a picture with the outline of a mask, drawn outside of it."""
    reach = max(1, round(max(picture.size) / 400))
    grown = F.max_pool2d(mask[None].float(), 2 * reach + 1, stride=1, padding=reach)[0] > 0
    pixels = np.array(picture)
    pixels[(grown & ~mask).numpy()] = _OUTLINE
    return Image.fromarray(pixels)


def leave_tables(
    out: Path, rows: Sequence[Row], skipped: Mapping[str, str], about: Mapping[str, Any]
) -> None:
    """Write the table of all images, that of what was skipped, and what the predictions are of."""
    if rows:
        write_table(out / PREDICTIONS_NAME, rows)
    if skipped:
        write_table(out / SKIPPED_NAME, [{"file": n, "why": w} for n, w in skipped.items()])
    write_json(out / ABOUT_NAME, dict(about))


def areas_sentence(rows: Sequence[Row]) -> str:
    """Say of how many images the area is known in square millimetres, and what was refused."""
    known = sum(row["area_mm2"] is not None for row in rows)
    text = f"areas in mm2: of {known:,} of {len(rows):,} images, whose files state a spacing"
    refused = [row["spacing"] for row in rows if row["spacing"].startswith(REFUSED)]
    return (
        f"{text}; {len(refused):,} contradict themselves, the first {refused[0]}"
        if refused
        else text
    )


def _in_millimetres(case: Case, pixels: int) -> Row:
    try:
        spacing = read_spacing(case)
    except DataError as error:  # its pixels are known all the same
        return _spaced(None, None, None, f"{REFUSED}{error}")
    if spacing is None:
        return _spaced(None, None, None, "")
    return _spaced(
        pixels * spacing.row * spacing.column, spacing.row, spacing.column, spacing.source
    )


def _spaced(area: float | None, row: float | None, column: float | None, source: str) -> Row:
    return {
        "area_mm2": area,
        "row_spacing_mm": row,
        "column_spacing_mm": column,
        "spacing": source,
    }


def _save(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, compress_level=_QUICKLY)
