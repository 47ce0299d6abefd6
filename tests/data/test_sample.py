"""The simulated sample set inside the package: whole, balanced, and its words are in its pixels."""

import csv
import itertools
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image")
ImageFilter = pytest.importorskip("PIL.ImageFilter")
ImageStat = pytest.importorskip("PIL.ImageStat")

SAMPLE = Path(__file__).parents[2] / "fastht" / "data" / "sample"
LABELS = {"cyst", "benign mass", "malignant mass"}
ATTRIBUTES = {
    "shape": {"oval", "round", "irregular"},
    "margin": {"circumscribed", "microlobulated", "indistinct", "spiculated"},
    "echogenicity": {"anechoic", "hypoechoic", "isoechoic", "hyperechoic"},
    "orientation": {"parallel", "not parallel"},
    "posterior": {"none", "enhancement", "shadowing"},
    "calcification": {"none", "present"},
}
FIELDS = {
    "Diagnosis": {"cyst", "mass"},
    "Body_system_level": {"Breast and Axilla"},
    "Organ_level": {"Breast"},
    "Shape": {"oval", "round", "irregular"},
    "Margins": {"well-defined", "ill-defined/indistinct"},
    "Echogenicity": {"anechoic", "hypoechoic", "isoechoic", "hyperechoic"},
    "InternalCharacteristics": {"", "calcifications"},
    "PosteriorAcoustics": {"", "enhancement", "shadowing"},
    "Vascularity": {""},
}
SIDE = 160  # px
BELOW = 21  # rows that are read below a lesion, 4 mm


@pytest.fixture(scope="module")
def rows():
    with open(SAMPLE / "sample.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load(row):
    image, mask = Image.open(SAMPLE / row["filepath"]), Image.open(SAMPLE / row["mask"])
    return image, mask


def mean_in(image, mask):
    return ImageStat.Stat(image, mask.convert("L")).mean[0]


def posterior_contrast(row):
    """Mean brightness below the middle of the lesion minus that of the same rows beside it."""
    image, mask = load(row)
    left, _, right, bottom = mask.getbbox()
    quarter = (right - left) // 4
    rows = (bottom, min(bottom + BELOW, SIDE))

    def mean(first, last):
        return ImageStat.Stat(image.crop((first, rows[0], last, rows[1]))).mean[0]

    wider_side = (0, left - 5) if left > SIDE - right else (right + 5, SIDE)
    return mean(left + quarter, right - quarter) - mean(*wider_side)


def test_columns_and_values(rows):
    assert list(rows[0]) == ["filepath", "mask", "title", "label", "patient", *ATTRIBUTES, *FIELDS]
    assert len(rows) == 320
    assert {row["label"] for row in rows} == LABELS
    for name, values in (ATTRIBUTES | FIELDS).items():
        assert {row[name] for row in rows} == values


def test_every_image_has_its_mask(rows):
    assert len({row["filepath"] for row in rows}) == len(rows)
    assert {path.name for path in SAMPLE.glob("images/*")} == {
        Path(row["filepath"]).name for row in rows
    }
    for row in rows:
        image, mask = load(row)
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (SIDE, SIDE))
        assert (mask.format, mask.mode, mask.size) == ("PNG", "1", (SIDE, SIDE))
        left, top, right, bottom = mask.getbbox()  # None, an error, if the mask is empty
        assert left > 0
        assert top > 0
        assert right < SIDE
        assert bottom < SIDE - BELOW // 2


def test_folder_is_small():
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 5e6


def test_classes_are_balanced(rows):
    counts = Counter(row["label"] for row in rows)
    assert max(counts.values()) - min(counts.values()) <= 2


def test_views_of_a_patient_share_the_lesion(rows):
    patients = defaultdict(list)
    for row in rows:
        patients[row["patient"]].append(row)
    assert len(patients) == 160
    for first, second in patients.values():
        assert [first[k] for k in ("label", *ATTRIBUTES)] == [
            second[k] for k in ("label", *ATTRIBUTES)
        ]


def test_captions_state_the_class_and_every_attribute(rows):
    titles = [row["title"] for row in rows]
    assert len(set(titles)) >= 200
    for row in rows:
        assert row["label"] in row["title"]
        for name in ("shape", "margin", "echogenicity", "orientation"):
            assert f" {row[name]} " in row["title"]
        assert ("posterior " + row["posterior"] in row["title"]) == (row["posterior"] != "none")
        assert ("calcifications" in row["title"]) == (row["calcification"] == "present")


def test_orientation_is_in_the_mask(rows):
    for row in rows:
        left, top, right, bottom = load(row)[1].getbbox()
        ratio = (right - left) / (bottom - top)
        assert ratio > 1.05 if row["orientation"] == "parallel" else ratio < 1.15


def test_echogenicity_is_in_the_pixels(rows):
    levels = defaultdict(list)
    for row in rows:
        levels[row["echogenicity"]].append(mean_in(*load(row)))
    mean = {name: statistics.mean(values) for name, values in levels.items()}
    order = ["anechoic", "hypoechoic", "isoechoic", "hyperechoic"]
    for darker, brighter in itertools.pairwise(order):
        assert mean[darker] + 10 < mean[brighter]


def test_posterior_feature_is_in_the_pixels(rows):
    contrasts = defaultdict(list)
    for row in rows:
        contrasts[row["posterior"]].append(posterior_contrast(row))
    mean = {name: statistics.mean(values) for name, values in contrasts.items()}
    assert mean["shadowing"] + 10 < mean["none"]
    assert mean["none"] + 10 < mean["enhancement"]


def test_calcifications_are_in_the_pixels(rows):
    peaks = defaultdict(list)
    for row in rows:
        if row["echogenicity"] == "hypoechoic":
            image, mask = load(row)
            core = mask.convert("L").filter(ImageFilter.MinFilter(13))  # without the bright edge
            stat = ImageStat.Stat(image, core)
            peaks[row["calcification"]].append(stat.extrema[0][1] - stat.mean[0])
    assert statistics.mean(peaks["present"]) > statistics.mean(peaks["none"]) + 20


def test_table_and_masks_are_those_of_the_script(rows):
    np = pytest.importorskip("numpy")
    pytest.importorskip("scipy")
    from fastht.data.make_sample import lesion_mask
    from fastht.data.sample_cases import describe

    for index in (0, 1, 150, 319):
        row, outline = describe(0, index)
        assert row == rows[index]
        mask = np.asarray(load(row)[1])
        # Rounding differs between processors: a pixel on the boundary may change sides.
        assert (mask != lesion_mask(outline)).sum() <= 2
