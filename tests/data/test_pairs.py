"""load_records on tables of every layout that it promises."""

import re
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from fastht.data import DataError, Record, load_records, split_records

CAPTION = "Hypoechoic nodule in the right thyroid lobe."


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)
    return path


def table(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


# Layouts


def test_open_clip_csv_beside_images(tmp_path: Path) -> None:
    image(tmp_path / "sub" / "a.png")
    image(tmp_path / "b.png")
    data = table(
        tmp_path / "t.csv",
        f'filepath,title,label,patient\nsub/a.png,"{CAPTION}  2, left\n lobe",cyst,p1\n'
        f"b.png,  {CAPTION}\u200b,,\n",
    )
    found = load_records(data)
    assert found.records == (
        Record(str(tmp_path / "sub/a.png"), f"{CAPTION} 2, left lobe", "cyst", "p1"),
        Record(str(tmp_path / "b.png"), CAPTION),
    )
    assert found.dropped == {}
    assert found.source == str(data)


@pytest.mark.parametrize(
    ("name", "separator", "given"),
    [
        ("t.csv", ",", None),
        ("t.csv", "\t", None),
        ("t.txt", "\t", None),
        ("t.tsv", "\t", None),
        ("t.csv", ";", ";"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_and_bom(
    tmp_path: Path, name: str, separator: str, given: str | None, encoding: str
) -> None:
    path = image(tmp_path / "a.png")
    text = separator.join(("filepath", "title")) + "\n" + separator.join(("a.png", CAPTION)) + "\n"
    data = table(tmp_path / name, text, encoding)
    assert load_records(data, separator=given).records == (Record(str(path), CAPTION),)


def test_tsv_captions_may_hold_commas(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    data = table(tmp_path / "t.tsv", f"filepath\ttitle\na.png\tLeft, right, both, {CAPTION}\n")
    assert load_records(data).records[0].caption == f"Left, right, both, {CAPTION}"


def test_a_name_that_is_in_two_image_directories_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    image(one / "1.png"), image(two / "1.png")
    data = table(tmp_path / "t.csv", f"filename,Caption\nold/1.png,{CAPTION}\n")
    with pytest.raises(DataError, match=r"line 2: old/1\.png may be .*one/1\.png or .*two/1\.png"):
        load_records(data, image_dirs=[one, two])
    data = table(tmp_path / "t.csv", f"filename,Caption\none/1.png,{CAPTION}\n")
    found = load_records(data, image_dirs=[tmp_path, two])  # the folder says which
    assert found.records[0].image == str(one / "1.png")


def test_nextgen_layout_with_two_image_directories(tmp_path: Path) -> None:
    one, two = tmp_path / "medpix" / "images", tmp_path / "pmc" / "images"
    first, second, third = image(one / "1.png"), image(two / "2.png"), image(two / "deep" / "3.png")
    data = table(
        tmp_path / "t.csv",
        f"filename,Caption\n1.png,{CAPTION}\nold/place/2.png,{CAPTION}\ndeep/3.png,{CAPTION}\n",
    )
    found = load_records(data, image_dirs=[one, str(two)])
    assert [record.image for record in found] == [str(first), str(second), str(third)]


def test_full_relative_path_beats_base_name(tmp_path: Path) -> None:
    image(tmp_path / "one" / "1.png")
    deep = image(tmp_path / "two" / "sub" / "1.png")
    data = table(tmp_path / "t.csv", f"filepath,title\nsub/1.png,{CAPTION}\n")
    found = load_records(data, image_dirs=[tmp_path / "one", tmp_path / "two"])
    assert found.records[0].image == str(deep)


def test_absolute_paths_and_moved_ones(tmp_path: Path) -> None:
    here, moved = image(tmp_path / "here" / "a.png"), image(tmp_path / "new" / "b.png")
    data = table(
        tmp_path / "tables.csv", f"filepath,title\n{here},{CAPTION}\n/gone/away/b.png,{CAPTION}\n"
    )
    found = load_records(data, image_dirs=[tmp_path / "new"])
    assert [record.image for record in found] == [str(here), str(moved)]


def test_two_names_for_one_file_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "flat" / "1.png")
    data = table(tmp_path / "t.csv", f"filepath,title\na/1.png,{CAPTION}\nb/1.png,{CAPTION}\n")
    with pytest.raises(DataError, match=r"line 3: b/1\.png and a/1\.png both lead to"):
        load_records(data, image_dirs=[tmp_path / "flat"])
    data = table(tmp_path / "t.csv", f"filepath,title\n1.png,{CAPTION}\n./1.png,{CAPTION}\n")
    assert len(load_records(data, image_dirs=[tmp_path / "flat"])) == 2  # several captions


def test_named_columns(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    data = table(
        tmp_path / "t.csv", f"img,text,title,class,who,no\na.png,{CAPTION},wrong,cyst,p9,3\n"
    )
    found = load_records(
        data,
        image_key="img",
        caption_key="text",
        label_key="class",
        patient_key="who",
        frame_key="no",
    )
    assert found.records == (Record(str(path), CAPTION, "cyst", "p9", 3),)
    # One key given, the other by default.
    data = table(tmp_path / "t.csv", f"filepath,report\na.png,{CAPTION}\n")
    assert load_records(data, caption_key="report").records == (Record(str(path), CAPTION),)


def test_frames(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    cells = ["0", "7", "12.0", ""]
    rows = "".join(f"a.png,{CAPTION},{cell}\n" for cell in cells)
    data = table(tmp_path / "t.csv", f"filepath,title,frame\n{rows}")
    assert [record.frame for record in load_records(data)] == [0, 7, 12, None]
    for bad in ("-1", "2.5", "first", "nan"):
        data = table(tmp_path / "t.csv", f"filepath,title,frame\na.png,{CAPTION},{bad}\n")
        with pytest.raises(DataError, match=f"line 2: frame '{bad}'"):
            load_records(data)


def test_spreadsheet_leftovers_do_no_harm(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    text = f"filepath , title,,\r\na.png,{CAPTION},,\r\n\r\na.png,{CAPTION}\r\n"
    assert len(load_records(table(tmp_path / "t.csv", text))) == 2


# Columns that are not read, and those read by what they mean


@pytest.mark.parametrize("column", ["patient_id", "Patient ID", "PatientID", "SUBJECT-ID"])
def test_a_patient_by_another_name_is_a_patient(tmp_path: Path, column: str) -> None:
    for i in range(60):
        image(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,{CAPTION},{i // 6}\n" for i in range(60))
    found = load_records(table(tmp_path / "t.csv", f"filepath,title,{column}\n{rows}"))
    train, val = split_records(found.records, val_fraction=0.2)
    assert not {r.patient for r in train} & {r.patient for r in val}
    assert "10 patients" in found.describe()
    assert found.account().endswith(f"note: column {column} is read as the patient's")


def test_two_columns_that_mean_the_patient_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    data = table(tmp_path / "t.csv", f"filepath,title,patient_id,subject\na.png,{CAPTION},1,2\n")
    with pytest.raises(DataError, match=r"patient_id and subject may both be .* --patient-key"):
        load_records(data)
    assert load_records(data, patient_key="subject").records[0].patient == "2"


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        ("case_id", "case_id looks like the patient's: if it is, give it by --patient-key case_id"),
        ("Diagnosis", "Diagnosis looks like the label's: .* --label-key Diagnosis"),
        ("Patienten-ID", "Patienten-ID looks like the patient's: .* --patient-key Patienten-ID"),
        ("Hauptdiagnose", "Hauptdiagnose looks like the label's: .* --label-key Hauptdiagnose"),
        ("frame no", "1 column not read: frame no"),
        ("age", "1 column not read: age"),
    ],
)
def test_columns_that_are_not_read_are_told(tmp_path: Path, column: str, hint: str) -> None:
    image(tmp_path / "a.png")
    data = table(tmp_path / "t.csv", f"filepath,title,{column},mask\na.png,{CAPTION},1,m.png\n")
    (note,) = load_records(data).notes
    assert (note.kind, note.count) == ("columns_not_read", 1)
    assert re.search(hint, note.text)


def test_all_is_well_is_short(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    data = table(tmp_path / "t.csv", f"filepath,title,label,patient\na.png,{CAPTION},x,1\n")
    assert load_records(data).notes == ()
    assert "\n" not in load_records("sample").account()


def test_sides_are_read_and_nonsense_is_not(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    text = f"filepath,title,split\na.png,{CAPTION},Valid\n"
    assert load_records(table(tmp_path / "t.csv", text)).records[0].split == "val"
    with pytest.raises(DataError, match="line 2: split 'later' is none of train, val and test"):
        load_records(table(tmp_path / "t.csv", text.replace("Valid", "later")))


# How spreadsheets and other systems write


def test_semicolons_of_european_spreadsheets(tmp_path: Path) -> None:
    path = image(tmp_path / "1.png")
    text = "filepath;title\n1.png;An oval, hypoechoic mass with circumscribed margins\n"
    expected = (Record(str(path), "An oval, hypoechoic mass with circumscribed margins"),)
    assert load_records(table(tmp_path / "a.csv", text)).records == expected
    for first in ("sep=;\n", "SEP=;\r\n", '"sep=;"\n'):
        data = table(tmp_path / "b.csv", first + text)
        assert load_records(data).records == load_records(data, separator=";").records == expected


def test_lines_are_counted_with_the_statement_of_the_separator(tmp_path: Path) -> None:
    data = table(tmp_path / "b.csv", "sep=;\nfilepath;title\na;b;c\n")
    with pytest.raises(DataError, match="line 3: 3 cells under 2 columns"):
        load_records(data)


def test_paths_written_on_windows_are_found(tmp_path: Path) -> None:
    path = image(tmp_path / "images" / "1.png")
    data = table(tmp_path / "t.csv", f"filepath,title\nimages\\1.png,{CAPTION}\n")
    assert load_records(data).records == (Record(str(path), CAPTION),)


# Captions that the cleaning or an encoding has damaged


def test_captions_that_lost_letters_are_counted(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    text = f"filepath,title\na.png,Lésion hypoéchogène irrégulière\na.png,{CAPTION}\n"
    text += "a.png,Гипоэхогенное образование\n"
    data = table(tmp_path / "t.csv", text)
    assert load_records(data).dropped == {}
    found = load_records(data, cleaning="paper")
    short = "caption shorter than 20 characters once letters outside ASCII are removed"
    assert found.dropped == {short: 1}
    (note,) = found.notes
    assert (note.kind, note.count) == ("captions_lost_letters", 1)
    assert "a.png; keep them by --cleaning letters" in note.text


def test_captions_of_a_wrong_encoding_are_counted(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    data = table(tmp_path / "t.csv", "filepath,title\na.png,L\ufffdsion hypo\ufffdchogene dense\n")
    (note,) = load_records(data).notes
    assert note.kind == "captions_decoded_wrong"
    assert "export the texts as UTF-8" in note.text


def test_pairs_that_stand_twice_are_counted(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    rows = f"a.png,{CAPTION}\n" * 3
    (note,) = load_records(table(tmp_path / "t.csv", f"filepath,title\n{rows}")).notes
    assert (note.kind, note.count) == ("pairs_twice", 2)


def test_labels_that_differ_in_case_alone_are_told(tmp_path: Path) -> None:
    for i in range(3):
        image(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,{CAPTION},{x}\n" for i, x in enumerate(["cyst", "Cyst ", "mass"]))
    (note,) = load_records(table(tmp_path / "t.csv", f"filepath,title,label\n{rows}")).notes
    assert (note.kind, note.count) == ("labels_alike", 2)
    assert "Cyst, cyst; write them alike" in note.text


# What is dropped


def test_drops_are_counted_and_described(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "b.png")
    rows = [("a.png", CAPTION, "p1"), ("b.png", "x" * 20, "p2"), ("a.png", "x" * 18 + "é", "p3")]
    rows += [("a.png", "", "p4")] + [(f"gone{i}.png", CAPTION, "p5") for i in range(7)]
    rows += [("", CAPTION, "p6")]
    text = "filepath,title,patient\n" + "".join(",".join(row) + "\n" for row in rows)
    found = load_records(table(tmp_path / "t.csv", text))
    assert [record.patient for record in found] == ["p1", "p2"]
    assert found.dropped == {"caption shorter than 20 characters": 2, "image file missing": 8}
    assert found.missing == tuple(f"gone{i}.png" for i in range(5))
    paragraph = found.describe()
    for part in ("2 image-caption pairs", "t.csv", "2 patients", "2 caption shorter", "gone0.png"):
        assert part in paragraph
    assert "\n" not in paragraph


def test_nothing_left(tmp_path: Path) -> None:
    text = f"filepath,title\ngone/a.png,{CAPTION}\ngone/b.png,short\n"
    with pytest.raises(DataError, match=r"2 image file missing \(missing: gone/a.png, gone/b.png"):
        load_records(table(tmp_path / "t.csv", text))


# Bad tables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table is empty|no columns"),
        ("filepath,title\n", "table is empty"),
        ("filepath,title,title\na,b,c\n", "repeated column title"),
        ("path,words\na,b\n", "columns are path, words; .*--image-key and --caption-key"),
        ("filepath,Caption\na,b\n", "columns are filepath, Caption"),
        ("filepath|title\na|b\n", "columns are filepath\\|title; .*--separator"),
        ("filepath|title\na|b, c\n", "2 cells under 1 columns; name what .* --separator"),
        ("filepath,title\na,b,c\n", "line 2: 3 cells under 2 columns; quote"),
        ('filepath,title\na,"b\nc,d\ne,f\n', "unexpected end of data; quote"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)t\.csv.*({message})"):
        load_records(table(tmp_path / "t.csv", text))


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    for encoding in ("utf-16", "latin-1"):
        data = table(tmp_path / "t.csv", "filepath,title\na.png,5 µm Zyste\n", encoding)
        with pytest.raises(DataError, match=r"t\.csv: not UTF-8"):
            load_records(data)


def test_wrong_arguments(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    data = table(tmp_path / "t.csv", f"filepath,title\na.png,{CAPTION}\n")
    with pytest.raises(DataError, match="no column 'who'; the columns are filepath, title"):
        load_records(data, patient_key="who")
    with pytest.raises(DataError, match="columns are filepath, title"):
        load_records(data, image_key="img")
    with pytest.raises(DataError, match=r"no image directory .*nowhere"):
        load_records(data, image_dirs=[tmp_path / "nowhere"])
    with pytest.raises(DataError, match="separator '::' is not one character"):
        load_records(data, separator="::")
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        load_records(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"t\.xlsx: neither a \.csv"):
        load_records(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match=r"for \.csv, \.tsv and \.txt tables; omit"):
        load_records(tmp_path / "t.tar", image_key="img")


def test_sample() -> None:
    if not (resources.files("fastht.data") / "sample" / "sample.csv").is_file():
        pytest.skip("the sample set has not been made")
    found = load_records("sample")
    assert found.dropped == {}
    assert all(Path(record.image).is_file() and record.label for record in found)
    assert all(record.patient for record in found)
