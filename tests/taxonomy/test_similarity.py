"""Similarity of tags by each method, and that the losses read it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastht.losses.targets import SoftTargets, factors
from fastht.taxonomy import TaxonomyError, load_taxonomy
from fastht.taxonomy.similarity import (
    cooccurrence,
    dimension_numbers,
    from_file,
    identity,
    ordinal,
    similarity_matrix,
    tag_numbers,
    tree,
    weights_of,
)

US365K = load_taxonomy()


def pair(matrix: np.ndarray, dimension: str, a: str, b: str) -> float:
    names = list(US365K.dimensions[dimension].values)
    return float(matrix[names.index(a), names.index(b)])


def test_identity_tree_and_order() -> None:
    organs = US365K.dimensions["Organ_level"]
    assert np.array_equal(identity(organs), np.eye(52))
    found = tree(organs, sibling=0.25)
    assert pair(found, "Organ_level", "Liver", "Spleen") == 0.25
    assert pair(found, "Organ_level", "Liver", "Uterus") == 0
    echo = ordinal(US365K.dimensions["Echogenicity"])
    assert pair(echo, "Echogenicity", "anechoic", "hyperechoic") == 0
    assert pair(echo, "Echogenicity", "hypoechoic", "isoechoic") == pytest.approx(2 / 3)
    assert pair(echo, "Echogenicity", "isoechoic", "mixed echogenicity") == 0
    for matrix in (found, echo, ordinal(US365K.dimensions["Vascularity"])):
        assert np.array_equal(matrix, matrix.T)
        assert np.array_equal(np.diag(matrix), np.ones(len(matrix)))
    with pytest.raises(TaxonomyError, match="Shape has no `order:`"):
        ordinal(US365K.dimensions["Shape"])
    with pytest.raises(TaxonomyError, match="sibling is 2"):
        tree(organs, sibling=2)


def test_the_tree_of_broader_values(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "name: own\ndimensions: {D: {values: {top: {}, a: {broader: top}, b: {broader: top}, "
        "leaf: {broader: a}, other: {}}}}\n"
    )
    found = tree(load_taxonomy(path).dimensions["D"], broader=0.5)
    expected = [
        [1, 0.5, 0.5, 0.25, 0],
        [0.5, 1, 0.25, 0.5, 0],
        [0.5, 0.25, 1, 0.125, 0],
        [0.25, 0.5, 0.125, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(found, expected)


def test_cooccurrence_is_jaccard() -> None:
    shape = US365K.dimensions["Shape"]
    records = [["round", "oval"], ["round"], ["oval", "oval", "irregular"], []]
    found = cooccurrence(shape, records)
    assert pair(found, "Shape", "round", "oval") == pytest.approx(1 / 3)
    assert pair(found, "Shape", "oval", "irregular") == 0.5
    assert pair(found, "Shape", "round", "irregular") == 0
    assert pair(found, "Shape", "nodular", "nodular") == 1
    with pytest.raises(TaxonomyError, match="Shape has no square"):
        cooccurrence(shape, [["square"]])


def test_a_file_in_any_order(tmp_path: Path) -> None:
    margins = US365K.dimensions["Margins"]
    labels = ["other", "ill-defined/indistinct", "well-defined"]
    matrix = np.array([[1, 0.1, 0.2], [0.1, 1, 0.7], [0.2, 0.7, 1]])
    path = tmp_path / "task5.npz"
    np.savez(path, matrix=matrix, labels=np.array(labels))
    np.testing.assert_array_equal(from_file(margins, path), [[1, 0.7], [0.7, 1]])
    broken = matrix.copy()
    broken[0, 1], broken[2, 2] = 3, 0.5
    np.savez(path, matrix=broken, labels=np.array(["other", "other", "well-defined"]))
    with pytest.raises(TaxonomyError) as caught:
        from_file(margins, path)
    for told in ("no label ill-defined", "twice", "from 0 to 1", "symmetric", "diagonal"):
        assert told in str(caught.value)
    np.savez(path, matrix=matrix, labels=np.array(labels, dtype=object))  # would need pickle
    with pytest.raises(TaxonomyError, match=r"numpy\.savez"):
        from_file(margins, path)
    np.savez(path, matrix=matrix[:2], labels=np.array(labels))
    with pytest.raises(TaxonomyError, match="3 labels and a matrix of"):
        from_file(margins, path)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(path.read_bytes()[:100])
    plain = tmp_path / "plain.npy"
    np.save(plain, matrix)
    for other in (tmp_path / "none.npz", cut, plain):
        with pytest.raises(TaxonomyError, match="npz with numbers"):
            from_file(margins, other)


@pytest.mark.parametrize("missing", ["zero", "ignore"])
def test_the_losses_read_it_as_the_loops_do(missing: str) -> None:
    records = [
        {"Shape": ["round", "oval"], "Echogenicity": ["anechoic"], "Organ_level": ["Liver"]},
        {"Shape": ["oval"], "Organ_level": ["Spleen", "Uterus"]},
        {"Echogenicity": ["hypoechoic"], "Organ_level": ["Liver"]},
        {},
    ]
    matrices = {"Echogenicity": ordinal(US365K.dimensions["Echogenicity"])}
    weights = weights_of(US365K, {"Shape": 0.5})
    targets = SoftTargets.from_tags(
        torch.from_numpy(tag_numbers(US365K, records)),
        torch.from_numpy(similarity_matrix(US365K, matrices)),
        torch.from_numpy(dimension_numbers(US365K)),
        missing=missing,
        weights=torch.from_numpy(weights),
    )
    q, p, u, w = factors(targets.rows, targets.columns, targets.table, torch.float64)
    found = q @ p.T
    if u is not None:
        shared = u @ w.T
        found = torch.where(shared > 0, found / shared, 0.0)
    for i, a in enumerate(records):
        for j, b in enumerate(records):
            total = shares = 0.0
            for (name, dimension), weight in zip(US365K.dimensions.items(), weights, strict=True):
                matrix = matrices.get(name, tree(dimension))
                pairs = [pair(matrix, name, x, y) for x in a.get(name, []) for y in b.get(name, [])]
                total += weight * float(np.mean(pairs)) if pairs else 0
                shares += weight * (bool(pairs) or missing == "zero")
            assert found[i, j].item() == pytest.approx(total / shares if shares else 0), (i, j)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TaxonomyError, match="has no Form; there are Diagnosis"):
        similarity_matrix(US365K, {"Form": np.eye(2)})
    with pytest.raises(TaxonomyError, match="for 7 values"):
        similarity_matrix(US365K, {"Shape": np.eye(2)})
    with pytest.raises(TaxonomyError, match="from 0"):
        weights_of(US365K, {"Shape": -1})
    with pytest.raises(TaxonomyError, match="Shape has no 'square'"):
        tag_numbers(US365K, [{"Shape": ["square"]}])
