"""``fastht taxonomy check`` on miniatures of US-365K: clean, and damaged in each way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import more_sets
import numpy as np
import pytest
from miniature_sets import lines
from PIL import Image

from fastht.cli import main
from fastht.data import load_cases
from fastht.tasks.tags import balance, captions, given
from fastht.tasks.tags.findings import Records, read_tags
from fastht.taxonomy import load_taxonomy, similarity

Sides = dict[str, list[dict[str, Any]]]
NAMES = [f"{i:06d}_{i:06d}_{more_sets.UUIDS[i]}" for i in range(5)]
RECORDS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "train",
        "A round hypoechoic nodule in the right thyroid lobe with increased vascularity.",
        {
            "Diagnosis": ["nodule"],
            "Body_system_level": "Head and Neck",
            "Organ_level": ["Thyroid gland"],
            "Shape": ["round"],
            "Echogenicity": ["hypoechoic"],
            "Vascularity": ["increased vascularity"],
        },
    ),
    (
        "train",
        "An anechoic cyst in the left kidney with posterior enhancement.",
        {
            "Diagnosis": ["cyst"],
            "Body_system_level": ["Urinary Tract and male reproductive system"],
            "Organ_level": ["Kidney and ureter"],
            "Echogenicity": ["anechoic"],
            "PosteriorAcoustics": ["enhancement"],
        },
    ),
    (
        "train",
        "A cyst in the liver without septations.",
        {
            "Diagnosis": "cyst",
            "Body_system_level": ["Abdomen and retroperitoneum"],
            "Organ_level": ["Liver"],
        },
    ),
    (
        "valid",
        "The liver shows an oval hyperechoic mass with ill-defined margins.",
        {
            "Diagnosis": ["mass"],
            "Body_system_level": ["Abdomen and retroperitoneum"],
            "Organ_level": ["Liver"],
            "Shape": ["oval"],
            "Echogenicity": ["hyperechoic"],
            "Margins": ["ill-defined/indistinct"],
        },
    ),
    (
        "test",
        "A fluid collection in the scrotum.",
        {
            "Diagnosis": ["fluid collection"],
            "Body_system_level": ["Urinary Tract and male reproductive system"],
            "Organ_level": ["Scrotum"],
        },
    ),
]


def save(path: Path, seed: int) -> None:
    """An image of large shapes of its own, which no other looks like."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(path, quality=95)


def rows() -> tuple[Sides, list[dict[str, Any]]]:
    sides: Sides = {"train": [], "valid": [], "test": []}
    records = []
    for i, (side, caption, tags) in enumerate(RECORDS):
        sides[side].append({"image": f"{NAMES[i]}.jpg", "caption": caption})
        records.append(
            {"media_name": f"{NAMES[i]}.jpg", "case_id": i, **json.loads(json.dumps(tags))}
        )
    return sides, records


def write(root: Path, sides: Sides, records: list[dict[str, Any]]) -> None:
    for side, listed in sides.items():
        lines(root / f"{side}.jsonl", *(json.dumps(row) for row in listed))
    more_sets.write(root / "full_data.json", records)
    for i, name in enumerate(NAMES):
        save(root / "images" / f"{name}.jpg", i)


def run(root: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]], dict[str, Any]]:
    """Exit status, findings by kind, and the whole report."""
    out = root.with_name("report")
    status = main(["taxonomy", "check", str(root), "--out", str(out), *options])
    report = json.loads((out / "tags.json").read_text())
    return status, {found["kind"]: found for found in report["findings"]}, report


QUIET = {"sharpness", "shifts"}  # of five records these say nothing


@pytest.mark.usefixtures("drawn")
def test_a_clean_set_has_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "set", *rows())
    status, kinds, report = run(tmp_path / "set")
    assert status == 0
    assert kinds.keys() <= QUIET
    assert report["errors"] == 0
    assert report["taxonomy_sha256"] == load_taxonomy().digest
    assert report["coverage"]["Shape"] == {"train": pytest.approx(1 / 3), "val": 1.0, "test": 0.0}
    for row in report["agreement"].values():
        assert row["f1"] in (1.0, None)
    assert report["captions"]["different"] == 5
    assert 0 < report["sharpness"]["diagonal_mass"] <= 1
    told = capsys.readouterr().out
    assert "no errors" in told
    page = (tmp_path / "report" / "tags.md").read_text()
    assert "| Shape | 33.3 | 100.0 | 0.0 |" in page
    for name in ("coverage.png", "shifts.png"):
        assert f"({name})" in page
        with Image.open(tmp_path / "report" / name) as picture:
            assert picture.width > 500


