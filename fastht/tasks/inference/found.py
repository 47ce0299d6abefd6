"""Images that are named by files and folders: which frames there are, and what is skipped."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from fastht.data.cases import Case
from fastht.data.images import DataError
from fastht.data.pixels import SUFFIXES
from fastht.data.volumes import is_volume, volume_shape

Frames = Literal["all", "middle"]

_SHOWN = 5  # of what is skipped


@dataclass
class Found:
    """What some paths hold.

    Attributes:
        cases: an image or frame each; outputs are named after them.
        files: how many they are of.
        skipped: files that are none that can be read, with the reason; and later images.
    """

    cases: list[Case] = field(default_factory=list)
    files: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def account(self) -> str:
        """Say how many images there are, and what was skipped and why."""
        frames = len(self.cases)
        lines = [f"{frames:,} image{'' if frames == 1 else 's'} in {self.files:,} files."]
        if self.skipped:
            lines.append(self.account_of_skipped())
        return "\n".join(lines)

    def account_of_skipped(self) -> str:
        """Say what was skipped, by its reasons."""
        reasons = Counter(_kind(why) for why in self.skipped.values())
        told = "; ".join(f"{count:,} {why}" for why, count in reasons.most_common())
        lines = [f"skipped: {told}."]
        lines += [f"  {name}: {why}" for name, why in list(self.skipped.items())[:_SHOWN]]
        if len(self.skipped) > _SHOWN:
            lines.append(f"  ... and {len(self.skipped) - _SHOWN:,} more, in skipped.csv")
        return "\n".join(lines)


def find_images(paths: Sequence[str], frames: Frames) -> Found:
    """Return the images of files, and of folders with all that is in them.

    Files with several frames (DICOM, TIFF, WebP, GIF) or slices (NIfTI) count as so many images, or
    as the one in the middle.

    Raises:
        DataError: a path does not exist, or there is no image.
    """
    found = Found()
    names: set[str] = set()
    seen: dict[str, Path] = {}
    for path, name in _files(paths):
        real = os.path.realpath(path)
        if real in seen:
            found.skipped[str(path)] = f"the same file: {seen[real]}"
            continue
        seen[real] = path
        why = _no_image(path)
        if why is None:
            try:
                parts = _parts(path, frames)
            except DataError as error:
                why = f"cannot be read: {error}"
        if why is not None:
            found.skipped[str(path)] = why
            continue
        found.files += 1
        free = name
        for number in itertools.count(2):  # a.png and a.jpg
            if free not in names:
                break
            free = f"{name}-{number}"
        names.add(free)
        for part in parts:
            place = free if part is None else f"{free}/{part:04d}"
            image = str(path) if part is None else f"{path}::{part}"
            found.cases.append(Case(place, image))
    if not found.cases:
        raise DataError(
            f"{', '.join(paths)}: no image; give files or folders of PNG, JPEG, TIFF, BMP, WebP, "
            f"GIF, DICOM or NIfTI\n{found.account_of_skipped() if found.skipped else ''}".rstrip()
        )
    return found


def _files(paths: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield files in a fixed order, with the name of what comes of each."""
    for text in paths:
        path = Path(text)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
            yield from ((file, _stem(file.relative_to(path))) for file in inside)
        elif path.is_file():
            yield path, _stem(Path(path.name))
        else:
            raise DataError(f"{path}: no such file or folder; check the path")


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".nii.gz", ".nii", path.suffix):
        if suffix and name.lower().endswith(suffix.lower()):
            name = name[: -len(suffix)] or name
            break
    return path.with_name(name).as_posix()


def _no_image(path: Path) -> str | None:
    """Return why a file is taken for no image; ``None``: it is one, by its name or its mark."""
    name = path.name.lower()
    if name.endswith(SUFFIXES) or is_volume(name) or _is_dicom(path):
        return None
    if name.endswith((".dcm", ".dicom", ".ima")):
        return "not a DICOM file (no DICM mark)"
    return "no image file"


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _parts(path: Path, frames: Frames) -> list[int | None]:
    """Return the frames of a file to read; ``[None]`` for a picture of one."""
    if is_volume(path.name):
        count = volume_shape(str(path))[0]
        return list(range(count)) if frames == "all" else [(count - 1) // 2]
    count = _count_frames(path)
    if count == 1 or frames == "middle":
        return [None]  # which reads the one in the middle
    return list(range(count))


def _count_frames(path: Path) -> int:
    """Return how many frames a file says that it has; whether they can be read shows later."""
    try:
        if _is_dicom(path):
            from pydicom import dcmread

            header = dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
            return max(1, int(header.get("NumberOfFrames") or 1))
        with Image.open(path) as picture:
            return int(getattr(picture, "n_frames", 1))
    except Exception:  # decoders meet damaged files with anything; the reader then says what it is
        return 1


def _kind(why: str) -> str:
    """Return a reason without what is of one file alone."""
    return why.partition(":")[0]
