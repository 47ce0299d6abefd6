"""The shipped extensions: their terms in sentences, ids that stay, points of TI-RADS."""

import hashlib
from pathlib import Path

import pytest

from fastht.taxonomy import Tagger, TaxonomyError, load_taxonomy, shipped
from fastht.taxonomy.ids import ids_text
from fastht.taxonomy.tirads import STATED, points

# Sentence, dimension, what it affirms, what it negates.
BIRADS = [
    (
        "Oval mass, parallel, with circumscribed margins.",
        "Orientation",
        ["parallel orientation"],
        [],
    ),
    ("The mass is not parallel.", "Orientation", ["not parallel orientation"], []),
    (
        "Irregular mass with angular and spiculated margins.",
        "Margins",
        ["ill-defined/indistinct", "angular", "spiculated"],
        [],
    ),
    ("The margin is not spiculated.", "Margins", [], ["spiculated"]),
    (
        "There is a combined pattern behind the mass.",
        "PosteriorAcoustics",
        ["enhancement", "shadowing", "combined posterior pattern"],
        [],
    ),
    (
        "The mass has no posterior acoustic features.",
        "PosteriorAcoustics",
        ["no posterior features"],
        ["enhancement", "shadowing"],
    ),
    ("Posterior shadowing.", "PosteriorAcoustics", ["shadowing"], []),
    ("Mass with internal vascularity.", "Vascularity", ["internal vascularity"], []),
    ("Mass with vessels in the rim.", "Vascularity", ["rim vascularity"], []),
    ("The mass has no internal vascularity.", "Vascularity", ["no vascularity"], []),
    (
        "Hypoechoic mass of heterogeneous echotexture.",
        "Echogenicity",
        ["hypoechoic", "mixed echogenicity"],
        [],
    ),
    ("Complex cystic and solid mass.", "InternalCharacteristics", ["complex cystic solid"], []),
    ("Solid mass, BI-RADS 4A.", "Assessment", ["BI-RADS 4", "BI-RADS 4A"], []),
    ("No calcifications, BIRADS category 2.", "Assessment", ["BI-RADS 2"], []),
    ("Biopsy-proven carcinoma, BI-RADS: 6.", "Assessment", ["BI-RADS 6"], []),
    ("Four masses in the left breast.", "Assessment", [], []),
]
TIRADS = [
    ("Spongiform nodule.", "InternalCharacteristics", ["cystic components", "spongiform"], []),
    (
        "Nodule with microcalcifications.",
        "InternalCharacteristics",
        ["calcifications", "punctate echogenic foci"],
        [],
    ),
    (
        "Nodule with coarse calcification and eggshell calcification.",
        "InternalCharacteristics",
        ["calcifications", "macrocalcifications", "rim calcifications"],
        [],
    ),
    (
        "Nodule without punctate echogenic foci.",
        "InternalCharacteristics",
        [],
        ["punctate echogenic foci"],
    ),
    ("A markedly hypoechoic nodule.", "Echogenicity", ["hypoechoic", "very hypoechoic"], []),
    ("A hypoechoic nodule.", "Echogenicity", ["hypoechoic"], []),
    ("Taller-than-wide nodule.", "Orientation", ["taller than wide"], []),
    (
        "Nodule with irregular margins.",
        "Margins",
        ["ill-defined/indistinct", "irregular margin"],
        [],
    ),
    ("No extrathyroidal extension.", "Margins", [], ["extra-thyroidal extension"]),
    (
        "Almost completely cystic nodule.",
        "InternalCharacteristics",
        ["cystic components", "cystic or almost completely cystic"],
        [],
    ),
    ("Isoechoic nodule, TI-RADS 3.", "Assessment", ["TR3"], []),
    ("ACR TIRADS category 5 without adenopathy.", "Assessment", ["TR5"], []),
]


@pytest.mark.parametrize(("name", "rows"), [("birads", BIRADS), ("tirads", TIRADS)])
def test_terms_in_sentences(name: str, rows: list[tuple[str, str, list[str], list[str]]]) -> None:
    tag = Tagger(load_taxonomy(name)).tag
    plain = Tagger(load_taxonomy()).tag
    for sentence, dimension, affirmed, negated in rows:
        tags = tag(sentence)
        assert set(tags.present(dimension)) == set(affirmed), sentence
        assert set(tags.absent(dimension)) == set(negated), sentence
    # Without the extension none of its own is found: the sentences do test it.
    own = {value for _, value in load_taxonomy(name).tags[93:]}
    assert not any(hit.value in own for sentence, *_ in rows for hit in plain(sentence).hits)


