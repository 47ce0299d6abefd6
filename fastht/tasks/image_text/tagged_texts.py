"""Texts embedded with the tags that are found in them, beside the plain text tower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from fastht.seeded import seeded
from fastht.tasks.image_text.semantic import TagOptions
from fastht.tasks.image_text.tags import found_tags
from fastht.tasks.image_text.text_embeddings import TextEmbedder
from fastht.tasks.images.supervised import load_trained, save_trained
from fastht.tasks.models.released import released_state
from fastht.taxonomy import load_taxonomy
from fastht.taxonomy.graph import TagGraph

GRAPH_NAME = "tag_graph.safetensors"
_BLOCK = 1024  # texts at a time


def build_graph(
    options: TagOptions, embedder: TextEmbedder, pretrained: str = ""
) -> TagGraph | None:
    """Return the tag graph that is asked for, on the model's device, or ``None``.

    Args:
        options: that ask.
        embedder: whose embeddings it changes.
        pretrained: the model's weights; of a checkpoint of Ultrasound-CLIP the published graph
            takes up the graph network.

    Raises:
        ValueError: such a checkpoint does not fit.
    """
    if options.tag_graph == "none":
        return None
    taxonomy = load_taxonomy(options.taxonomy)
    width = embedder(["ultrasound"]).shape[1]
    with seeded(0):  # so that processes have the same one
        graph = TagGraph(taxonomy, width, mode=options.tag_graph, tag_dropout=options.tag_dropout)
    if graph.mode == "published" and Path(pretrained).is_file():
        state = released_state(Path(pretrained))
        if state is not None:
            left = graph.load_published(state)
            print(f"graph network of {pretrained} loaded; left over: {', '.join(left) or 'none'}")
    return graph.to(next(embedder.model.parameters()).device)


class TaggedTexts:
    """Embed texts by a text tower and, where there is a tag graph, by the tags found in them.

    No tag comes from elsewhere: those that a table gives would tell a text what its image shows.

    Args:
        plain: embeds texts by the text tower alone.
        graph: changes embeddings by tags; ``None``: nothing does.
    """

    def __init__(self, plain: TextEmbedder, graph: TagGraph | None) -> None:
        self.plain = plain
        self.graph = graph
        self.enabled = True

    @property
    def in_use(self) -> bool:
        """Whether tags change embeddings now."""
        return self.graph is not None and self.enabled

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Embed by the plain text tower inside the context."""
        held, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = held

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return normalised embeddings ``[n, E]``, float32, on the CPU."""
        return self.tagged(texts, self.plain(texts))

    @torch.no_grad()
    def tagged(self, texts: Sequence[str], embeddings: Tensor) -> Tensor:
        """Return the plain embeddings of texts, changed by the tags found in these."""
        if self.graph is None or not self.enabled:
            return embeddings
        numbers = found_tags(texts, self.graph.taxonomy).numbers
        training, device = self.graph.training, next(self.graph.parameters()).device
        self.graph.eval()
        parts = [
            apply_graph(self.graph, text.to(device), tags.to(device)).cpu()
            for text, tags in zip(embeddings.split(_BLOCK), numbers.split(_BLOCK), strict=True)
        ]
        self.graph.train(training)
        return torch.cat(parts)


def apply_graph(graph: TagGraph, texts: Tensor, tags: Tensor) -> Tensor:
    """Return embeddings of length 1, as the losses and the retrieval take them.

    The published fusion ends in a LayerNorm, which makes them sqrt(E) long.
    """
    found: Tensor = graph(texts, tags)
    return found if graph.mode == "tokens" else nn.functional.normalize(found, dim=-1)


def save_graph(graph: TagGraph | None, run: Path) -> None:
    """Write a tag graph into a run's folder, if there is one."""
    if graph is not None:
        save_trained(graph, run / GRAPH_NAME)


def load_graph(graph: TagGraph | None, run: Path) -> None:
    """Load what :func:`save_graph` wrote into one that is built alike.

    Raises:
        ResumeError: the file cannot be read or does not fit.
    """
    if graph is not None:
        load_trained(graph, run / GRAPH_NAME)
