"""Images are found by the ends of their paths, and never guessed."""

from pathlib import Path

import pytest

from fastht.data import DataError
from fastht.data.layouts.lookup import Lookup


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train/benign/1.png", "train/malignant/1.png", "test/benign/1.png", "deep/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("train/benign/1.png", "train/benign/1.png"),
        ("malignant/1.png", "train/malignant/1.png"),
        ("train\\benign\\1.png", "train/benign/1.png"),
        ("2.png", "deep/2.png"),
    ],
)
def test_one_is_meant(root: Path, named: str, found: str) -> None:
    assert Lookup([root]).find(named, "here") == root / found


def test_several_may_be_meant(root: Path) -> None:
    with pytest.raises(DataError, match=r"^here: benign/1\.png may be .*test/benign/1\.png or "):
        Lookup([root]).find("benign/1.png", "here")
    with pytest.raises(DataError, match=r"1\.png may be (.* or ){2}.*; name the image with its fo"):
        Lookup([root]).find("1.png", "here")


def test_another_of_the_same_base_name_is_not_taken(root: Path) -> None:
    message = r"no image other/2\.png below .*; of that base name there is .*deep/2\.png; correct"
    with pytest.raises(DataError, match=message):
        Lookup([root]).find("other/2.png", "here")
    with pytest.raises(DataError, match="names no image"):
        Lookup([root]).find("../2.png", "here")


def test_a_file_in_two_folders(root: Path) -> None:
    """Folders that overlap hold it once; different files of one path are two."""
    assert Lookup([root, root / "deep"]).find("2.png", "here") == root / "deep" / "2.png"
    with pytest.raises(DataError, match="may be"):
        Lookup([root / "train" / "benign", root / "train" / "malignant"]).find("1.png", "here")
    with pytest.raises(DataError, match="no such folder of images"):
        Lookup([root / "none"])
