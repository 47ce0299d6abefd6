"""DDTI's annotation files."""

from pathlib import Path

import numpy as np
import pytest
from miniature_sets import HEIGHT, WIDTH, annotation, blob, rectangle

from fastht.data import DataError
from fastht.data.annotations import draw_outlines, read_annotation

SIZE = (WIDTH, HEIGHT)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_several_marks_and_shapes_of_one_image(tmp_path: Path) -> None:
    text = annotation(3, " 4b ", {1: [rectangle(0, 0)], 2: [rectangle(1, 1)]})
    more = annotation(3, "", {1: [rectangle(8, 1), rectangle(8, 6)]})
    mark = more[more.index("<mark>") : more.index("</case>")]
    path = write(tmp_path / "3.xml", text.replace("</case>", f"{mark}</case>"))
    found = read_annotation(path)
    assert (found.number, found.tirads) == ("3", "4b")
    assert {image: len(outlines) for image, outlines in found.outlines.items()} == {"1": 3, "2": 1}
    expected = blob(0, 0) | blob(8, 1) | blob(8, 6)
    np.testing.assert_array_equal(draw_outlines(path, "1", SIZE), expected)
    np.testing.assert_array_equal(draw_outlines(path, "2", SIZE), blob(1, 1))
    assert not draw_outlines(path, "3", SIZE).any()


def test_concave_outlines_and_those_that_leave_the_image(tmp_path: Path) -> None:
    corner = [(-5, -5), (2, -5), (2, 1), (-5, 1)]
    notch = [(4, 1), (12, 1), (12, 8), (8, 2), (4, 8)]
    path = write(tmp_path / "1.xml", annotation(1, "2", {1: [corner, notch]}))
    mask = draw_outlines(path, "1", SIZE)
    np.testing.assert_array_equal(mask[:3, :4], [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    assert mask[7, 4] == 1
    assert mask[7, 12] == 1
    assert mask[7, 8] == 0


def test_what_encloses_nothing_is_left_out(tmp_path: Path) -> None:
    text = annotation(1, "2", {1: [[(1, 1)], [(1, 1), (5, 5)], []], 2: []})
    text = text.replace("</case>", "<mark><image>3</image><svg></svg></mark><mark/></case>")
    found = read_annotation(write(tmp_path / "1.xml", text))
    assert found.outlines == {"1": (), "2": (), "3": ()}


@pytest.mark.parametrize(
    ("svg", "message"),
    [
        ('[{"points": [{"x": 1, "y": 2},]}]', "image 1: the outlines are not JSON"),
        ("[{'points': []}]", "image 1: the outlines are not JSON"),
        ('[{"point": []}]', r"image 1: the outlines lack points \(KeyError: 'points'\)"),
        ('[{"points": [{"x": 1}]}]', r"image 1: the outlines lack points \(KeyError: 'y'\)"),
        ('[{"points": [{"x": 1, "y": "b"}]}]', "image 1: the outlines lack points"),
        ("[3]", "image 1: the outlines lack points"),
        ("3", "image 1: the outlines lack points"),
    ],
)
def test_bad_outlines(tmp_path: Path, svg: str, message: str) -> None:
    text = f"<case><mark><image>1</image><svg>{svg}</svg></mark></case>"
    with pytest.raises(DataError, match=rf"7\.xml, {message}"):
        read_annotation(write(tmp_path / "7.xml", text))


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.xml: cannot be read \(No such file"):
        read_annotation(str(tmp_path / "1.xml"))
    for text in ("", "no xml", "<case>", '<?xml version="1.0" encoding="klingon"?><case/>'):
        with pytest.raises(DataError, match=r"1\.xml: not XML"):
            read_annotation(write(tmp_path / "1.xml", text))
