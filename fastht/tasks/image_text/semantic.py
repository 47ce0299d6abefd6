"""Semantic soft labels in training: options, presets, and the targets of samples by their tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastht.losses import SoftLabels, SoftTargets, target_sharpness
from fastht.losses.functional import Directions
from fastht.losses.targets import Missing
from fastht.tasks.image_text.tags import RecordTags, TagSource
from fastht.taxonomy import Taxonomy
from fastht.taxonomy.similarity import Encode, dimension_numbers, similarity_matrix, weights_of

Preset = Literal["none", "fastht", "published"]
Graph = Literal["none", "tokens", "published"]


@dataclass(frozen=True)
class TagOptions:
    """What tags of records do in training.

    Attributes:
        semantic: semantic soft labels beside the contrastive loss, from how alike tags are: none,
            fastht, or published: the setting of Ultrasound-CLIP's code, under which dimensions that
            a record lacks count as unlike, and each process compares its own samples, images to
            texts alone. The options below change a preset.
        semantic_weight: of the semantic loss, beside 1 for the contrastive one; default: 1. That of
            the paper is not known.
        semantic_kl: weight of the divergence within it; default: 0.4.
        semantic_mse: weight of the squared error within it; default: 0.6.
        semantic_temperature: of the divergence; default: 0.07.
        semantic_missing: what a dimension counts that one of two records lacks: nothing (ignore)
            or 0 (zero); default: zero of published, what the taxonomy says of fastht.
        semantic_directions: of the divergence: image (to texts), text, or both; default: the
            preset's.
        semantic_scope: with several processes, the pairs of the whole batch (global) or of each
            process's own (local); default: the preset's.
        tag_graph: let the tags of a caption change its embedding: none, tokens (attention from the
            embedding to tags), or published (Ultrasound-CLIP's graph network and fusion).
        tag_dropout: share of the captions whose tags are hidden from the tag graph in training.
        tags: where tags are from: columns of the table, or captions. Held-out captions have those
            that are found in them, never those of columns.
        taxonomy: of the tags: name of a shipped one, or a YAML file, which may say how alike its
            values are, what dimensions weigh in soft labels, and what a missing one counts.
    """

    semantic: Preset = "none"
    semantic_weight: float | None = None
    semantic_kl: float | None = None
    semantic_mse: float | None = None
    semantic_temperature: float | None = None
    semantic_missing: Missing | None = None
    semantic_directions: Directions | None = None
    semantic_scope: Literal["global", "local"] | None = None
    tag_graph: Graph = "none"
    tag_dropout: float = 0.3
    tags: TagSource = "columns"
    taxonomy: str = "us365k"

    def __post_init__(self) -> None:
        given = [
            field.name
            for field in fields(self)
            if field.name.startswith("semantic_") and getattr(self, field.name) is not None
        ]
        if self.semantic == "none" and given:
            raise ValueError(
                f"--{given[0].replace('_', '-')} is for semantic soft labels; add --semantic "
                "fastht, or leave it out"
            )
        if self.semantic != "none":
            self.soft_labels()  # raises for what is out of range
        if not 0 <= self.tag_dropout < 1:
            raise ValueError(f"tag_dropout is {self.tag_dropout}; it has to be from 0 to below 1")

    @property
    def needed(self) -> bool:
        """Whether training needs tags at all."""
        return self.semantic != "none" or self.tag_graph != "none"

    def resolved(self, taxonomy: Taxonomy | None = None) -> TagOptions:
        """Return the options with those of the preset where nothing else was asked for.

        Args:
            taxonomy: of the tags; what its file says of missing dimensions is in place of the
                preset fastht's, but not of published: that is a setting of its own.
        """
        if self.semantic == "none":
            return self
        published = self.semantic == "published"
        missing = "ignore" if taxonomy is None else taxonomy.missing
        preset: dict[str, Any] = {
            "semantic_weight": 1.0,
            "semantic_kl": 0.4,
            "semantic_mse": 0.6,
            "semantic_temperature": 0.07,
            "semantic_missing": "zero" if published else missing,
            "semantic_directions": "image" if published else "both",
            "semantic_scope": "local" if published else "global",
        }
        open_ones = {k: v for k, v in preset.items() if getattr(self, k) is None}
        return replace(self, **open_ones) if open_ones else self

    def soft_labels(self) -> SoftLabels:
        """Return how soft labels enter the loss; the weight is in those of both terms.

        Raises:
            ValueError: a number is out of range.
        """
        held = self.resolved()
        weight, kl, mse = held.semantic_weight, held.semantic_kl, held.semantic_mse
        assert weight is not None
        assert kl is not None
        assert mse is not None
        if not weight > 0:
            raise ValueError(
                f"semantic_weight is {weight}; it has to be over zero (or --semantic none)"
            )
        return SoftLabels(
            temperature=held.semantic_temperature or 0.0,
            kl=weight * kl,
            mse=weight * mse,
            directions=held.semantic_directions or "both",
            scope=held.semantic_scope or "global",
        )


class TagTargets:
    """Soft targets of samples by their tags.

    Args:
        tags: of n samples.
        options: how they enter the loss.
        device: of the loss.
        counted: the tags in whose records the taxonomy counts which values go together, where it
            does; default: those of the samples.
        encode: as :func:`make_targets` takes it.

    Raises:
        TaxonomyError: as :func:`make_targets`.
    """

    def __init__(
        self,
        tags: RecordTags,
        options: TagOptions,
        device: torch.device,
        *,
        counted: RecordTags | None = None,
        encode: Encode | None = None,
    ) -> None:
        self.soft_labels = options.soft_labels()
        self.tags = tags.numbers.to(device)
        records = (counted or tags).values
        self._all = make_targets(tags.taxonomy, self.tags, options, records=records, encode=encode)

    def of(self, index: Tensor) -> SoftTargets:
        """Return the targets of a batch of samples."""
        tags = self.tags[index]
        return replace(self._all, rows=(tags,), columns=(tags,))

    def sharpness(self, batch_size: int, keys: Tensor | None = None) -> tuple[float, float]:
        """Return :func:`target_sharpness`, a mean over the samples in batches of this size."""
        mass = entropy = 0.0
        for rows in torch.arange(len(self.tags), device=self.tags.device).split(batch_size):
            own = None if keys is None else keys[rows.to(keys.device)].to(rows.device)
            found = target_sharpness(self.of(rows), self.soft_labels.temperature, own)
            mass += found[0] * len(rows)
            entropy += found[1] * len(rows)
        return mass / len(self.tags), entropy / len(self.tags)


def make_targets(
    taxonomy: Taxonomy,
    numbers: Tensor,
    options: TagOptions,
    *,
    records: Sequence[Mapping[str, Iterable[str]]] | None = None,
    encode: Encode | None = None,
) -> SoftTargets:
    """Return the soft targets of tags, as the taxonomy's file and the options say.

    The file says how alike tags are and what their dimensions weigh; both have a word on what a
    missing dimension counts, see :meth:`TagOptions.resolved`.

    Args:
        taxonomy: of the tags.
        numbers: of the tags, ``[n, L]``, filled up with -1.
        options: what a missing dimension counts.
        records: the values of each training record by dimension, where similarity is counted.
        encode: texts -> vectors ``[n, E]`` by the text tower, where similarity is that of texts.

    Raises:
        TaxonomyError: the file's similarity needs records or a text tower and there are none, or a
            file of its own, which cannot be used.
    """
    matrix = similarity_matrix(taxonomy, records=records, encode=encode)
    similarity = torch.from_numpy(matrix).float().to(numbers.device)
    dimensions = torch.from_numpy(dimension_numbers(taxonomy)).to(numbers.device)
    missing = options.resolved(taxonomy).semantic_missing or "ignore"
    weights = torch.from_numpy(weights_of(taxonomy, taxonomy.weights))
    return SoftTargets.from_tags(numbers, similarity, dimensions, missing=missing, weights=weights)
