"""Tiers, optional parts and draws of captions; templates that cannot be used are refused."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fastht.captions import TemplatesError, caption_rows, load_templates
from fastht.captions.engine import draw, relative_path
from fastht.captions.schema import Template, shipped

ROOT = Path("/data")
REPORT = "An oval hypoechoic nodule of the left breast, as the radiologist wrote it."


def row(path: str, **cells: str) -> dict[str, str]:
    names = ("label", "shape", "margin", "age", "report", "translated_report", "llm_caption")
    return {"filepath": path, **dict.fromkeys(names, ""), **cells}


def captions(rows, **options):
    return caption_rows(load_templates("breast"), rows, root=ROOT, **options).rows


def test_the_first_tier_that_fits_captions_a_row() -> None:
    made = captions(
        [
            row("1.png"),
            row("2.png", label="benign"),
            row("3.png", label="benign", shape="oval"),
            row("4.png", shape="oval"),  # without condition no metadata
            row("5.png", label="benign", shape="oval", report=REPORT),
            row("6.png", label="benign", translated_report=REPORT),
            row("7.png", label="N/A", shape="oval"),
        ]
    )
    tiers = ["organ", "condition", "metadata", "organ", "report", "translated report", "organ"]
    assert [m.tier for m in made] == tiers
    assert made[4].captions == (REPORT,)
    assert "a benign mass" in made[1].captions[0]
    assert "oval" in made[2].captions[0]
    assert "oval" not in made[3].captions[0]


def test_parts_vanish_with_their_fields() -> None:
    template = Template("A(n) {shape} mass[[ in a {age}-year-old patient]][[, {a}, {b}]].")
    assert template.fill({"shape": "oval"}) == ("An oval mass.", ("shape",))
    assert template.fill({"shape": "round", "age": "40", "a": "x"})[0] == (
        "A round mass in a 40-year-old patient."
    )
    assert template.fill({"shape": "round", "a": "x", "b": "y"}) == (
        "A round mass, x, y.",
        ("shape", "a", "b"),
    )
    assert template.needed == {"shape"}


@pytest.mark.parametrize("name", shipped())
def test_shipped_templates_fill_whatever_is_there(name: str) -> None:
    templates = load_templates(name)
    assert shipped() == ("breast", "liver", "lung", "thyroid")
    for tier in templates.tiers[-3:]:
        assert len(tier.templates) == 10
        for template in tier.templates:
            values = dict.fromkeys(template.fields, "oval") | {"organ": name}
            few = {n: v for n, v in values.items() if n in {*tier.needs, "organ"}}
            for given in (values, few):
                text, _ = template.fill(given)
                assert not set("[]{}()") & set(text)
                assert text.endswith(".")
                assert "  " not in text
                assert " ," not in text


def test_draws_depend_on_seed_path_and_tier_alone() -> None:
    drawn = [draw(0, f"{i}.png", "condition", 1, 10)[0] for i in range(2000)]
    assert max(Counter(drawn).values()) < 270  # of 200 on average
    assert min(Counter(drawn).values()) > 140
    assert drawn[:6] == FIXED
    assert drawn != [draw(1, f"{i}.png", "condition", 1, 10)[0] for i in range(2000)]
    assert drawn != [draw(0, f"{i}.png", "organ", 1, 10)[0] for i in range(2000)]
    assert sorted(draw(0, "a", "t", 10, 10)) == list(range(10))
    assert draw(0, "a", "t", 9, 10)[:3] == draw(0, "a", "t", 3, 10)


FIXED = [4, 4, 3, 9, 4, 4]  # for ever: a caption is part of a data set


def test_captions_do_not_depend_on_the_order_of_rows_or_on_others() -> None:
    rows = [row(f"{i}.png", label="benign", shape="oval" if i % 2 else "") for i in range(40)]
    before = {made.path: made for made in captions(rows, count=3)}
    shuffled = [*rows[::2], row("new.png"), *rows[1::2]]
    random.Random(0).shuffle(shuffled)
    after = {made.path: made for made in captions(shuffled, count=3)}
    assert before.items() <= after.items()
    assert all(len(set(made.captions)) == 3 for made in before.values())
    single = {made.path: made for made in captions(rows)}
    assert all(single[path].captions == made.captions[:1] for path, made in before.items())


def test_captions_are_the_same_bytes_in_every_process() -> None:
    code = (
        "import sys, json; from pathlib import Path; from fastht.captions import *; "
        "rows = [{'filepath': f'{i}.png', 'label': 'benign'} for i in range(30)]; "
        "made = caption_rows(load_templates('breast'), rows, root=Path('/data'), count=2).rows; "
        "print(json.dumps([[m.captions for m in made], hash('0.png')]))"
    )
    here = captions([row(f"{i}.png", label="benign") for i in range(30)], count=2)
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": other, "PATH": ""},
        capture_output=True,
        check=True,
    )
    made, hashed = json.loads(found.stdout)
    assert made == [list(each.captions) for each in here]
    assert hashed != hash("0.png")  # by Python's hash they would differ


def test_paths_are_relative_and_written_in_one_way() -> None:
    assert relative_path("/data/a/1.png", ROOT) == relative_path("a\\1.png", ROOT) == "a/1.png"
    assert relative_path("a/./1.png", ROOT) == "a/1.png"
    first, other = captions([row("a/1.png", label="benign"), row("b/1.png", label="benign")])
    assert (first.path, other.path) == ("a/1.png", "b/1.png")  # never the base name


def test_two_labels_of_one_file_are_refused() -> None:
    rows = [row("1.png", label="benign"), row("./1.png", label="malignant")]
    with pytest.raises(TemplatesError, match=r"1\.png: two rows with the labels a benign .* and a"):
        captions(rows)
    assert len(captions([rows[0], rows[0] | {"label": "0"}])) == 2  # the same, by the vocabulary


def test_tables_without_images_and_rows_without_tier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplatesError, match="no column filepath or filename or image of images"):
        captions([{"path": "1.png", "label": "x"}])
    written = tmp_path / "t.yaml"
    written.write_text(
        "organ: eye\nlabel: c\nfields: {c: [c]}\n"
        'tiers: [{name: t, needs: [c], templates: ["{c} of the {organ}."]}]\n'
    )
    templates = load_templates(str(written))
    made = caption_rows(templates, [{"filepath": "1", "c": "drusen"}], root=ROOT).rows
    assert made[0].captions == ("Drusen of the eye.",)
    with pytest.raises(TemplatesError, match="1: no tier fits this row; add one without needs"):
        caption_rows(templates, [{"filepath": "1", "c": ""}], root=ROOT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("needs: [c], ", ""), "c may be missing in '{c} of the {organ}.': put it into"),
        (("{c} of", "{d} of"), "t: d, which are no fields"),
        (("of the", "[[of the"), "brackets without their other half"),
        (("label: c", "label: z"), "label 'z' is no field"),
        (("organ: eye", "organs: eye"), "unknown keys organs; no organ"),
        (("templates: [", "verbatim: c, templates: ["), "give either templates or verbatim"),
        (('["{c}', '["{c} of the {organ}.", "{c}'), "a template twice"),
        (("tiers: [", "tiers: [["), "no YAML"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(tmp_path: Path, change, message) -> None:
    good = (
        "organ: eye\nlabel: c\nfields: {c: [c]}\n"
        'tiers: [{name: t, needs: [c], templates: ["{c} of the {organ}."]}]\n'
    )
    assert change[0] in good
    written = tmp_path / "t.yaml"
    written.write_text(good)
    load_templates(str(written))
    written.write_text(good.replace(*change))
    with pytest.raises(TemplatesError) as caught:
        load_templates(str(written))
    assert message in str(caught.value)


def test_unknown_templates_are_named() -> None:
    with pytest.raises(TemplatesError, match=r"'brest': neither shipped \(breast, liver"):
        load_templates("brest")
