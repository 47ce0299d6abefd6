"""How alike the values of a dimension are, by methods that are named.

The matrices of the published code (arXiv 2604.01749) were not released, and how they were made is
not known; none of these methods is claimed to be theirs. :func:`similarity_matrix`,
:func:`dimension_numbers`, :func:`weights_of` and :func:`tag_numbers` give what
``fastht.losses.SoftTargets.from_tags`` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fastht.taxonomy.schema import Dimension, Taxonomy, TaxonomyError, refusal

Matrix = NDArray[np.float64]
Encode = Callable[[Sequence[str]], NDArray[np.floating]]


def identity(dimension: Dimension) -> Matrix:
    """Return ``[V, V]``: 1 for the same value and 0 for others."""
    return np.eye(len(dimension.values))


def tree(dimension: Dimension, sibling: float = 0.5, broader: float = 0.8) -> Matrix:
    """Return ``[V, V]`` from the tree of values.

    Args:
        dimension: of the values.
        sibling: similarity of values with the same parent, such as organs of a system.
        broader: similarity of a value and the next broader one; each further step up or down
            multiplies by it. Where both apply, the larger counts.

    Raises:
        TaxonomyError: a similarity is not from 0 to 1.
    """
    for name, share in (("sibling", sibling), ("broader", broader)):
        if not 0 <= share <= 1:
            raise TaxonomyError(f"{name} is {share}; a similarity is from 0 to 1")
    names = list(dimension.values)
    chains = [[name, *dimension.broader(name)] for name in names]
    parents = [dimension.values[name].parent for name in names]
    result = np.eye(len(names))
    for i in range(len(names)):
        for j in range(i):
            if parents[i] is not None and parents[i] == parents[j]:
                result[i, j] = sibling
            if common := [value for value in chains[i] if value in chains[j]]:
                steps = chains[i].index(common[0]) + chains[j].index(common[0])
                result[i, j] = max(result[i, j], broader**steps)
            result[j, i] = result[i, j]
    return result


def ordinal(dimension: Dimension) -> Matrix:
    """Return ``[V, V]``: 1 less the distance in the dimension's order, over the longest one.

    Values outside the order, such as mixed echogenicity, are like themselves alone.

    Raises:
        TaxonomyError: the dimension has no order of two values.
    """
    if len(dimension.order) < 2:
        raise TaxonomyError(f"{dimension.name} has no `order:`; choose another similarity for it")
    names = list(dimension.values)
    places = [names.index(name) for name in dimension.order]
    rank = np.arange(len(places))
    result = np.eye(len(names))
    result[np.ix_(places, places)] = 1 - np.abs(rank[:, None] - rank) / (len(places) - 1)
    return result


def cooccurrence(dimension: Dimension, records: Iterable[Iterable[str]]) -> Matrix:
    """Return ``[V, V]``: in how many records both values are, of those with either (Jaccard).

    Values that exclude each other get 0, so this is close to the identity where most do.

    Args:
        dimension: of the values.
        records: the values of each record; one that is named twice counts once.

    Raises:
        TaxonomyError: a record has a value that the dimension has not.
    """
    place = {name: index for index, name in enumerate(dimension.values)}
    both = np.zeros((len(place), len(place)))
    for values in records:
        if unknown := {*values} - place.keys():
            raise TaxonomyError(f"{dimension.name} has no {', '.join(sorted(unknown))}")
        held = sorted(place[value] for value in {*values})
        both[np.ix_(held, held)] += 1
    alone = np.diag(both)
    either = alone[:, None] + alone - both
    result = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    np.fill_diagonal(result, 1)
    return result


def from_file(dimension: Dimension, path: Path) -> Matrix:
    """Read ``[V, V]`` from an .npz with ``matrix`` and ``labels``, as the published code does.

    Labels may be in any order; those that the dimension has not are left out.

    Raises:
        TaxonomyError: it cannot be read, lacks a value, or is not a symmetric matrix of numbers
            from 0 to 1 with 1 on its diagonal.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            matrix = np.asarray(content["matrix"], dtype=np.float64)
            labels = [str(label) for label in content["labels"].tolist()]
    except (OSError, LookupError, ValueError, TypeError, AttributeError, BadZipFile) as error:
        raise TaxonomyError(
            f"{path}: not an .npz with numbers `matrix` and texts `labels` ({error}); write it by "
            "numpy.savez(path, matrix=matrix, labels=numpy.array(labels, dtype=str))"
        ) from None
    problems = []
    if matrix.shape != (len(labels), len(labels)):
        raise TaxonomyError(f"{path}: {len(labels)} labels and a matrix of {matrix.shape}")
    if missing := [name for name in dimension.values if name not in labels]:
        problems.append(f"no label {', '.join(missing)}, which {dimension.name} has")
    if len({*labels}) < len(labels):
        problems.append("a label stands twice")
    if not ((matrix >= 0) & (matrix <= 1)).all():  # not a number is neither
        problems.append("a similarity is not from 0 to 1")
    if not np.array_equal(matrix, matrix.T, equal_nan=True):
        problems.append("not symmetric; give (S + S.T) / 2")
    if not np.array_equal(np.diag(matrix), np.ones(len(labels))):
        problems.append("a value is not like itself: the diagonal has to be 1")
    if problems:
        raise refusal(str(path), problems)
    chosen = [labels.index(name) for name in dimension.values]
    return matrix[np.ix_(chosen, chosen)]


