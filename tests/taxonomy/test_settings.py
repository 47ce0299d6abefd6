"""What a file says of its soft labels: every method, overrides, weights; lines of what is wrong."""

from pathlib import Path

import numpy as np
import pytest

from fastht.taxonomy import Taxonomy, TaxonomyError, load_taxonomy
from fastht.taxonomy import similarity as s

EXAMPLE = """\
extends: us365k@1
name: my-hospital
dimensions:
  Organ_level:
    parent: Body_system_level
    add: {Prostate: {parent: Urinary Tract and male reproductive system, synonyms: [prostatic, transition zone]}}
  Margins:
    add: {spiculated: {broader: ill-defined/indistinct}, microlobulated: {broader: ill-defined/indistinct}}
  Orientation: {field: Orientation, values: {parallel: {synonyms: [wider than tall]}, not parallel: {synonyms: [taller than wide]}}, exclusive: true}
similarity: {method: tree, sibling: 0.5, broader: 0.8, overrides: {Echogenicity: {hypoechoic~anechoic: 0.3}}}
weights: {Body_system_level: 0.5}
missing: ignore
"""  # noqa: E501


def load(folder: Path, text: str, name: str = "own.yaml") -> Taxonomy:
    (folder / name).write_text(text, encoding="utf-8")
    return load_taxonomy(folder / name)


def own(settings: str, base: str = "us365k@1") -> str:
    return f"extends: {base}\nname: own\n{settings}\n"


def between(taxonomy: Taxonomy, matrix: np.ndarray, first: str, second: str) -> float:
    names = [value for _, value in taxonomy.tags]
    return float(matrix[names.index(first), names.index(second)])


def test_the_example_loads_word_for_word(tmp_path: Path) -> None:
    taxonomy = load(tmp_path, EXAMPLE)
    assert taxonomy.weights == {"Body_system_level": 0.5}
    assert taxonomy.missing == "ignore"
    matrix = s.similarity_matrix(taxonomy)
    assert between(taxonomy, matrix, "hypoechoic", "anechoic") == 0.3
    assert between(taxonomy, matrix, "anechoic", "hypoechoic") == 0.3
    assert between(taxonomy, matrix, "hypoechoic", "isoechoic") == 0
    assert between(taxonomy, matrix, "spiculated", "ill-defined/indistinct") == 0.8
    assert between(taxonomy, matrix, "spiculated", "microlobulated") == pytest.approx(0.64)
    assert between(taxonomy, matrix, "Prostate", "Bladder") == 0.5
    assert s.weights_of(taxonomy, taxonomy.weights).tolist() == [1, 0.5] + [1] * 8
    # Without the three keys nothing is alike by them, and the digest tells both apart.
    plain = load(tmp_path, EXAMPLE.partition("similarity:")[0], "plain.yaml")
    assert between(plain, s.similarity_matrix(plain), "hypoechoic", "anechoic") == 0
    assert plain.digest != taxonomy.digest


def test_each_key_changes_the_digest_and_defaults_do_not(tmp_path: Path) -> None:
    plain = load(tmp_path, own(""))
    same = load(tmp_path, own("similarity: {method: tree, sibling: 0.5}\nmissing: ignore"))
    assert same.digest == plain.digest
    texts = (
        "similarity: {sibling: 0.4}",
        "similarity: {method: identity}",
        "similarity: {dimensions: {Echogenicity: ordinal}}",
        "similarity: {overrides: {Shape: {round~oval: 0.5}}}",
        "weights: {Shape: 2}",
        "missing: zero",
    )
    digests = {load(tmp_path, own(text)).digest for text in texts}
    assert len(digests | {plain.digest}) == len(texts) + 1


def test_methods_by_dimension(tmp_path: Path) -> None:
    np.savez(tmp_path / "task4_tag_normalized.npz", **published("Shape", 0.25))
    text = """similarity:
  method: identity
  dimensions:
    Echogenicity: ordinal
    Organ_level: {method: tree, sibling: 0.3}
    Diagnosis: cooccurrence
    Margins: text
    Shape: {method: file, path: 'task{number}_tag_normalized.npz'}"""
    taxonomy = load(tmp_path, own(text))
    with pytest.raises(TaxonomyError, match="cooccurrence of Diagnosis counts in records"):
        s.similarity_matrix(taxonomy)
    records = [{"Diagnosis": ["cyst", "mass"]}, {"Diagnosis": ["cyst"]}]
    with pytest.raises(TaxonomyError, match="text of Margins needs a text tower"):
        s.similarity_matrix(taxonomy, records=records)
    vectors = np.array([[1.0, 0.0], [0.6, 0.8]])
    matrix = s.similarity_matrix(taxonomy, records=records, encode=lambda texts: vectors)
    expected = {
        ("hypoechoic", "isoechoic"): 2 / 3,
        ("Liver", "Spleen"): 0.3,
        ("cyst", "mass"): 0.5,
        ("well-defined", "ill-defined/indistinct"): 0.0,  # the least of two is 0
        ("round", "oval"): 0.25,
        ("enhancement", "shadowing"): 0.0,
    }
    for pair, value in expected.items():
        assert between(taxonomy, matrix, *pair) == pytest.approx(value), pair
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), np.ones(len(matrix)))


def published(name: str, value: float) -> dict[str, np.ndarray]:
    labels = list(load_taxonomy().dimensions[name].values)
    matrix = np.full((len(labels),) * 2, value)
    np.fill_diagonal(matrix, 1)
    return {"matrix": matrix, "labels": np.array(labels)}


