"""Image sets of every layout, a few pixels large, written into a folder.

Each function returns the masks that its cases must have, by the names of the cases.
"""

import json
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 14, 10
Masks = dict[str, np.ndarray]


def picture(path: Path, seed: int = 0) -> None:
    """Write an image of noise, another one for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def blob(left: int, top: int, width: int = 4, height: int = 3) -> np.ndarray:
    """A mask with a rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def draw(path: Path, mask: np.ndarray, foreground: int = 255) -> np.ndarray:
    """Write a mask; return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask * np.uint8(foreground)).save(path)
    return mask


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def published(root: Path) -> Masks:
    """BUSI for both tasks, six images, and one more set for segmentation, masks of 0 and 1."""
    masks = {}
    for i in range(6):
        picture(root / "all" / "images" / f"case ({i}).png", seed=i)
        mask = draw(root / "all" / "masks" / f"case ({i}).png", blob(i, 2), 255 if i % 2 else 1)
        masks[f"case ({i})"] = mask
    names = [f"case ({i}).png" for i in range(6)]
    for task in ("segmentation", "classification"):
        folder = root / task / "BUSI"
        lines(folder / "train.txt", *names[:3])
        lines(folder / "val.txt", names[3])
        lines(folder / "test.txt", *names[4:])
    lines(folder / "labels.csv", *(f"{name},{i % 2}" for i, name in enumerate(names)))
    picture(root / "all" / "images" / "other.jpg", seed=9)
    masks["other"] = draw(root / "all" / "masks" / "other.png", blob(1, 1))
    for split in ("train", "val", "test"):
        lines(root / "segmentation" / "OTHER" / f"{split}.txt", "other.jpg")
    return masks


def busi(root: Path) -> Masks:
    """Three benign images, one of them with three lesions, two malignant and two normal ones."""
    masks = {}
    for label, count in (("benign", 3), ("malignant", 2), ("normal", 2)):
        for i in range(1, count + 1):
            name = f"{label} ({i})"
            picture(root / label / f"{name}.png", seed=10 * count + i)
            mask = blob(i, i) if label != "normal" else blob(0, 0, 0, 0)
            masks[name] = draw(root / label / f"{name}_mask.png", mask)
    for extra, corner in ((1, (9, 1)), (2, (9, 6))):
        more = draw(root / "benign" / f"benign (2)_mask_{extra}.png", blob(*corner))
        masks["benign (2)"] = masks["benign (2)"] | more
    return masks


def annotation(number: int, tirads: str, marks: dict[int, list[list[tuple[int, int]]]]) -> str:
    """A file of DDTI; marks: outlines by image."""
    text = f"<case><number>{number}</number><age>50</age><tirads>{tirads}</tirads>"
    for image, outlines in marks.items():
        shapes = [
            {"points": [{"x": x, "y": y} for x, y in outline], "regionType": "freehand"}
            for outline in outlines
        ]
        text += f"<mark><image>{image}</image><svg>{json.dumps(shapes)}</svg></mark>"
    return f"{text}</case>"


def rectangle(left: int, top: int, width: int = 4, height: int = 3) -> list[tuple[int, int]]:
    """The outline of a blob, through its outermost pixels."""
    right, bottom = left + width - 1, top + height - 1
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def ddti(root: Path) -> Masks:
    """Three patients: two images; one with two nodules and one unmarked; one without category."""
    root.mkdir(parents=True, exist_ok=True)
    lines(root / "1.xml", annotation(1, "4a", {1: [rectangle(1, 1)], 2: [rectangle(3, 4)]}))
    both = [rectangle(0, 0), rectangle(8, 5)]
    lines(root / "2.xml", annotation(2, "2", {1: both}))
    lines(root / "10.xml", annotation(10, "", {1: [rectangle(2, 2)]}))
    for i, name in enumerate(("1_1", "1_2", "2_1", "2_2", "10_1")):
        picture(root / f"{name}.jpg", seed=i)
    return {
        "1_1": blob(1, 1),
        "1_2": blob(3, 4),
        "2_1": blob(0, 0) | blob(8, 5),
        "10_1": blob(2, 2),
    }


def tn3k(root: Path) -> Masks:
    """Five images for training, two for testing, with JPEG masks as the real ones."""
    masks = {}
    for part, count in (("trainval", 5), ("test", 2)):
        for i in range(count):
            picture(root / f"{part}-image" / f"{i:04d}.jpg", seed=100 * count + i)
            path = root / f"{part}-mask" / f"{i:04d}.jpg"
            masks[f"{part}-{i:04d}"] = draw(path, blob(i, 3))
        rows = (f"{i:04d}.jpg,{i % 2}" for i in range(count))
        lines(root / f"label4{part}.csv", *rows)
    lines(root / "tn3k-trainval-fold0.json", '{"train": [4, 1, 2], "val": [0, 3]}')
    lines(root / "tn3k-trainval-fold1.json", '{"train": [0, 3, 2], "val": [1, 4]}')
    return masks


def volume(path: Path, slices: np.ndarray) -> None:
    """Write [slices, height, width] as NIfTI keeps it: [x, y, z]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(slices.T, np.eye(4)), path)


def prostate(root: Path) -> Masks:
    """Two volumes for training and one for testing, three slices each, the first unmarked."""
    masks = {}
    for split, numbers in (("train", (1, 2)), ("test", (1,))):
        for number in numbers:
            shape = (3, HEIGHT, WIDTH)
            generator = np.random.default_rng(number + len(numbers))
            scan = f"microUS_{split}_{number:02d}"
            volume(
                root / split / "micro_ultrasound_scans" / f"{scan}.nii.gz",
                generator.integers(0, 256, shape, dtype=np.uint8),
            )
            marked = np.stack([blob(0, 0, 0, 0), blob(number, 1), blob(number, 5)])
            name = f"expert_annotation_{split}_{number:02d}.nii.gz"
            volume(root / split / "expert_annotations" / name, marked)
            masks |= {f"{scan}-{z:03d}": marked[z] for z in range(3)}
    return masks


def folder(root: Path) -> Masks:
    """Four images, masks of the same name or with _mask, labels of two patients."""
    masks = {}
    for i in range(4):
        picture(root / "images" / f"{i}.png", seed=i)
        mark = "_mask" if i % 2 else ""
        masks[str(i)] = draw(root / "masks" / f"{i}{mark}.png", blob(i, 1))
    rows = (f"{i}.png,{'cyst' if i < 2 else 'mass'},p{i // 2}" for i in range(4))
    lines(root / "labels.csv", "filename,label,patient", *rows)
    return masks


def class_folders(root: Path) -> Masks:
    """Two classes of two images, without masks."""
    for i in range(4):
        picture(root / ("cyst" if i < 2 else "mass") / f"{i}.png", seed=i)
    return {}


def table(root: Path) -> Masks:
    """A table with all columns, four images."""
    masks = {}
    rows = []
    for i in range(4):
        picture(root / "pictures" / f"{i}.png", seed=i)
        masks[f"pictures-{i}"] = draw(root / "marks" / f"m{i}.png", blob(i, 2))
        split = ("train", "training", "valid", "TEST")[i]
        rows.append(f"pictures/{i}.png,marks/m{i}.png,class {i % 2},p{i // 2},{split},Caption  {i}")
    lines(root / "table.csv", "filepath,mask,label,patient,split,title", *rows)
    return masks
