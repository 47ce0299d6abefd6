"""Tags of a caption in its embedding: attention to tag tokens, or the published graph network.

Plain PyTorch, without a library of graphs. Usable alone: ``TagGraph(load_taxonomy(), 512)``. This
module needs torch; the rest of the package does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastht.taxonomy.published_graph import GraphEncoder, GraphFusion, fit_tables
from fastht.taxonomy.schema import Taxonomy
from fastht.taxonomy.similarity import dimension_numbers

Mode = Literal["tokens", "published"]
_HEADS = 8


class TagGraph(nn.Module):
    """Change text embeddings by the tags of their texts.

    ``"tokens"``: the embedding attends to one token a tag and adds what it finds, behind a gate
    that starts at zero: ``normalise(t + gate W_o attention(W_q t; tokens))``. A token is the sum of
    what is learned of its tag and of its dimension. The order of tags and tags that are named twice
    change nothing. A text without tags keeps its embedding bit for bit, whatever else is in the
    batch.

    ``"published"``: the graph network and the fusion of Ultrasound-CLIP's code (arXiv 2604.01749),
    of whose messages nothing is left but six matrix products: see
    :class:`fastht.taxonomy.published_graph.GraphEncoder`. Its output is not of length 1. As there,
    a text without tags is changed too, unless no text of the batch has both a diagnosis and a
    descriptor: then none is changed.

    Args:
        taxonomy: of the tags.
        dim: E, of the text embeddings; a multiple of 8.
        mode: as above.
        hidden: width of the tokens, or of the graph's nodes; published: 128.
        tag_dropout: share of the texts whose tags are hidden in training, so that texts without
            tags are learned too.

    Raises:
        ValueError: dim or hidden is no multiple of 8, or there is no such mode.
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        dim: int,
        *,
        mode: Mode = "tokens",
        hidden: int = 128,
        tag_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if mode not in ("tokens", "published"):
            raise ValueError(f"mode is {mode!r}; choose tokens or published")
        if (width := hidden if mode == "tokens" else dim) % _HEADS:
            raise ValueError(f"{width} is no multiple of the {_HEADS} heads; choose another width")
        if not 0 <= tag_dropout < 1:
            raise ValueError(f"tag_dropout is {tag_dropout}; it has to be from 0 to below 1")
        self.mode = mode
        self.taxonomy = taxonomy
        self.tag_dropout = tag_dropout
        self.size = len(taxonomy.tags)
        if mode == "tokens":
            self.tokens = TagTokens(taxonomy, dim, hidden)
        else:
            # The names are those of the published checkpoint.
            self.graph_encoder = GraphEncoder(taxonomy, dim, hidden)
            self.text_graph_fusion = GraphFusion(dim)

    def forward(self, texts: Tensor, tags: Tensor) -> Tensor:
        """Return embeddings ``[B, E]``, float32; in mode "tokens" of length 1.

        Args:
            texts: ``[B, E]``, of length 1.
            tags: ``[B, L]`` numbers of tags, filled up with -1, in any order.

        Raises:
            ValueError: shapes do not fit, or (on a CPU) a number is out of range.
        """
        if tags.ndim != 2 or texts.ndim != 2 or len(tags) != len(texts):
            raise ValueError(
                f"texts are {tuple(texts.shape)} and tags {tuple(tags.shape)}; they have to be "
                "[B, E] and [B, L]"
            )
        if tags.device.type == "cpu" and bool(((tags < -1) | (tags >= self.size)).any()):
            raise ValueError(f"a tag's number is not from 0 to {self.size - 1}, or -1 for none")
        if self.training and self.tag_dropout:
            # Drawn on the CPU, whose generator is part of a run's state.
            hidden = torch.rand(len(tags)).lt(self.tag_dropout).to(tags.device)
            tags = tags.masked_fill(hidden[:, None], -1)
        with torch.autocast(texts.device.type, enabled=False):
            texts = texts.float()
            if self.mode == "tokens":
                return self.tokens(texts, _distinct(tags))
            has = torch.zeros(len(tags), self.size + 1, dtype=torch.float32, device=tags.device)
            has = has.scatter(1, torch.where(tags < 0, self.size, tags), 1.0)[:, : self.size]
            graph, edges = self.graph_encoder(has)
            fused = self.text_graph_fusion(texts, graph)
            return torch.where(edges.any(), fused, texts)

    def load_published(self, state: Mapping[str, Any]) -> list[str]:
        """Load the graph and the fusion of a released checkpoint, mode "published"; all or nothing.

        Tables with fewer tags than this taxonomy fill the first rows, for ids never change; a new
        tag starts from its broader one, or else from what the checkpoint has for unknown tags.

        Args:
            state: its state dict; what does not begin with ``graph_encoder.`` or
                ``text_graph_fusion.`` is not looked at.

        Returns:
            The names of what was left over: what the published network never reads.

        Raises:
            ValueError: the mode is another, or a weight is missing or of another shape.
        """
        if self.mode != "published":
            raise ValueError("only mode='published' has the checkpoint's weights; make it so")
        own = self.state_dict()
        given = {n: t for n, t in state.items() if n.startswith(_PUBLISHED)}
        given = fit_tables(given, own, self.taxonomy)
        problems = [f"{name} is missing" for name in own if name not in given]
        problems += [
            f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
            for name in own
            if name in given and given[name].shape != own[name].shape
        ]
        if problems:
            raise ValueError(f"the checkpoint does not fit: {'; '.join(problems)}")
        self.load_state_dict({name: given[name] for name in own})
        return sorted(given.keys() - own.keys())


_PUBLISHED = ("graph_encoder.", "text_graph_fusion.")


class TagTokens(nn.Module):
    """Attention from text embeddings to the tokens of their tags.

    Args:
        taxonomy: of the tags.
        dim: E, of the embeddings.
        hidden: of tokens and attention.
    """

    def __init__(self, taxonomy: Taxonomy, dim: int, hidden: int) -> None:
        super().__init__()
        numbers = torch.from_numpy(dimension_numbers(taxonomy))
        self.register_buffer("dimension", numbers, persistent=False)
        self.tag = nn.Embedding(len(taxonomy.tags), hidden)
        self.of_dimension = nn.Embedding(len(taxonomy.dimensions), hidden)
        self.norm = nn.LayerNorm(hidden)
        self.query = nn.Linear(dim, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.output = nn.Linear(hidden, dim)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, texts: Tensor, tags: Tensor) -> Tensor:
        """Return embeddings ``[B, E]`` of length 1; see :class:`TagGraph`."""
        real = tags >= 0
        some = real.any(dim=1, keepdim=True)
        if tags.shape[1] == 0:
            return texts
        numbers = tags.clamp(min=0)
        tokens = self.norm(self.tag(numbers) + self.of_dimension(self.dimension[numbers]))  # type: ignore[index]
        key, value = self.key_value(tokens).unflatten(2, (2, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        query = self.query(texts).unflatten(1, (_HEADS, 1, -1))
        # A text without tags attends to the padding, so that nothing is divided by zero.
        mask = (real | ~some)[:, None, None, :]
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        changed = texts + self.gate * self.output(found.flatten(1))
        return torch.where(some, nn.functional.normalize(changed, dim=-1), texts)


def _distinct(tags: Tensor) -> Tensor:
    """Sort the tags of each text and put -1 where one stands a second time."""
    if tags.shape[1] == 0:
        return tags
    ordered = tags.sort(dim=1, descending=True).values
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return ordered.masked_fill(again, -1)
