"""Many equal images are told of as a group: counts and verdicts stay, and output is linear."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastht.cli import main
from fastht.data.cases import Case, CaseSet
from fastht.data.overlap import equal
from fastht.data.overlap.fingerprints import WINDOWS, Fingerprints
from fastht.data.overlap.remembered import find_known, remember
from fastht.data.overlap.shared import find_pairs
from fastht.data.overlap.sides import Shared, between, within

NO_BYTES = 0


def prints(contents: Sequence[int], pixels: Sequence[int], name: str = "i") -> Fingerprints:
    """Plain images by numbers that stand for their hashes."""
    n = len(contents)
    hashes = [np.repeat(np.array(of, np.uint8)[:, None], 32, axis=1) for of in (contents, pixels)]
    return Fingerprints(
        tuple(f"{name}{i}" for i in range(n)),
        *hashes,
        np.zeros((n, len(WINDOWS), 32), np.uint8),
        np.ones(n, bool),
        np.zeros((n, 96, 96), np.uint8),
    )


def cases(found: Fingerprints, sides: Sequence[tuple[str | None, str | None]]) -> CaseSet:
    chosen = [
        Case(image, image, split=split, patient=patient)  # type: ignore[arg-type]
        for image, (split, patient) in zip(found.images, sides, strict=True)
    ]
    return CaseSet(tuple(chosen), found.images[0], "table")


def verdict(shared: Shared) -> tuple[dict[str, int], dict[str, int]]:
    return dict(shared.counts()), dict(shared.counts_inside())


def random_case(seed: int) -> tuple[Fingerprints, CaseSet]:
    """60 images of few hashes; equal bytes have equal pixels, and some are parts of a file."""
    generator = np.random.default_rng(seed)
    contents = generator.integers(1, 7, 60)
    pixels = 1 + contents // 3
    contents[generator.random(60) < 0.2] = NO_BYTES
    found = prints(contents.tolist(), pixels.tolist(), f"s{seed}-")
    sides = [
        (("train", "test", None)[generator.integers(3)], ("p", "q", None)[generator.integers(3)])
        for _ in range(60)
    ]
    return found, cases(found, sides)


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_all_pairs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, set_of_one = random_case(seed)
    two, set_of_two = random_case(seed + 10)
    grouped = within(set_of_one, one), between(set_of_one, set_of_two, one, two)
    assert all(shared.groups for shared in grouped)
    monkeypatch.setattr(equal, "PAIRED", 10**9)
    paired = within(set_of_one, one), between(set_of_one, set_of_two, one, two)
    assert not any(shared.groups for shared in paired)
    assert [verdict(s) for s in grouped] == [verdict(s) for s in paired]
    assert set(paired[0].counts()) == {"bytes", "pixels"}  # and both are inside and apart
    assert set(paired[0].counts_inside()) == {"bytes", "pixels"}


def test_few_equal_images_stay_pairs_and_many_are_linear() -> None:
    few = find_pairs(prints([1] * equal.PAIRED, [1] * equal.PAIRED))
    assert len(few.pairs) == equal.PAIRED * (equal.PAIRED - 1) // 2
    assert few.groups == ()
    n = 2000
    many = find_pairs(prints([1] * n, [1] * n))
    assert many.pairs == ()
    assert [(g.kind, g.size, g.pairs) for g in many.groups] == [("bytes", n, n * (n - 1) // 2)]
    apart = find_pairs(prints([1 + i % 200 for i in range(n)], [1] * n))
    assert len(apart.pairs) == 200 * 45  # of equal bytes, ten each
    assert [(g.kind, g.pairs) for g in apart.groups] == [("pixels", n * (n - 1) // 2 - 200 * 45)]


def test_verdicts_on_groups() -> None:
    found = prints([1] * 30, [1] * 30)
    one_side = within(cases(found, [("train", f"p{i}") for i in range(30)]), found)
    assert (one_side.leaking, one_side.counts_inside()["bytes"]) == ((), 435)
    one_patient = within(cases(found, [(None, "p")] * 30), found)
    assert one_patient.leaking == ()
    split = within(cases(found, [("train", "p")] * 29 + [("test", "q")]), found)
    assert (split.counts()["bytes"], split.counts_inside()["bytes"]) == (29, 406)
    (group,) = split.leaking
    assert [case.image for case in group.example] == ["i0", "i29"]
    assert group.describe() == (
        "same bytes: 30 images (train 29 | test 1), 2 patients, 29 pairs: i0, i29, i1, i2, i3, ..."
    )
    nobody = within(cases(found, [(None, None)] * 30), found)
    assert nobody.counts()["bytes"] == 435


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 40 blank frames, 30 of train and 10 of test, the last of other bytes."""
    folder = tmp_path_factory.mktemp("blank")
    rows = []
    for i in range(40):
        name = f"{i:02d}.{'bmp' if i == 39 else 'png'}"
        Image.new("L", (40, 30)).save(folder / name)
        rows.append(f"{name},p{i},{'train' if i < 30 else 'test'}")
    (folder / "table.csv").write_text("\n".join(["filepath,patient,split", *rows]))
    return folder


def test_the_command_tells_groups(
    blank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "overlap", str(blank / "table.csv"), "--out", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "270 same bytes, 30 same pixels" in text
    assert "group of same bytes: 39 images (train 30 | test 9), 39 patients, 270 pairs: " in text
    assert "note: 480 copies on one side" in text  # 30 x 29 / 2 of train, 10 x 9 / 2 of test
    assert "\n300 shared" in text
    with open(tmp_path / "groups.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 39 + 40
    assert {(r["group"], r["kind"], r["pairs_that_count"]) for r in rows} == {
        ("1", "bytes", "270"),
        ("2", "pixels", "30"),
    }
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 1
    assert (tmp_path / "pairs.png").exists()


def test_members_of_groups_are_known_by_the_strictest_way(blank: Path, tmp_path: Path) -> None:
    every = [Case(str(p), str(p)) for p in sorted(blank.glob("[0-9]*"))]
    assert len(every) == 40
    (tmp_path / "run").mkdir()
    remember(tmp_path / "run", every[:30])
    moved = [replace(case, name=f"x{i}") for i, case in enumerate(every[30:])]
    known = find_known(tmp_path / "run", moved)
    assert known is not None
    assert list(known.kinds.values()).count("bytes") == 9
    assert known.kinds[every[39].image] == "pixels"
