"""Files and folders of images: every frame is found, what is skipped is named with its reason."""

import nibabel
import numpy as np
import pytest
from dicom_files import write_dicom
from PIL import Image

from fastht.data import DataError
from fastht.data.cases import read_case_image
from fastht.tasks.inference.found import find_images


@pytest.fixture
def folder(tmp_path):
    pixels = np.full((6, 8), 90, np.uint8)
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "a" / "one.png")
    Image.fromarray(pixels).save(tmp_path / "a" / "one.jpg")
    Image.fromarray(pixels).save(tmp_path / "a" / ".hidden" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "false.dcm").write_text("no image either")
    write_dicom(tmp_path / "clip", np.stack([pixels] * 3), NumberOfFrames=3)  # without a suffix
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((8, 6, 2), np.uint8), np.eye(4)), tmp_path / "v.nii.gz"
    )
    return tmp_path


def test_every_frame_is_an_image_and_the_rest_is_told(folder):
    found = find_images([str(folder)], "all")
    names = {case.name: case.image.removeprefix(f"{folder}/") for case in found.cases}
    assert names == {
        "a/one": "a/one.jpg",
        "a/one-2": "a/one.png",
        "clip/0000": "clip::0",
        "clip/0001": "clip::1",
        "clip/0002": "clip::2",
        "v/0000": "v.nii.gz::0",
        "v/0001": "v.nii.gz::1",
    }
    assert found.files == 4
    told = found.account()
    assert "7 images in 4 files" in told
    assert "1 no image file" in told
    assert "1 not a DICOM file (no DICM mark)" in told
    assert str(folder / "false.dcm") in told


def test_a_moving_picture_is_its_frames(tmp_path):
    frames = [Image.new("L", (8, 6), 40 * i) for i in range(3)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    found = find_images([str(tmp_path)], "all")
    assert [case.name for case in found.cases] == ["clip/0000", "clip/0001", "clip/0002"]
    assert [read_case_image(case).getpixel((0, 0)) for case in found.cases] == [
        (40 * i,) * 3 for i in range(3)
    ]
    (middle,) = find_images([str(tmp_path)], "middle").cases
    assert read_case_image(middle).getpixel((0, 0)) == (40, 40, 40)


def test_the_middle_frame_alone(folder):
    found = find_images([str(folder / "clip"), str(folder / "v.nii.gz")], "middle")
    assert [case.image.rpartition("/")[2] for case in found.cases] == ["clip", "v.nii.gz::0"]


def test_a_file_that_is_named_twice_is_read_once(folder):
    found = find_images([str(folder / "a" / "one.png"), str(folder / "a")], "all")
    assert len(found.cases) == 2
    assert found.skipped[str(folder / "a" / "one.png")].startswith("the same file: ")


def test_nothing_to_read_is_refused(folder):
    with pytest.raises(DataError, match=r"no such file or folder; check the path"):
        find_images([str(folder / "none")], "all")
    with pytest.raises(DataError, match=r"no image; give files or folders of PNG"):
        find_images([str(folder / "a" / "notes.txt")], "all")