def test_ids_of_what_is_shipped_never_change() -> None:
    """A change here breaks checkpoints: new values come after, with an `id:` of their own."""
    first = {"us365k": (93, "17808a8af0c94751"), "birads": (112, ""), "tirads": (110, "")}
    assert set(shipped()) == set(first)
    recorded = {
        name: "\n".join("/".join(tag) for tag in load_taxonomy(name).tags) for name in shipped()
    }
    for name, (count, _) in first.items():
        assert len(recorded[name].splitlines()) == count
        assert recorded[name].startswith(recorded["us365k"])
        path = Path(__file__).parents[2] / "fastht" / "taxonomy" / f"{name}.ids"
        assert path.read_text() == ids_text(load_taxonomy(name))
    digest = hashlib.sha256(recorded["us365k"].encode()).hexdigest()
    assert digest[:16] == first["us365k"][1]
    assert recorded["birads"].splitlines()[93:98] == [
        "Margins/angular",
        "Margins/microlobulated",
        "Margins/spiculated",
        "Orientation/parallel orientation",
        "Orientation/not parallel orientation",
    ]


def test_one_may_extend_an_extension(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("extends: tirads@1\nname: own\ndimensions: {Shape: {add: {star: {}}}}\n")
    taxonomy = load_taxonomy(path)
    assert taxonomy.names == ("us365k", "tirads", "own")
    path.write_text("extends: tirads@2\nname: own\n")
    with pytest.raises(TaxonomyError, match="ships tirads@1"):
        load_taxonomy(path)


def tags(**values: str) -> dict[str, list[str]]:
    """Tags by dimension, several values parted by semicolons."""
    return {name: [v.strip() for v in held.split(";")] for name, held in values.items()}


WHOLE = {
    "InternalCharacteristics": "solid components",
    "Echogenicity": "hypoechoic",
    "Orientation": "wider than tall",
    "Margins": "well-defined",
}
# What differs from WHOLE; points; levels.
NODULES = [
    ({}, (4, 4), ("TR4",)),
    ({"Echogenicity": "hypoechoic; very hypoechoic"}, (5, 5), ("TR4",)),
    ({"Orientation": "taller than wide"}, (7, 7), ("TR5",)),
    ({"Margins": "irregular margin"}, (6, 6), ("TR4",)),
    ({"Shape": "lobulated"}, (6, 6), ("TR4",)),
    ({"Margins": "extra-thyroidal extension"}, (7, 7), ("TR5",)),
    ({"Echogenicity": "isoechoic"}, (3, 3), ("TR3",)),
    (
        {
            "InternalCharacteristics": "solid components; cystic components",
            "Echogenicity": "isoechoic",
        },
        (2, 2),
        ("TR2",),
    ),
    (
        {
            "InternalCharacteristics": "cystic or almost completely cystic",
            "Echogenicity": "anechoic",
        },
        (0, 0),
        ("TR1",),
    ),
    ({"InternalCharacteristics": "spongiform; punctate echogenic foci"}, (0, 0), ("TR1",)),
    (
        {
            "InternalCharacteristics": "solid components; macrocalcifications;"
            " punctate echogenic foci"
        },
        (8, 8),
        ("TR5",),
    ),
    ({"InternalCharacteristics": "solid components; rim calcifications"}, (6, 6), ("TR4",)),
    ({"InternalCharacteristics": "solid components; large comet-tail artifacts"}, (4, 4), ("TR4",)),
    ({"InternalCharacteristics": "solid components; calcifications"}, (5, 7), ("TR4", "TR5")),
    (
        {"InternalCharacteristics": "mixed cystic and solid mass", "Echogenicity": "anechoic"},
        (1, 1),
        ("TR1", "TR2"),
    ),
]


@pytest.mark.parametrize(("change", "total", "levels"), NODULES)
def test_points_and_levels(
    change: dict[str, str], total: tuple[int, int], levels: tuple[str, ...]
) -> None:
    found = points(tags(**{**WHOLE, **change}))
    assert (found.total, found.levels) == (total, levels)


def test_what_is_lacking_leaves_levels_open() -> None:
    nothing = points({})
    assert nothing.total == (0, 11)
    assert nothing.levels == ("TR1", "TR2", "TR3", "TR4", "TR5")
    assert nothing.open == ("composition", "echogenicity", "shape", "margin")
    found = points(
        tags(
            InternalCharacteristics="solid components",
            Echogenicity="hypoechoic",
            Orientation="taller than wide",
        )
    )
    assert (found.total, found.levels, found.open) == ((7, 10), ("TR5",), ("margin",))
    assert found.describe() == "7 to 10 points, TR5"


def test_a_report_is_held_against_its_level() -> None:
    tagger = Tagger(load_taxonomy("tirads"))
    text = (
        "Solid, markedly hypoechoic nodule of the thyroid, taller than wide, with irregular "
        "margins and microcalcifications. TI-RADS 5."
    )
    found = tagger.tag(text)
    held = {name: found.present(name) for name in tagger.taxonomy.dimensions}
    assert points(held).total == (13, 13)
    assert points(held).levels == tuple(held[STATED]) == ("TR5",)
