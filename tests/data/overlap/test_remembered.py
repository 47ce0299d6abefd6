"""What runs remember: copies of training images under other names are known again."""

import shutil
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from fastht.data import DataError, Record
from fastht.data.cases import Case
from fastht.data.overlap.remembered import REMEMBERED_NAME, find_known, remember

SAMPLE = Path(str(resources.files("fastht.data"))) / "sample" / "images"


def case(path: Path) -> Case:
    return Case(path.stem, str(path))


@pytest.fixture
def trained(tmp_path: Path) -> list[Case]:
    """Five images, remembered in the folder run."""
    cases = []
    for number in (1, 3, 5, 7, 9):
        path = tmp_path / "train" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(SAMPLE / f"{number:04d}.jpg", path)
        cases.append(case(path))
    (tmp_path / "run").mkdir()
    remember(tmp_path / "run", cases)
    return cases


def copies(folder: Path) -> list[Case]:
    """The same bytes, the same pixels, a crop, and an image that trained nothing."""
    folder.mkdir()
    shutil.copy(SAMPLE / "0001.jpg", folder / "bytes.jpg")
    with Image.open(SAMPLE / "0003.jpg") as image:
        image.convert("RGB").save(folder / "pixels.png")
    with Image.open(SAMPLE / "0005.jpg") as image:
        image.crop((10, 5, 150, 152)).save(folder / "crop.png")
    shutil.copy(SAMPLE / "0011.jpg", folder / "new.jpg")
    return [case(path) for path in sorted(folder.iterdir())]


def test_copies_are_known_whatever_they_are_called(tmp_path: Path, trained: list[Case]) -> None:
    known = find_known(tmp_path / "run", copies(tmp_path / "test"))
    assert known is not None
    kinds = {Path(name).name: kind for name, kind in known.kinds.items()}
    assert kinds == {"bytes.jpg": "bytes", "pixels.png": "pixels", "crop.png": "near"}
    assert known.perhaps == ()
    assert known.plain() == {"bytes": 1, "pixels": 1, "near": 1, "perhaps": 0}
    assert known.describe().startswith("1 same bytes, 1 same pixels, 1 near duplicates: ")


def test_the_run_keeps_no_picture_and_says_where_pixels_cannot_tell(
    tmp_path: Path, trained: list[Case]
) -> None:
    shutil.rmtree(tmp_path / "train")
    known = find_known(tmp_path / "run", copies(tmp_path / "test"))
    assert known is not None
    assert sorted(known.kinds.values()) == ["bytes", "pixels"]  # hashes are enough for these
    assert [Path(name).name for name in known.perhaps] == ["crop.png"]


def test_a_share_of_a_side_is_remembered_alone(tmp_path: Path, trained: list[Case]) -> None:
    remember(tmp_path / "run", trained[1:2], among=trained)
    known = find_known(tmp_path / "run", copies(tmp_path / "test"))
    assert known is not None
    assert [Path(name).name for name in known.kinds] == ["pixels.png"]


def test_records_and_damage(tmp_path: Path, trained: list[Case]) -> None:
    records = [Record(trained[0].image, "a"), Record(trained[0].image, "b")]
    known = find_known(tmp_path / "run", records)
    assert known is not None
    assert list(known.kinds.values()) == ["bytes"]
    assert find_known(tmp_path, records) is None  # as runs of older versions
    (tmp_path / "run" / REMEMBERED_NAME).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"trained_on\.npz: cannot be read"):
        find_known(tmp_path / "run", records)
