"""What runs say of empty masks and of lesions that are small, before a model sees them."""

from pathlib import Path

import numpy as np
import pytest
from miniature_sets import draw, prostate
from PIL import Image

from fastht.data import Case, load_cases
from fastht.data.lesions import note_lesions
from fastht.data.notes import count_notes


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Lesions of 40, 3 and 0 pixels a side on 800 x 1000 pixels; a mask that cannot be read."""
    made = []
    for name, side in (("large", 40), ("small", 3), ("none", 0)):
        mask = np.zeros((800, 1000), np.uint8)
        mask[402 : 402 + side, 503 : 503 + side] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}-mask.png")
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        made.append(Case(name, f"{tmp_path}/{name}.png", (f"{tmp_path}/{name}-mask.png",)))
    (tmp_path / "broken.png").write_bytes(b"")
    broken = Case("broken", f"{tmp_path}/large.png", (f"{tmp_path}/broken.png",))
    return [*made, broken, Case("without", f"{tmp_path}/large.png")]


def test_small_lesions_and_empty_masks_are_counted(cases: list[Case]) -> None:
    notes = note_lesions(cases, 224)
    assert count_notes(notes) == {"masks_empty": 1, "lesions_between_pixels": 1}
    assert [note.text.partition(";")[0] for note in notes] == [
        "1 empty mask: none",
        "1 image with lesions that fall between the pixels at 224 x 224: small",
    ]
    assert count_notes(note_lesions(cases, 1000)) == {"masks_empty": 1}


def test_letterboxed_images_are_judged_at_their_size_within_the_square(tmp_path: Path) -> None:
    mask = np.zeros((60, 600), np.uint8)
    mask[31:33, 100:140] = 255  # squashed, 224 rows hold it; letterboxed, 22 do not
    Image.fromarray(mask).save(tmp_path / "a.png")
    case = Case("a", f"{tmp_path}/a.png", (f"{tmp_path}/a.png",))
    assert note_lesions([case], 60) == ()
    assert count_notes(note_lesions([case], 60, "letterbox")) == {"lesions_between_pixels": 1}


def test_images_that_exif_turns_are_read_as_they_are_seen(tmp_path: Path) -> None:
    picture = Image.new("L", (40, 20), 90)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    draw(tmp_path / "m.png", np.zeros((40, 20), np.uint8))
    case = Case("a", f"{tmp_path}/a.jpg", (f"{tmp_path}/m.png",))
    assert count_notes(note_lesions([case], 224)) == {"masks_empty": 1}


def test_volumes_without_a_place_are_told(tmp_path: Path) -> None:
    prostate(tmp_path)  # whose affines say nothing
    found = load_cases(tmp_path)
    (note,) = [note for note in found.notes if note.kind == "volumes_without_place"]
    assert note.count == 3
    assert note.text.startswith("3 volumes whose header, or whose mask's, does not say where")
    assert "their shapes alone" in note.text
    assert count_notes(note_lesions(found, 224))["masks_empty"] == 3


def test_volumes_with_a_place_are_not(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    prostate(tmp_path)
    for path in tmp_path.rglob("*.nii.gz"):
        voxels = np.asarray(nibabel.load(path).dataobj)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.1, 0.1, 1, 1])), path)
    assert "volumes_without_place" not in count_notes(load_cases(tmp_path).notes)
