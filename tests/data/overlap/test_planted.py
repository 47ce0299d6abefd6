"""Planted copies are found and other images are not: precision and recall."""

from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import planted_copies
import pytest
from PIL import Image

from fastht.data.cases import Case
from fastht.data.overlap.fingerprints import fingerprint
from fastht.data.overlap.nearest import nearest
from fastht.data.overlap.shared import find_pairs

SAMPLE = Path(str(resources.files("fastht.data"))) / "sample" / "images"
PLANTED = 300


def cases(paths: list[Path]) -> list[Case]:
    return [Case(str(path), str(path)) for path in paths]


def plant(files: list[Path], folder: Path) -> tuple[list[Path], list[str]]:
    """A copy of every file, in turn of each kind; the kinds."""
    generator = np.random.default_rng(0)
    copies, kinds = [], []
    names = ["same bytes", *planted_copies.CHANGES]
    for i, file in enumerate(files):
        kind = names[i % len(names)]
        copy = folder / f"copy-{i:03d}{'.jpg' if kind == 'same bytes' else '.png'}"
        if kind == "same bytes":
            copy.write_bytes(file.read_bytes())
        else:
            with Image.open(file) as image:
                planted_copies.CHANGES[kind](image.convert("RGB"), generator).save(copy)
        copies.append(copy)
        kinds.append(kind)
    return copies, kinds


def test_precision_and_recall_over_planted_pairs(tmp_path: Path) -> None:
    """300 copies among the sample's images, two of every patient: every one, and no other."""
    files = sorted(SAMPLE.glob("*.jpg"))
    copies, kinds = plant(files[:PLANTED], tmp_path)
    first = fingerprint(cases(files[:PLANTED]))
    second = fingerprint(cases([*copies, *files[PLANTED:]]))
    found = find_pairs(first, second)
    right = [pair for pair in found.pairs if pair.first == pair.second]
    recall = Counter(kinds[pair.first] for pair in right)
    assert recall == Counter(kinds)  # 60 of each kind
    assert len(found.pairs) == len(right)  # precision 1
    assert found.cut == 0
    told = Counter((kinds[pair.first], pair.kind) for pair in right)
    assert told["same bytes", "bytes"] == PLANTED // 5
    assert min(pair.similarity for pair in right) > 0.8  # far above the threshold of 0.6


def test_images_of_one_scanner_are_told_apart(tmp_path: Path) -> None:
    """Their hashes are near, as most of the picture is the same; copies are found among them."""
    files = [tmp_path / f"{seed}.png" for seed in range(40)]
    for seed, file in enumerate(files):
        planted_copies.scanner_image(file, seed)
    prints = fingerprint(cases(files))
    candidates = nearest(prints.hashes[:, 0], prints.hashes, same=True)
    assert len(candidates.whole) > 100  # so that the comparison of pixels is what tells them apart
    assert find_pairs(prints).pairs == ()
    generator = np.random.default_rng(1)
    copies = []
    for i, file in enumerate(files[:10]):
        with Image.open(file) as image:
            cropped = planted_copies.crop(image.convert("RGB"), generator)
        copies.append(tmp_path / f"copy-{i}.png")
        planted_copies.reencode(cropped, generator).save(copies[-1])
    found = find_pairs(fingerprint(cases(copies)), prints)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(i, i) for i in range(10)]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_crop_is_found_from_either_side(tmp_path: Path, swapped: bool) -> None:
    file = sorted(SAMPLE.glob("*.jpg"))[7]
    cut = tmp_path / "cut.png"
    with Image.open(file) as image:
        image.crop((16, 16, 144, 144)).save(cut)  # a tenth off every side
    one, other = fingerprint(cases([file])), fingerprint(cases([cut]))
    pairs = find_pairs(other, one).pairs if swapped else find_pairs(one, other).pairs
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [(0, 0, "near")]


def test_plain_images_are_no_copies_unless_their_pixels_are(tmp_path: Path) -> None:
    files = [tmp_path / f"{gray}.png" for gray in (10, 20, 20.5)]
    for file in files:
        Image.new("L", (40, 30), int(float(file.stem))).save(file)
    found = find_pairs(fingerprint(cases(files)))
    assert [(p.first, p.second, p.kind) for p in found.pairs] == [(1, 2, "bytes")]