def test_text_is_the_cosine_from_least_to_most() -> None:
    dimension = load_taxonomy().dimensions["PosteriorAcoustics"]
    three = load_taxonomy().dimensions["Echogenicity"]
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 8))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    found = s.from_text(three, lambda texts: 3 * vectors)
    wanted = (cosine - cosine.min()) / (1 - cosine.min())
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert found.min() == 0
    for bad in (np.ones((3, 2)), np.full((2, 2), np.nan), np.zeros((2, 2))):
        with pytest.raises(TaxonomyError, match="PosteriorAcoustics"):
            s.from_text(dimension, lambda texts, bad=bad: bad)  # type: ignore[misc]


def test_a_chain_inherits_and_merges(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    np.savez(tmp_path / "deep" / "Shape.npz", **published("Shape", 0.25))
    base = own(
        "similarity: {method: tree, sibling: 0.4, dimensions: {Shape: {method: file, "
        "path: '{dimension}.npz'}}, overrides: {Echogenicity: {hypoechoic~anechoic: 0.3}}}\n"
        "weights: {Shape: 2, Margins: 3}\nmissing: zero"
    )
    load(tmp_path / "deep", base, "base.yaml")
    child = own(
        "similarity: {overrides: {Echogenicity: {isoechoic~hypoechoic: 0.6}}}\n"
        "weights: {Margins: 4}",
        "deep/base.yaml",
    )
    taxonomy = load(tmp_path, child)
    assert (taxonomy.weights, taxonomy.missing) == ({"Shape": 2, "Margins": 4}, "zero")
    assert taxonomy.names == ("us365k", "own", "own")
    matrix = s.similarity_matrix(taxonomy)
    for pair, value in {
        ("hypoechoic", "anechoic"): 0.3,
        ("isoechoic", "hypoechoic"): 0.6,
        ("Liver", "Spleen"): 0.4,
        ("round", "oval"): 0.25,  # from the folder of the file that names it
    }.items():
        assert between(taxonomy, matrix, *pair) == value


PROBLEMS = [
    ("similarity: {method: cosine}", "line 3: similarity: method 'cosine' is not known; choose"),
    ("similarity: tree", "line 3: similarity: `method: …` lines are needed"),
    ("similarity: {sibling: 2}", "line 3: similarity: sibling: 2 is not a number from 0 to 1"),
    ("similarity: {method: identity, sibling: 0.5}", "sibling: means nothing for method identity"),
    ("similarity: {method: ordinal}", "similarity: method: Diagnosis has no `order:`; give"),
    ("similarity: {method: file}", "method file needs `path:`"),
    ("similarity:\n  dimensions: {Colour: tree}", "line 4: similarity: dimensions: Colour is no"),
    (
        "similarity:\n  overrides:\n    Shape:\n      round: 0.5",
        "line 6: similarity: overrides: Shape: round: is no pair; write two values",
    ),
    (
        "similarity:\n  overrides:\n    Shape: {round~cyst: 0.5}",
        "line 5: similarity: overrides: Shape: cyst~round: Shape has no 'cyst'; correct it",
    ),
    ("similarity: {overrides: {Shape: {round~round: 0.5}}}", "a value is like itself"),
    ("similarity: {overrides: {Shape: {round~oval: two}}}", "'two' is not a number from 0 to 1"),
    ("weights: {Shape: -1}", "line 3: weights: Shape: -1 is not a number from 0"),
    ("weights: {Color: 1}", "line 3: weights: Color is no dimension; there are Diagnosis"),
    ("missing: maybe", "line 3: missing: 'maybe' is neither ignore nor zero; choose one"),
    (
        "dimensions:\n  Shape:\n    add:\n      star: {}\n      sun: {broader: moon}",
        "line 7: Shape/sun: broader 'moon' is not in Shape",
    ),
    (
        "dimensions:\n  Shape:\n    order: [moon]",
        "line 5: Shape: order names 'moon', which is none of its values",
    ),
    (
        "dimensions: {PosteriorAcoustics: {add: {both: {implies: [oval]}}}}",
        "PosteriorAcoustics/both: implies: 'oval' is no other value of PosteriorAcoustics",
    ),
]


@pytest.mark.parametrize(("settings", "message"), PROBLEMS)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, settings: str, message: str) -> None:
    with pytest.raises(TaxonomyError) as caught:
        load(tmp_path, own(settings))
    assert message in str(caught.value)


def test_recorded_ids_are_kept(tmp_path: Path) -> None:
    from fastht.cli import main

    text = "name: own\ndimensions: {D: {values: {x: {}, y: {}}}}\n"
    path = tmp_path / "own.yaml"
    path.write_text(text)
    assert main(["taxonomy", "record", str(path)]) == 0
    assert (tmp_path / "own.ids").read_text() == "D/x\nD/y\n"
    load_taxonomy(path)
    path.write_text(text.replace("y: {}", "y: {}, z: {}"))
    with pytest.raises(TaxonomyError, match=r"1 ids are not recorded yet \(D/z\): record them by"):
        load_taxonomy(path)
    assert main(["taxonomy", "record", str(path)]) == 0
    assert (tmp_path / "own.ids").read_text() == "D/x\nD/y\nD/z\n"
    path.write_text(text.replace("x: {}", "w: {}, x: {}"))
    with pytest.raises(TaxonomyError, match="id 0 was D/x and is D/w"):
        load_taxonomy(path)
    assert main(["taxonomy", "record", str(path)]) == 1  # it changes no id that is recorded
    assert (tmp_path / "own.ids").read_text() == "D/x\nD/y\nD/z\n"
