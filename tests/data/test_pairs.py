"""load_records on tables of every layout that it promises."""

from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from fastht.data import DataError, Record, load_records

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


# What is dropped


def test_drops_are_counted_and_described(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    rows = [("a.png", CAPTION, "p1"), ("a.png", "x" * 20, "p2"), ("a.png", "x" * 19 + "肝", "p3")]
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
        ("filepath;title\na;b\n", "columns are filepath;title; .*--separator"),
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