def from_text(dimension: Dimension, encode: Encode) -> Matrix:
    """Return ``[V, V]``: the cosine of the values' names in a text tower, least 0 and most 1.

    Args:
        dimension: of the values.
        encode: gives the vectors of texts, ``[V, D]``.

    Raises:
        TaxonomyError: the vectors are not of that shape, not finite, or all alike.
    """
    vectors = np.asarray(encode([*dimension.values]), dtype=np.float64)
    names = len(dimension.values)
    if vectors.ndim != 2 or len(vectors) != names or not np.isfinite(vectors).all():
        raise TaxonomyError(f"{dimension.name}: {names} values gave vectors of {vectors.shape}")
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (length > 0).all():
        raise TaxonomyError(f"{dimension.name}: a value has a vector of zeros; try another tower")
    unit = vectors / length
    cosine = (unit @ unit.T + (unit @ unit.T).T) / 2
    least = cosine.min()
    if names == 1 or least > 1 - 1e-9:
        return np.eye(names)
    result = ((cosine - least) / (1 - least)).clip(0, 1)
    np.fill_diagonal(result, 1)
    return result


def configured(
    taxonomy: Taxonomy,
    name: str,
    *,
    records: Sequence[Mapping[str, Iterable[str]]] | None = None,
    encode: Encode | None = None,
) -> Matrix:
    """Return ``[V, V]`` of a dimension by the method and the overrides of the taxonomy's file.

    Args:
        taxonomy: of the dimension.
        name: of the dimension.
        records: the values of each record by dimension, for method cooccurrence.
        encode: gives the vectors of texts, ``[V, D]``, for method text.

    Raises:
        TaxonomyError: the method needs records or a text tower and there are none, or its file
            cannot be used.
    """
    dimension = taxonomy.dimensions[name]
    method = taxonomy.similarity.of(name)
    if method.name == "identity":
        result = identity(dimension)
    elif method.name == "tree":
        result = tree(dimension, method.sibling, method.broader)
    elif method.name == "ordinal":
        result = ordinal(dimension)
    elif method.name == "cooccurrence":
        if records is None:
            raise TaxonomyError(
                f"{taxonomy.label}: similarity cooccurrence of {name} counts in records, and there "
                "are none here; give them, or choose another method"
            )
        result = cooccurrence(dimension, (record.get(name, ()) for record in records))
    elif method.name == "text":
        if encode is None:
            raise TaxonomyError(
                f"{taxonomy.label}: similarity text of {name} needs a text tower, and there is "
                "none here; give one, or choose another method"
            )
        result = from_text(dimension, encode)
    else:
        number = list(taxonomy.dimensions).index(name) + 1
        path = str(method.path).replace("{dimension}", name).replace("{number}", str(number))
        result = from_file(dimension, method.folder / path)
    place = {value: index for index, value in enumerate(dimension.values)}
    for (first, second), value in taxonomy.similarity.overrides.get(name, {}).items():
        result[place[first], place[second]] = result[place[second], place[first]] = value
    return result