def same_file(root: Path) -> None:
    shutil.copy(root / "images" / f"{NAMES[0]}.jpg", root / "images" / f"{NAMES[4]}.jpg")


def same_pixels(root: Path) -> None:
    source = root / "images" / f"{NAMES[0]}.jpg"
    content = source.read_bytes()  # a comment in the header changes bytes alone
    (root / "images" / f"{NAMES[4]}.jpg").write_bytes(
        content[:2] + b"\xff\xfe\x00\x04ab" + content[2:]
    )


def near(root: Path) -> None:
    with Image.open(root / "images" / f"{NAMES[0]}.jpg") as image:
        image.resize((80, 80)).save(root / "images" / f"{NAMES[4]}.jpg", quality=70)


def unreadable(root: Path) -> None:
    (root / "images" / f"{NAMES[2]}.jpg").write_bytes(b"\xff\xd8\xff cut off")


def lost(root: Path) -> None:
    (root / "images" / f"{NAMES[2]}.jpg").unlink()


# What is changed in the rows, or in the files; kind; level; part of the only place.
Damage = tuple[Callable[[Sides, Any], None] | None, Callable[[Path], None] | None, str, str, str]
DAMAGES: dict[str, Damage] = {
    "unknown": (
        lambda s, r: r[0].update(Shape=["rond"]),
        None,
        "unknown_tags",
        "error",
        "Shape/rond (1 times; nearest: round)",
    ),
    "elsewhere": (
        lambda s, r: r[0].update(Shape=["round", "cyst"]),
        None,
        "unknown_tags",
        "error",
        "Shape/cyst (1 times; it is of Diagnosis)",
    ),
    "system": (
        lambda s, r: r[0].update(Body_system_level="Thorax"),
        None,
        "outside_parent",
        "error",
        "Thyroid gland without Head and Neck",
    ),
    "no system": (
        lambda s, r: r[0].pop("Body_system_level"),
        None,
        "without_parent",
        "warning",
        "Thyroid gland without Head and Neck",
    ),
    "exclusive": (
        lambda s, r: r[3].update(Margins=["well-defined", "ill-defined/indistinct"]),
        None,
        "exclusive_tags",
        "error",
        "well-defined and ill-defined/indistinct",
    ),
    "unsupported": (
        lambda s, r: r[0].update(PosteriorAcoustics="shadowing"),
        None,
        "unsupported_tags",
        "warning",
        f"{NAMES[0]}: shadowing",
    ),
    "negated": (
        lambda s, r: r[2].update(InternalCharacteristics=["septations"]),
        None,
        "negated_tags",
        "warning",
        f"{NAMES[2]}: septations",
    ),
    "refusal": (
        lambda s, r: s["test"][0].update(caption="A description cannot be generated."),
        None,
        "refusals",
        "error",
        "(no text can be made)",
    ),
    "empty": (
        lambda s, r: s["test"][0].update(caption=" "),
        None,
        "empty_captions",
        "error",
        NAMES[4],
    ),
    "short": (
        lambda s, r: s["test"][0].update(caption="Fluid."),
        None,
        "short_captions",
        "warning",
        "'Fluid.'",
    ),
    "group": (
        lambda s, r: r[4].update(case_id=0),
        None,
        "group_leaks",
        "error",
        "in test and train",
    ),
    "bytes": (None, same_file, "bytes_leaks", "error", f"{NAMES[0]} | {NAMES[4]} (train | test)"),
    "pixels": (None, same_pixels, "pixels_leaks", "error", f"{NAMES[0]} | {NAMES[4]}"),
    "near": (None, near, "near_leaks", "warning", f"{NAMES[0]} | {NAMES[4]}"),
    "unreadable": (None, unreadable, "unreadable_images", "error", f"{NAMES[2]}.jpg: "),
    "lost": (None, lost, "reading", "error", "no image"),
}
# What follows of a damage by itself.
ALSO = {
    "system": {"unsupported_tags"},
    "exclusive": {"unsupported_tags"},
    "refusal": {"unsupported_tags"},
    "short": {"unsupported_tags"},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_one_finding(tmp_path: Path, damage: str) -> None:
    change, break_file, kind, level, place = DAMAGES[damage]
    sides, records = rows()
    if change is not None:
        change(sides, records)
    write(tmp_path / "set", sides, records)
    if break_file is not None:
        break_file(tmp_path / "set")
    options = () if break_file is not None else ("--no-images",)
    status, kinds, _ = run(tmp_path / "set", *options)
    assert kinds.keys() - QUIET - ALSO.get(damage, set()) == {kind} - ALSO.get(damage, set())
    found = kinds[kind]
    assert found["level"] == level
    assert status == (level == "error")
    assert any(place in one for one in found["places"])
    assert found["remedy"]


def test_all_damages_are_listed_at_once(tmp_path: Path) -> None:
    sides, records = rows()
    for name in ("unknown", "system", "exclusive", "negated", "refusal", "group"):
        change = DAMAGES[name][0]
        assert change is not None
        change(sides, records)
    sides["valid"][0]["caption"] = RECORDS[0][1]
    write(tmp_path / "set", sides, records)
    unreadable(tmp_path / "set")
    status, kinds, report = run(tmp_path / "set")
    assert status == 1
    wanted = {"unknown_tags", "outside_parent", "exclusive_tags", "negated_tags", "refusals"}
    wanted |= {"group_leaks", "unreadable_images", "caption_leaks", "captions_of_several_patients"}
    assert wanted <= kinds.keys()
    assert report["captions"]["top"] == [{"caption": RECORDS[0][1], "images": 2}]
    assert report["captions"]["share"] == 2 / 5


def test_options_that_cannot_be_meant_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set", *rows())
    for options, message in (
        (["--tau", "0"], "give a number above 0"),
        (["--batch", "1"], "at least 2 samples"),
        (["--tag-keys", "Colour"], "no field of us365k@1"),
        (["--layout", "json", "--fold", "1"], "fold is for layouts"),
    ):
        assert main(["taxonomy", "check", str(tmp_path / "set"), *options]) == 1
        assert message in capsys.readouterr().err


BY_TEXT = """
name: mine
version: 1
extends: us365k
similarity: {method: text}
"""


def test_similarity_by_a_text_tower_is_that_of_the_training(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set", *rows())
    (tmp_path / "mine.yaml").write_text(BY_TEXT)
    options = ("--no-images", "--taxonomy", str(tmp_path / "mine.yaml"), "--tau", "0.5")
    _, _, without = run(tmp_path / "set", *options)
    assert "sharpness" not in without
    assert "name that of the training by --model and --pretrained" in capsys.readouterr().out
    tower = ("--model", tiny_model, "--pretrained", "none")
    _, _, report = run(tmp_path / "set", *options, *tower)
    assert f"similarity by the text tower of {tiny_model}/none" in capsys.readouterr().out

    # What training takes: the embeddings of its own text tower.
    import open_clip

    from fastht.tasks.image_text.text_embeddings import TextEmbedder
    from fastht.tasks.models.build import build_clip

    tokenizer = open_clip.get_tokenizer(tiny_model)
    embedder = TextEmbedder(build_clip(tiny_model, "none")[0], tokenizer, None)
    mine = load_taxonomy(str(tmp_path / "mine.yaml"))
    read = read_tags(mine, load_cases(tmp_path / "set", task="pairs").cases)
    matrix = similarity.similarity_matrix(mine, encode=lambda texts: embedder(texts).numpy())
    _, expected = balance.sharpness(read, matrix, 0.5, 256, "ignore")
    assert report["sharpness"]["diagonal_mass"] == pytest.approx(
        expected["diagonal_mass"], abs=1e-6
    )
    # Negative control: by the tree it is another.
    _, tree = balance.sharpness(
        read, similarity.similarity_matrix(load_taxonomy()), 0.5, 256, "ignore"
    )
    assert abs(tree["diagonal_mass"] - expected["diagonal_mass"]) > 1e-3
    assert main(["taxonomy", "check", str(tmp_path / "set"), *tower]) == 1
    assert "--model is for similarity text" in capsys.readouterr().err


@pytest.fixture
def records(tmp_path: Path) -> Records:
    write(tmp_path / "set", *rows())
    return read_tags(load_taxonomy(), load_cases(tmp_path / "set", task="pairs").cases)


@pytest.mark.parametrize("missing", ["ignore", "zero"])
def test_sharpness_is_that_of_a_loop(records: Records, missing: Any) -> None:
    taxonomy = records.taxonomy
    matrix = similarity.similarity_matrix(taxonomy)
    place = {tag: number for number, tag in enumerate(taxonomy.tags)}
    chosen = [r.given for r in records if r.side == "train"]
    target = np.eye(len(chosen))
    for i, a in enumerate(chosen):
        for j, b in enumerate(chosen):
            if i != j:
                both = [
                    np.mean([matrix[place[k, x], place[k, y]] for x in a[k] for y in b[k]])
                    for k in taxonomy.dimensions
                    if k in a and k in b
                ]
                count = len(both) if missing == "ignore" else len(taxonomy.dimensions)
                target[i, j] = sum(both) / count if both else 0
    p = np.exp(target / 0.5)
    p /= p.sum(1, keepdims=True)
    _, table = balance.sharpness(records, matrix, 0.5, 100, missing)
    assert table["batch"] == 3
    assert table["diagonal_mass"] == pytest.approx(np.diag(p).mean(), abs=1e-12)
    assert table["entropy"] == pytest.approx(-(p * np.log(p)).sum(1).mean(), abs=1e-12)
    # A colder softmax is a harder label, which is a warning.
    wrong, colder = balance.sharpness(records, matrix, 0.001, 100, missing)
    assert colder["diagonal_mass"] > 0.999
    assert [found.kind for found in wrong] == ["sharpness"]


def test_shifts_beyond_chance_alone_are_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    Image.new("L", (4, 4)).save(tmp_path / "a.png")

    def shapes(second: str) -> Records:
        listed = [f"a.png,p{i},train,{'round' if i % 2 else 'oval'}" for i in range(40)]
        other = ("round", "oval") if second == "even" else ("round", "round")
        listed += [f"a.png,q{i},test,{other[i % 2]}" for i in range(40)]
        lines(path, "filepath,patient,split,Shape", *listed)
        from fastht.data.layouts import scan_cases

        found, _ = scan_cases(path, task="image", tag_keys=("Shape",))
        return read_tags(load_taxonomy(), found.cases)

    wrong, table = balance.shifts(shapes("even"))
    assert wrong == []
    assert table["Shape"]["test"]["distance"] == 0
    wrong, table = balance.shifts(shapes("round"))
    assert table["Shape"]["test"]["distance"] == pytest.approx(0.5)
    assert 0 < table["Shape"]["test"]["chance"] < 0.35
    assert [found.kind for found in wrong] == ["shifts"]


def test_agreement_counts_what_both_have(records: Records) -> None:
    whole = given.agreement(records)["Shape"]
    assert (whole["given"], whole["found"], whole["both"]) == (2, 2, 2)
    assert whole["precision"] == whole["recall"] == 1
    assert given.agreement(records)["Vascularity"]["f1"] == 1
    assert given.agreement(records)["InternalCharacteristics"]["f1"] is None


def test_captions_count_once_each(records: Records) -> None:
    wrong, table = captions.check_captions(records)
    assert wrong == []
    assert (table["captions"], table["sharing"], table["top"]) == (5, 0, [])


def test_stated_tirads_levels_are_held_against_the_tags(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(picture)
    told = "Solid hypoechoic nodule, wider than tall, with smooth margins"
    lines(
        tmp_path / "t.csv",
        "filepath\tfilename\tframe\tpatient\ttitle",
        *(f"a.png\t\t\tp{i}\t{told}, TI-RADS {level}." for i, level in enumerate("45")),
        "a.png\t\t\tp2\tA nodule without a level of any kind.",
    )
    _, kinds, report = run(
        tmp_path / "t.csv", "--taxonomy", "tirads", "--no-images", "--separator", "\t"
    )
    assert report["tirads"] == {"stated": 2, "settled_by_tags": 2, "agreed": 1}
    (place,) = kinds["tirads_levels"]["places"]
    assert place.endswith("TR5 stated, tags give 4 points, TR4")
