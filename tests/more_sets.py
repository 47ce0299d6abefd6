"""Published sets of images, a few pixels large, as their layouts are documented.

Each function writes into a folder and returns the labels by the names of the cases.
"""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from miniature_sets import HEIGHT, WIDTH, blob, draw, lines, picture, rectangle
from PIL import Image

Labels = dict[str, str | None]


def write(path: Path, content: object, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)


def aul(root: Path) -> Labels:
    """Two images a class of the same numbers; Malignant unpacked one folder deeper."""
    labels: Labels = {}
    for seed, name in enumerate(("Benign", "Malignant", "Normal")):
        folder = root / name / (name if name == "Malignant" else "")
        for number in (1, 2):
            picture(folder / "image" / f"{number}.jpg", seed=10 * seed + number)
            if name != "Normal":
                write(folder / "segmentation" / "mass" / f"{number}.json", rectangle(number, 2))
            write(folder / "segmentation" / "liver" / f"{number}.json", rectangle(0, 0, 14, 10))
            labels[f"{name.lower()}-{number}"] = name.lower()
    return labels


def bus_bra(root: Path) -> Labels:
    """Four patients, the first with two images."""
    names = ["bus_0001-l", "bus_0001-r", "bus_0002-l", "bus_0003-s", "bus_0004-r"]
    rows, folds, labels = [], [], {}
    for i, name in enumerate(names):
        picture(root / "Images" / f"{name}.png", seed=i)
        draw(root / "Masks" / f"{name.replace('bus', 'mask')}.png", blob(i, 2))
        labels[name] = "benign" if i < 3 else "malignant"
        case = int(name[4:8])
        rows.append(f'{name},{case},Cyst,{labels[name]},2,X,14,10,left,"[1,2,3,4]"')
        folds.append(f"{name},{labels[name]},{case}")
    header = "ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX"
    lines(root / "bus_data.csv", header, *rows)
    lines(root / "5-fold-cv.csv", "ID,Pathology,kFold", *folds)
    return labels


def bus_cot(root: Path) -> Labels:
    """Three source images of two origins, one with two lesions; two sources have one patient."""
    sources = {
        "000000": ("BUSI", "p1"),
        "000001": ("BUSBRA", "p1"),
        "000002": ("BUSBRA", "p1"),
        "000003": ("BUSBRA", "p7"),
    }
    expert = {
        key: {"patient_id": patient, "dataset": origin, "image_file": {}, "us_report": {}}
        for key, (origin, patient) in sources.items()
    }
    write(root / "DatasetFiles" / "BUS-Expert_dataset.json", expert)
    lesions, labels = {}, {}
    for i, name in enumerate(["000000@0", "000000@1", "000001@0", "000002@0", "000003@0"]):
        split = "test" if name.startswith("000003") else "trainval"
        path = f"BUS-Lesion/{split}/{name}.png"
        picture(root / path, seed=i)
        labels[name] = "malignant" if i % 2 else "benign"
        full = f"An irregular hypoechoic lesion, number {i}." if i else ""
        lesions[name] = {
            "image_path": path,
            "split": split,
            "pathology_histology": {"pathology": labels[name].title(), "subtype": "x"},
            "us_report": {"BIRADS": "4a", "LesionBoundary": "清晰"},
            "caption": {"image_full_caption": full, "image_relative_caption": "A second caption."},
        }
    write(root / "DatasetFiles" / "lesion_dataset.json", lesions)
    return labels


def tn5000(root: Path) -> Labels:
    """Four images; the last has a benign and a malignant nodule."""
    labels: Labels = {}
    for i in range(4):
        name = f"{i:06d}"
        picture(root / "JPEGImages" / f"{name}.jpg", seed=i)
        classes = ["0", "1"] if i == 3 else [str(i % 2)]
        objects = "".join(
            f"<object><name>{c}</name><bndbox><xmin>1</xmin></bndbox></object>" for c in classes
        )
        lines(root / "Annotations" / f"{name}.xml", f"<annotation>{objects}</annotation>")
        labels[name] = "malignant" if "1" in classes else "benign"
    for split, members in (("train", (0, 1)), ("val", (2,)), ("test", (3,)), ("trainval", (0, 1))):
        lines(root / "ImageSets" / "Main" / f"{split}.txt", *(f"{i:06d}" for i in members))
    return labels


