"""``fastht data check --task pairs``: all faults of a table of captions at once."""

import shutil

import more_sets
import pytest
from PIL import Image

from fastht.cli import main

HISTORY = "The patient was referred after a screening examination elsewhere. " * 8


def check(capsys, data, *options):
    status = main(["data", "check", "--task", "pairs", "--data", str(data), *options])
    return status, capsys.readouterr().out


def test_a_sound_set_is_short(capsys):
    status, text = check(capsys, "sample")
    assert status == 0
    assert text.splitlines()[0].startswith("320 image-caption pairs")
    assert "note" not in text
    assert "no problems" in text


def test_one_of_each_fault_is_listed_at_once(pairs, tmp_path, capsys):
    shutil.copytree(pairs.parent, tmp_path / "set")
    folder = tmp_path / "set"
    (folder / "00.png").write_bytes(b"broken")
    shutil.copy(folder / "02.png", folder / "03.png")  # of another patient
    shutil.copy(folder / "04.png", folder / "05.png")  # of the same
    frames = [Image.new("L", (8, 8), i) for i in range(3)]
    frames[0].save(folder / "06.tif", save_all=True, append_images=frames[1:])
    lines = ["filepath,title,label,patient_id,site,case"]
    odd = {8: "short", 9: f"{HISTORY} Cyst.", 10: f"{HISTORY} Mass.", 11: "L\ufffdsion " * 9}
    for i in range(20):
        name = "06.tif" if i == 6 else "gone.png" if i == 7 else f"{i:02}.png"
        caption = odd.get(i, f"Ultrasound {i} of a cyst in the breast")
        label = "Cyst" if i == 12 else "cyst"
        lines.append(f"{name},{caption},{label},p{i // 2 if i != 3 else 99},x,{i}")
    lines.append(lines[-1])
    (folder / "t.csv").write_text("\n".join(lines), encoding="utf-8")
    status, text = check(capsys, folder / "t.csv")
    assert status == 1
    for part in (
        "1 image file missing",
        "1 caption shorter than 20 characters (missing: gone.png)",
        "column patient_id is read as the patient's",
        "2 columns not read: site, case",
        "1 caption of a wrong encoding (U+FFFD): 11.png; export the texts as UTF-8",
        "1 pair twice, image and caption: 19.png; remove the copies",
        "labels that differ in spelling alone: Cyst, cyst; write them alike",
        "2 captions of 18 longer than the 77 tokens",
        "2 captions become equal to others",
        "1 image twice: 05.png of 04.png",
        "06.tif (3); name one by a column frame",
        "2 problems:",
        "00.png: not an image that can be read",
        "02.png and 03.png: the same pixels, of patients p1 and p99; remove one",
    ):
        assert part in text, part


def test_captions_that_are_all_cut_alike_are_a_problem(pairs, tmp_path, capsys):
    shutil.copytree(pairs.parent, tmp_path / "set")
    rows = [f"{i:02}.png,{HISTORY} Finding {i}." for i in range(6)]
    data = tmp_path / "set" / "t.csv"
    data.write_text("\n".join(["filepath,title", *rows]))
    status, text = check(capsys, data)
    assert status == 1
    assert "most captions cannot be told apart: 6 captions of 6" in text
    assert check(capsys, data, "--caption-part", "sentences")[0] == 0


def test_a_table_that_cannot_be_read_is_one_problem(tmp_path, capsys):
    status, text = check(capsys, tmp_path / "none.csv")
    assert status == 1
    assert "1 problem:" in text
    assert "none.csv: cannot be read" in text


@pytest.mark.parametrize("part", ["end", "sentences"])
def test_what_is_read_of_long_captions_fits(part):
    import open_clip

    from fastht.tasks.image_text.caption_fit import CaptionFit, find_cut

    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    captions = [
        f"{HISTORY} Finding: a mass of {i} mm. {HISTORY if i % 2 else ''}" for i in range(6)
    ]
    captions += ["Short one.", "乳腺低回声结节" * 40]
    fit = CaptionFit(tokenizer, part, captions)
    fitted = fit.fit(captions)
    assert fitted[6] == captions[6]
    assert all(
        text in caption for text, caption in zip(fitted, captions, strict=True) if part == "end"
    )
    whole = 8 if part == "end" else 7  # one sentence of the last is too long by itself
    assert len(fit.too_long(fitted)) == 8 - whole
    if part == "sentences":
        assert all(f"mass of {i} mm" in fitted[i] for i in range(6))
        assert not find_cut(fit, captions).equal
    assert find_cut(CaptionFit(tokenizer, "start", captions), captions).equal


def test_sets_are_read_by_their_layouts_with_their_options(tmp_path, capsys):
    more_sets.rocov2(tmp_path)
    status, text = check(capsys, tmp_path)
    assert status == 0
    assert text.splitlines()[0].startswith("6 image-caption pairs")
    status, text = check(capsys, tmp_path, "--concept", "C0041618")
    assert status == 0
    assert text.splitlines()[0].startswith("3 image-caption pairs")
    assert "3 without concept C0041618" in text


def test_all_faults_of_a_set_are_listed_at_once(tmp_path, capsys):
    more_sets.rocov2(tmp_path)
    train, valid = (tmp_path / f"{side}_images" / side for side in ("train", "valid"))
    (train / "ROCOv2_2023_train_000001.jpg").unlink()
    shutil.copy(train / "ROCOv2_2023_train_000002.jpg", valid / "ROCOv2_2023_valid_000001.jpg")
    (valid / "ROCOv2_2023_valid_000002.jpg").write_bytes(b"broken")
    (tmp_path / "notes.docx").write_bytes(b"of no layout")
    status, text = check(capsys, tmp_path)
    assert status == 1
    for part in (
        "1 file of the folder not read: notes.docx",
        "3 problems:",
        "ROCOv2_2023_train_000001.jpg; copy it again",
        "ROCOv2_2023_valid_000002.jpg: not an image that can be read",
        "ROCOv2_2023_valid_000001.jpg: the same pixels as",
        "that one in train, this in val; remove one of the two",
    ):
        assert part in text, part


def test_json_and_parquet_are_read(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    more_sets.json_rows(tmp_path / "json")
    keys = [(f"--{k.replace('_', '-')}", v) for k, v in more_sets.JSON_KEYS.items()]
    status, text = check(capsys, tmp_path / "json" / "rows.json", *(w for key in keys for w in key))
    assert status == 0
    assert text.splitlines()[0].startswith("3 image-caption pairs")
    more_sets.parquet_rows(tmp_path / "parquet")
    status, text = check(capsys, tmp_path / "parquet")
    assert status == 0
    assert text.splitlines()[0].startswith("5 image-caption pairs")