def similarity_matrix(
    taxonomy: Taxonomy,
    matrices: Mapping[str, Matrix] | None = None,
    *,
    records: Sequence[Mapping[str, Iterable[str]]] | None = None,
    encode: Encode | None = None,
) -> Matrix:
    """Return the similarity of all tags, ``[N, N]`` by id; 0 between dimensions.

    Args:
        taxonomy: of the tags.
        matrices: ``[V, V]`` by dimension, values in the order of the file. Default for each: what
            the taxonomy's file says under ``similarity:``, see :func:`configured`, else
            :func:`tree`, which is the identity where a dimension has neither parents nor broader
            values.
        records: as :func:`configured` takes them.
        encode: likewise.

    Raises:
        TaxonomyError: a dimension is unknown or its matrix has another size; or as
            :func:`configured`.
    """
    given = dict(matrices or {})
    _only_known(taxonomy, given)
    result = np.zeros((len(taxonomy.tags),) * 2)
    for name, dimension in taxonomy.dimensions.items():
        matrix = (
            given[name]
            if name in given
            else configured(taxonomy, name, records=records, encode=encode)
        )
        ids = [value.id for value in dimension.values.values()]
        if matrix.shape != (len(ids), len(ids)):
            raise TaxonomyError(
                f"{name}: a matrix of {matrix.shape} for {len(ids)} values; give one of each pair"
            )
        result[np.ix_(ids, ids)] = matrix
    return result


def dimension_numbers(taxonomy: Taxonomy) -> NDArray[np.int64]:
    """Return the number of the dimension of each tag, ``[N]`` by id."""
    number = {name: index for index, name in enumerate(taxonomy.dimensions)}
    return np.array([number[dimension] for dimension, _ in taxonomy.tags], dtype=np.int64)


def weights_of(taxonomy: Taxonomy, weights: Mapping[str, float]) -> Matrix:
    """Return the weights of the dimensions, ``[K]``; 1 where none is given.

    Raises:
        TaxonomyError: a dimension is unknown, or a weight is negative or not finite.
    """
    _only_known(taxonomy, weights)
    result = np.array([float(weights.get(name, 1)) for name in taxonomy.dimensions])
    if not (np.isfinite(result) & (result >= 0)).all():
        raise TaxonomyError(f"weights {dict(weights)}: each has to be a number from 0")
    return result


def tag_numbers(
    taxonomy: Taxonomy, records: Sequence[Mapping[str, Iterable[str]]]
) -> NDArray[np.int64]:
    """Return the ids of each record's tags, ``[B, L]``, filled up with -1.

    Args:
        taxonomy: of the tags.
        records: the values of each record by dimension; one that is named twice counts once.

    Raises:
        TaxonomyError: a dimension or a value is unknown.
    """
    rows = []
    for record in records:
        _only_known(taxonomy, record)
        row = set()
        for name, given in record.items():
            values = taxonomy.dimensions[name].values
            for value in given:
                if value not in values:
                    raise TaxonomyError(f"{name} has no {value!r}")
                row.add(values[value].id)
        rows.append(sorted(row))
    result = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for index, held in enumerate(rows):
        result[index, : len(held)] = held
    return result


def _only_known(taxonomy: Taxonomy, names: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in taxonomy.dimensions]:
        known = ", ".join(taxonomy.dimensions)
        raise TaxonomyError(f"{taxonomy.label} has no {', '.join(unknown)}; there are {known}")