def auitd(root: Path) -> Labels:
    """The same base names in every folder, classes in either case, folders inside a class."""
    folders = {
        "train/benign": "benign",
        "train/benign/Tiroides2": "benign",
        "train/Malignant/Tiroides4": "malignant",
        "train/normal thyroid": "normal",
        "test/Benign": "benign",
        "test/Malignant": "malignant",
        "test/normal thyroid": "normal",
    }
    labels: Labels = {}
    for seed, (folder, label) in enumerate(folders.items()):
        picture(root / folder / "1.png", seed=seed)
        labels[f"{folder}/1".replace("/", "-")] = label
    return labels


def reports(root: Path) -> Labels:
    """Three reports of the liver, two images each, in a file with BOM; a translation beside."""
    found: dict[str, list[object]] = {"train": [], "val": [], "test": []}
    labels: Labels = {}
    for i, split in enumerate(found):
        names = [f"{i}_1.jpeg", f"{i}_2.jpeg"]
        for view, name in enumerate(names):
            picture(root / "Liver_report" / name, seed=2 * i + view)
            labels[f"Liver_report-{name[:-5]}"] = None
        entry = {"uid": i, "finding": "肝脏大小正常,回声均匀 _2DS_ 。", "labels": 3, "split": split}
        english = f"The liver is of normal size, report {i}."
        found[split].append(entry | {"image_path": names, "finding_en": english})
    write(root / "new_Liver2.json", found, encoding="utf-8-sig")
    return labels


def pmc_oa(root: Path) -> Labels:
    """Two panels of one article, one of another."""
    names = ["PMC212319_Fig3_4.jpg", "PMC212319_Fig3_5.jpg", "PMC999_Fig1_1.jpg"]
    for i, name in enumerate(names):
        picture(root / "images" / name, seed=i)
    rows = [json.dumps({"image": name, "caption": f"Ultrasound of {name}."}) for name in names]
    lines(root / "pmc_oa.jsonl", *rows)
    return {Path(name).stem: None for name in names}


def rocov2(root: Path) -> Labels:
    """Two images a split, of which the first has a concept."""
    labels: Labels = {}
    for seed, split in enumerate(("train", "valid", "test")):
        ids = [f"ROCOv2_2023_{split}_{i:06d}" for i in (1, 2)]
        for i, name in enumerate(ids):
            picture(root / f"{split}_images" / split / f"{name}.jpg", seed=10 * seed + i)
            labels[name] = None
        captions = [f'{name},"Sonogram, showing {name}."' for name in ids]
        lines(root / f"{split}_captions.csv", "ID,Caption", *captions)
        concepts = [f"{ids[0]},C0041618;C0000001", f"{ids[1]},C0000001"]
        lines(root / f"{split}_concepts.csv", "ID,CUIs", *concepts)
    return labels


def json_rows(root: Path) -> Labels:
    """Two rows, one with two images, fields inside fields; give rows.json and the keys."""
    rows = [
        {
            "media": {"files": ["a/1.png", "b/1.png"]},
            "text": [{"en": "Two views of a cyst, seen twice."}],
            "who": {"id": 7},
            "class": "cyst",
            "part": "training",
        },
        {
            "media": {"files": "c/1.png"},
            "text": [{"en": "A single view of a solid mass."}],
            "who": {"id": 8},
            "class": "mass",
            "part": "test",
        },
    ]
    for seed, folder in enumerate("abc"):
        picture(root / folder / "1.png", seed=seed)
    write(root / "rows.json", rows)
    return {"a-1": "cyst", "b-1": "cyst", "c-1": "mass"}


JSON_KEYS = {
    "image_key": "media.files",
    "caption_key": "text.0.en",
    "label_key": "class",
    "patient_key": "who.id",
    "split_key": "part",
}


