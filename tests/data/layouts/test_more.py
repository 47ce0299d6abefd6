"""Published layouts whose miniatures are of more_sets: read right, damaged in every way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import more_sets
import numpy as np
import pytest
from miniature_sets import blob, lines, picture

from fastht.data import DataError, load_cases, load_records, read_case_image, read_mask
from fastht.data.check import CheckArguments, check
from fastht.data.records import split_records

# Name of the maker, layout, what is needed, options.
SETS = [
    ("aul", "aul", "classify", {}),
    ("bus_bra", "bus-bra", "classify", {}),
    ("bus_cot", "bus-cot", "classify", {}),
    ("tn5000", "tn5000", "classify", {}),
    ("auitd", "auitd", "classify", {}),
    ("reports", "reports", "pairs", {"caption_key": "finding_en"}),
    ("pmc_oa", "pmc-oa", "pairs", {}),
    ("rocov2", "rocov2", "pairs", {}),
    ("us365k", "us365k", "pairs", {}),
    ("json_rows", "json", "classify", more_sets.JSON_KEYS),
    ("parquet_rows", "parquet", "classify", {}),
]


def source(root: Path, maker: str) -> Path:
    return root / "rows.json" if maker == "json_rows" else root


@pytest.mark.parametrize(("maker", "layout", "task", "options"), SETS)
def test_is_recognised_and_read_whole(
    tmp_path: Path, maker: str, layout: str, task: str, options: dict[str, str]
) -> None:
    if maker == "parquet_rows":
        pytest.importorskip("pyarrow")
    labels = getattr(more_sets, maker)(tmp_path)
    found = load_cases(source(tmp_path, maker), task=task, **options)
    assert found.layout == layout
    assert {case.name: case.label for case in found} == labels
    pixels = {read_case_image(case).tobytes() for case in found}
    assert len(pixels) == len(found)  # every case has its own image
    if task == "pairs":
        assert all(len(case.caption) > 10 for case in found)


@pytest.mark.parametrize(("maker", "layout", "task", "options"), SETS)
def test_check_finds_nothing_wrong(
    tmp_path: Path,
    maker: str,
    layout: str,
    task: str,
    options: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if maker == "parquet_rows":
        pytest.importorskip("pyarrow")
    getattr(more_sets, maker)(tmp_path)
    arguments = CheckArguments(data=str(source(tmp_path, maker)), task=task, **options)
    assert check(arguments) == 0
    assert "no problems" in capsys.readouterr().out


SIDES = {
    "bus_bra": ({"fold": 2}, {"bus_0002-l": "test", "bus_0001-l": "train", "bus_0001-r": "train"}),
    "bus_cot": ({}, {"000000@0": "train", "000003@0": "test"}),
    "tn5000": ({}, {"000000": "train", "000002": "val", "000003": "test"}),
    "auitd": ({}, {"train-benign-1": "train", "test-Benign-1": "test"}),
    "reports": (
        {"caption_key": "finding_en"},
        {"Liver_report-0_1": "train", "Liver_report-1_2": "val", "Liver_report-2_1": "test"},
    ),
    "rocov2": (
        {},
        {"ROCOv2_2023_valid_000001": "val", "ROCOv2_2023_test_000002": "test"},
    ),
    "json_rows": (more_sets.JSON_KEYS, {"a-1": "train", "b-1": "train", "c-1": "test"}),
}


@pytest.mark.parametrize("maker", SIDES)
def test_official_splits_are_kept_and_part_no_patient(tmp_path: Path, maker: str) -> None:
    options, expected = SIDES[maker]
    getattr(more_sets, maker)(tmp_path)
    task = next(task for name, _, task, _ in SETS if name == maker)
    found = load_cases(source(tmp_path, maker), task=task, **options)
    assert all(case.split for case in found)
    sides = {case.name: case.split for case in found}
    assert expected.items() <= sides.items()
    patients = {(case.patient, case.split) for case in found if case.patient is not None}
    assert len(patients) == len({patient for patient, _ in patients})


def test_aul_masks_are_the_outlines_of_masses(tmp_path: Path) -> None:
    more_sets.aul(tmp_path)
    found = load_cases(tmp_path)
    assert found.left_out == {"normal, no mass": 2}
    for case in found:
        number = int(case.name[-1])
        np.testing.assert_array_equal(read_mask(case), blob(number, 2), err_msg=case.name)


def test_bus_bra_masks_and_patients(tmp_path: Path) -> None:
    more_sets.bus_bra(tmp_path)
    cases = {case.name: case for case in load_cases(tmp_path)}
    np.testing.assert_array_equal(read_mask(cases["bus_0002-l"]), blob(2, 2))
    assert cases["bus_0001-l"].patient == cases["bus_0001-r"].patient == "1"


def test_bus_cot_leaves_an_origin_out_and_counts_it(tmp_path: Path) -> None:
    more_sets.bus_cot(tmp_path)
    found = load_cases(tmp_path, task="pairs", exclude_origin=("bus-bra",))
    assert [case.name for case in found] == ["000000@0", "000000@1"]
    assert found.left_out == {"origin BUSBRA": 3}
    assert found.cases[0].caption == "A second caption."
    assert found.cases[1].caption == "An irregular hypoechoic lesion, number 1."
    every = load_cases(tmp_path, task="classify")
    # The origins number their patients each by itself.
    assert {case.patient for case in every} == {"BUSI-p1", "BUSBRA-p1", "BUSBRA-p7"}
    with pytest.raises(DataError, match="no image of origin BUSY; the origins are BUSBRA, BUSI"):
        load_cases(tmp_path, task="classify", exclude_origin=("BUSY",))


def test_auitd_never_mixes_up_images_of_one_name(tmp_path: Path) -> None:
    labels = more_sets.auitd(tmp_path)
    for case in load_cases(tmp_path, task="classify"):
        folder = "/".join(Path(case.image).relative_to(tmp_path).parts[:-1])
        assert case.name == f"{folder}/1".replace("/", "-")
        assert case.label == labels[case.name]


def test_reports_keep_both_views_together(tmp_path: Path) -> None:
    more_sets.reports(tmp_path)
    found = load_cases(tmp_path, task="pairs", caption_key="finding_en")
    views = [case for case in found if case.patient == "1"]
    assert len(views) == 2
    assert len({(case.split, case.caption) for case in views}) == 1
    assert all(case.label is None for case in found)  # numbers of clusters are none


def test_rocov2_by_concept(tmp_path: Path) -> None:
    more_sets.rocov2(tmp_path)
    found = load_cases(tmp_path, task="pairs", concept="C0041618")
    assert all(case.name.endswith("000001") for case in found)
    assert found.left_out == {"without concept C0041618": 3}
    with pytest.raises(DataError, match="no image of concept C1"):
        load_cases(tmp_path, task="pairs", concept="C1")


def test_sets_of_captions_are_image_text_pairs_with_their_split(tmp_path: Path) -> None:
    more_sets.rocov2(tmp_path)
    records = load_records(tmp_path)
    assert {record.split for record in records} == {"train", "val", "test"}
    train, val = split_records(records.records, val_fraction=0.5)
    assert [record.split for record in (*train, *val)] == ["train", "train", "val", "val"]


# Damages: what is done to a set, and what is said.
Damage = Callable[[Path], None]


def unlink(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def replace(name: str, old: str, new: str) -> Damage:
    def act(root: Path) -> None:
        text = (root / name).read_text(encoding="utf-8-sig")
        assert old in text
        (root / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return act


LESIONS = "DatasetFiles/lesion_dataset.json"
EXPERT = "DatasetFiles/BUS-Expert_dataset.json"
DAMAGES: list[tuple[str, Damage, str]] = [
    ("aul", lambda root: shutil.rmtree(root / "Normal" / "image"), "fits no|no images of class"),
    ("bus_bra", unlink("Images/bus_0002-l.png"), r"bus_data\.csv, line 4: no image .*bus_0002-l"),
    ("bus_bra", replace("bus_data.csv", "malignant", "maligant"), "Pathology 'maligant' is neit"),
    ("bus_bra", replace("bus_data.csv", "bus_0003-s,3,", "bus_0003-s,,"), "no Case, the patient"),
    ("bus_bra", replace("bus_data.csv", "Pathology", "Path"), "no column Pathology; the columns"),
    ("bus_bra", lambda root: picture(root / "Images/bus_9.png"), r"bus_9\.png: no row of this ID"),
    ("bus_cot", unlink("BUS-Lesion/test/000003@0.png"), "000003@0: no image .*correct image_path"),
    ("bus_cot", replace(EXPERT, '"000003"', '"000009"'), "000003@0.png has no patient_id"),
    ("bus_cot", replace(EXPERT, '"BUSBRA"', '""'), "has no patient_id and dataset"),
    ("bus_cot", replace(LESIONS, '"trainval"', '"both"'), "split 'both' is none of trainval"),
    ("bus_cot", replace(EXPERT, "p7", "p1"), "patient BUSBRA-p1 is in train and in test"),
    ("bus_cot", replace(LESIONS, '{"000000@0"', '["000000@0"'), r"lesion_dataset\.json: not JSON"),
    ("bus_cot", replace(LESIONS, '"000000@1"', '"000000@0"'), "key 000000@0 is there twice"),
    ("tn5000", unlink("JPEGImages/000002.jpg"), r"val\.txt: no image 000002"),
    ("tn5000", unlink("Annotations/000002.xml"), r"000002\.xml: cannot be read"),
    ("tn5000", replace("Annotations/000002.xml", ">0<", ">2<"), "classes of objects are 2, not 0"),
    ("tn5000", replace("Annotations/000002.xml", "</object>", ""), r"000002\.xml: not XML"),
    (
        "tn5000",
        lambda root: lines(root / "ImageSets/Main/test.txt", "000003", "000000"),
        "000000 is in train and in test",
    ),
    ("tn5000", unlink("ImageSets/Main/val.txt"), r"val\.txt: cannot be read"),
    ("auitd", lambda root: (root / "train/other").mkdir(), "other: no folder of a class"),
    ("reports", unlink("Liver_report/1_2.jpeg"), r"val 0: no image .*1_2\.jpeg"),
    (
        "reports",
        replace("new_Liver2.json", '"uid": 1', '"uid": 0'),
        "report 0 is in train and in",
    ),
    ("reports", replace("new_Liver2.json", '"split": "val"', '"split": "test"'), "its split is 't"),
    ("reports", replace("new_Liver2.json", '"finding_en"', '"en"'), "train 0: no finding_en; add"),
    ("reports", replace("new_Liver2.json", '"uid": 2, ', ""), "test 0: no uid or no image_path"),
    ("pmc_oa", unlink("images/PMC999_Fig1_1.jpg"), r"line 3: no image .*PMC999"),
    ("pmc_oa", replace("pmc_oa.jsonl", '"caption"', "caption"), r"pmc_oa\.jsonl, line 1: not JSON"),
    ("rocov2", unlink("test_captions.csv"), r"test_captions\.csv: cannot be read"),
    ("rocov2", replace("test_captions.csv", "Caption", "Text"), "no column Caption; the columns"),
    (
        "rocov2",
        unlink("valid_images/valid/ROCOv2_2023_valid_000002.jpg"),
        r"valid_captions\.csv, line 3: no image",
    ),
    ("json_rows", unlink("b/1.png"), r"entry 0: no image b/1\.png .*of that base name there is"),
    ("json_rows", replace("rows.json", '"training"', '"dev"'), "split 'dev' is none of train"),
    ("json_rows", replace("rows.json", '"id": 8', '"id": 7'), "patient 7 is in train and in test"),
    ("json_rows", replace("rows.json", '"en": "Two', '"fr": "Deux'), "fits|no problem|1 problem"),
]


@pytest.mark.parametrize(
    ("maker", "damage", "message"), DAMAGES, ids=[f"{d[0]}-{i}" for i, d in enumerate(DAMAGES)]
)
def test_each_damage_has_its_error(
    tmp_path: Path,
    maker: str,
    damage: Damage,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    getattr(more_sets, maker)(tmp_path)
    damage(tmp_path)
    _, layout, task, options = next(entry for entry in SETS if entry[0] == maker)
    data = str(source(tmp_path, maker))
    status = check(CheckArguments(data=data, task=task, layout=layout, **options))
    text = capsys.readouterr().out
    assert re.search(message, text), text
    if "no problem" not in message:
        assert status == 1
        assert str(tmp_path) in text


def test_check_lists_the_damages_of_a_set_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more_sets.bus_bra(tmp_path)
    unlink("Images/bus_0002-l.png")(tmp_path)
    unlink("Masks/mask_0001-r.png")(tmp_path)
    replace("bus_data.csv", "bus_0003-s,3,", "bus_0003-s,,")(tmp_path)
    picture(tmp_path / "Images" / "extra.png", seed=99)
    assert check(CheckArguments(data=str(tmp_path))) == 1
    text = capsys.readouterr().out
    assert "4 problems:" in text
    for part in ("no image", "no mask of bus_0001-r", "no Case", "extra.png: no row"):
        assert part in text


@pytest.mark.parametrize(
    ("maker", "task", "message"),
    [
        ("tn5000", "segment", "has boxes, no masks; choose --task classify"),
        ("bus_cot", "segment", "has no masks; choose --task classify or pairs"),
        ("auitd", "segment", "AUITD has no masks"),
        ("reports", "classify", "neither masks nor diagnoses"),
        ("pmc_oa", "segment", "neither masks nor classes; it is for fastht train"),
        ("rocov2", "classify", "neither masks nor classes; it is for fastht train"),
        ("json_rows", "segment", "name no masks"),
        ("bus_bra", "pairs", "no image has a caption"),
    ],
)
def test_what_a_set_does_not_have_is_said(
    tmp_path: Path, maker: str, task: str, message: str
) -> None:
    getattr(more_sets, maker)(tmp_path)
    with pytest.raises(DataError, match=message):
        load_cases(source(tmp_path, maker), task=task)


def test_bus_bra_folds(tmp_path: Path) -> None:
    more_sets.bus_bra(tmp_path)
    with pytest.raises(DataError, match="no fold 9; choose of 1, 2, 3, 4"):
        load_cases(tmp_path, fold=9)
    replace("5-fold-cv.csv", "bus_0001-r,benign,1", "bus_0001-r,benign,2")(tmp_path)
    with pytest.raises(DataError, match="Case 1 is in fold 1 and in others"):
        load_cases(tmp_path, fold=1)


def test_reports_of_several_organs_are_chosen_by_name(tmp_path: Path) -> None:
    more_sets.reports(tmp_path)
    content = json.loads((tmp_path / "new_Liver2.json").read_text(encoding="utf-8-sig"))
    more_sets.write(tmp_path / "new_Thyroid2.json", content)
    shutil.copytree(tmp_path / "Liver_report", tmp_path / "Thyroid_report")
    with pytest.raises(DataError, match="several organs; choose one by --name: Liver, Thyroid"):
        load_cases(tmp_path, task="pairs")
    assert len(load_cases(tmp_path, task="pairs", name="Thyroid", caption_key="finding_en")) == 6