def parquet_rows(root: Path) -> Labels:
    """Files of two splits with images inside, as hubs of data sets write them."""
    import pyarrow as pa
    from pyarrow import parquet

    labels: Labels = {}
    seed = 0
    for split, count in (("train", 3), ("test", 2)):
        rows = []
        for i in range(count):
            noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
            seed += 1
            stream = io.BytesIO()
            Image.fromarray(noise).save(stream, "PNG")
            image = {"bytes": stream.getvalue(), "path": f"{i}.png"}
            caption = f"An image of set {split}, number {i}."
            rows.append({"image": image, "caption": caption, "label": i % 2, "patient": seed})
            labels[f"{split}-00000-of-00001-{i:06d}"] = str(i % 2)
        path = root / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return labels


UUIDS = tuple(f"{i:08x}-0000-4000-8000-00000000000{i}" for i in range(5))


def us365k_rows() -> tuple[dict[str, list[dict[str, object]]], list[dict[str, object]]]:
    """Captions by split and records of tags of five cases, of which the first has two images.

    Fields are lists, texts or absent; two media_names lack their suffix; one caption is a refusal.
    """
    captions = [
        ("train", 0, "A round hypoechoic nodule in the right thyroid lobe."),
        ("train", 0, "A round hypoechoic nodule in the right thyroid lobe."),
        ("train", 1, "An anechoic cyst in the left kidney with posterior enhancement."),
        ("train", 2, "No specific findings are provided for this image."),
        ("valid", 3, "The liver shows an oval hyperechoic mass with ill-defined margins."),
        ("test", 4, "Normal spleen of the usual size without any focal lesion."),
    ]
    tags: list[dict[str, object]] = [
        {
            "Diagnosis": ["nodule"],
            "Organ_level": ["Thyroid gland"],
            "Body_system_level": "Head and Neck",
            "Shape": ["round"],
            "Echogenicity": "hypoechoic",
        },
        {
            "Diagnosis": "nodule",
            "Organ_level": ["Thyroid gland"],
            "Body_system_level": ["Head and Neck"],
        },
        {
            "Diagnosis": ["cyst"],
            "Organ_level": "Kidney and ureter",
            "Body_system_level": ["Urinary Tract and male reproductive system"],
            "PosteriorAcoustics": ["enhancement"],
        },
        {"Organ_level": ["Liver"], "Body_system_level": ["Abdomen and retroperitoneum"]},
        {
            "Diagnosis": ["mass"],
            "Organ_level": ["Liver"],
            "Body_system_level": ["Abdomen and retroperitoneum"],
            "Shape": [],
            "Margins": ["ill-defined/indistinct"],
        },
        {
            "Diagnosis": ["normal appearance"],
            "Organ_level": ["Spleen"],
            "Body_system_level": ["Abdomen and retroperitoneum"],
            "Vascularity": "",
        },
    ]
    sides: dict[str, list[dict[str, object]]] = {"train": [], "valid": [], "test": []}
    records = []
    for i, ((side, case, caption), fields) in enumerate(zip(captions, tags, strict=True)):
        name = f"{i:06d}_{i // 2:06d}_{UUIDS[case]}"
        sides[side].append({"image": f"{name}.jpg", "caption": caption})
        media = name if i % 2 else f"{name}.jpg"
        records.append({"media_name": media, "case_id": 100 + case, "caption_id": i, **fields})
    return sides, records


def write_us365k(
    root: Path,
    sides: dict[str, list[dict[str, object]]],
    records: list[dict[str, object]],
    place: str = "images",
) -> None:
    """Write the files of a set; its images into images/, beside the files or into images.zip."""
    names = [str(row["image"]) for rows in sides.values() for row in rows]
    for side, rows in sides.items():
        lines(root / f"{side}.jsonl", *(json.dumps(row) for row in rows))
    write(root / "full_data.json", records)
    if place == "zip":
        with zipfile.ZipFile(root / "images.zip", "w") as archive:
            for i, name in enumerate(dict.fromkeys(names)):
                picture(root / "taken.jpg", seed=i)
                archive.write(root / "taken.jpg", name)
        (root / "taken.jpg").unlink()
        return
    for i, name in enumerate(dict.fromkeys(names)):
        picture(root / place / name, seed=i)


def us365k(root: Path) -> Labels:
    """The set with its images in a folder; the case with the refusal is left out."""
    sides, records = us365k_rows()
    write_us365k(root, sides, records)
    names = [str(row["image"]) for rows in sides.values() for row in rows]
    return {name[:-4]: None for i, name in enumerate(names) if i != 3}
