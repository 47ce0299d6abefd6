"""The graph network and fusion of Ultrasound-CLIP (arXiv 2604.01749) as six matrix products.

A record is a complete bipartite graph: each diagnosis with each descriptor (a tag of any other
dimension), both ways, and two layers of graph convolution over it. Since nodes of one type have the
same neighbours, they are alike after the first layer, and messages are sums:

    u = D E_d / sqrt(n_d n_a)    a1 = relu(u W1 + b1)    a2 = relu(sqrt(n_d / n_a) d1 W2 + b2)
    v = A E_a / sqrt(n_d n_a)    d1 = relu(v V1 + c1)    d2 = relu(sqrt(n_a / n_d) a1 V2 + c2)
    g = normalise(P (a2 + d2))

with D and A the multi-hot tags of both types, n_d and n_a their numbers and E_d, E_a the normalised
tables. Without a node of either type there is no edge, and all that is left are the biases.

Names of parameters are those of the released checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastht.taxonomy.schema import Taxonomy

_DIAGNOSIS = "Diagnosis"
_LAYERS = 2
_TABLES = ("graph_encoder.diag_emb.weight", "graph_encoder.desc_emb.weight")


class GraphEncoder(nn.Module):
    """Encode the tags of records into vectors of length 1.

    Args:
        taxonomy: of the tags, with a dimension Diagnosis.
        dim: E, of the vectors.
        hidden: of the nodes; published: 128.
        dropout: after each layer. A sum over nodes that are dropped one by one is drawn as a
            binomial number, which has the same distribution.

    Raises:
        ValueError: the taxonomy has no dimension Diagnosis.
    """

    def __init__(
        self, taxonomy: Taxonomy, dim: int, hidden: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        diagnoses, descriptors = node_ids(taxonomy)
        self.register_buffer("diagnoses", torch.tensor(diagnoses), persistent=False)
        self.register_buffer("descriptors", torch.tensor(descriptors), persistent=False)
        self.dropout = dropout
        # The last row of each is that of unknown tags, which no record has here.
        self.diag_emb = nn.Embedding(len(diagnoses) + 1, hidden)
        self.desc_emb = nn.Embedding(len(descriptors) + 1, hidden)
        self.node_norm = nn.LayerNorm(hidden)
        self.convs = nn.ModuleList(_Relations(hidden) for _ in range(_LAYERS))
        self.proj = nn.Linear(hidden, dim)

    def forward(self, has: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[B, E]`` and ``[B]``, whether a record's graph has an edge.

        Args:
            has: multi-hot tags by number, ``[B, V]``.
        """
        d, a = has[:, self.diagnoses], has[:, self.descriptors]  # type: ignore[index]
        n_d, n_a = d.sum(dim=1, keepdim=True), a.sum(dim=1, keepdim=True)
        edges = (n_d > 0) & (n_a > 0)
        # A side without tags has one unknown node; without edges nothing is sent to or from it.
        n_d, n_a = n_d.clamp(min=1), n_a.clamp(min=1)
        sent = edges / (n_d * n_a).sqrt()
        u = sent * (d @ self.node_norm(self.diag_emb.weight)[:-1])
        v = sent * (a @ self.node_norm(self.desc_emb.weight)[:-1])
        first, second = self.convs
        a1 = self._dropped(torch.relu(first("described_by", u)), n_a)
        d1 = self._dropped(torch.relu(first("rev_described_by", v)), n_d)
        a2 = second("described_by", edges * (n_d / n_a).sqrt() * d1)
        d2 = second("rev_described_by", edges * (n_a / n_d).sqrt() * a1)
        pooled = self._dropped(torch.relu(a2), n_a) + self._dropped(torch.relu(d2), n_d)
        graph = self.proj(pooled)
        return graph / graph.norm(dim=-1, keepdim=True).clamp(min=1e-6), edges[:, 0]

    def _dropped(self, x: Tensor, nodes: Tensor) -> Tensor:
        """Drop elements of that many equal nodes one by one, and return their mean."""
        if not self.training or not self.dropout:
            return x
        kept = 1 - self.dropout
        number = nodes.expand_as(x).contiguous()
        return x * torch.binomial(number, torch.full_like(x, kept)) / (kept * number)


class _Relations(nn.Module):
    """The convolutions of a layer, by the kind of edge."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        names = ("described_by", "rev_described_by")
        self.mods = nn.ModuleDict({name: _GraphConvolution(hidden) for name in names})

    def forward(self, edge: str, messages: Tensor) -> Tensor:
        """Return what messages ``[B, hidden]`` along one kind of edge become."""
        made: Tensor = self.mods[edge](messages)
        return made


class _GraphConvolution(nn.Module):
    """What is done to summed messages: ``x W + b``, with W ``[in, out]``."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, messages: Tensor) -> Tensor:
        """Return ``[B, hidden]`` of messages ``[B, hidden]``."""
        return messages @ self.weight + self.bias


class GraphFusion(nn.Module):
    """Add a graph's vector to a text's: ``LayerNorm(t + clamp(alpha, 0, 0.2) tanh(...))``.

    The published attention has one key, whose share is 1 whatever the text: what is left of it is a
    linear map of the graph's vector. What it does not need is kept, untrained, for the checkpoint.

    Args:
        dim: E.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.text_proj = nn.Linear(dim, dim).requires_grad_(False)
        self.graph_proj = nn.Linear(dim, dim)
        self.attention = nn.MultiheadAttention(dim, num_heads=8, batch_first=True)
        self.output_proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.alpha = nn.Parameter(torch.tensor(0.05))

    def forward(self, texts: Tensor, graph: Tensor) -> Tensor:
        """Return ``[B, E]`` of texts and graphs ``[B, E]``."""
        _, _, weight = self.attention.in_proj_weight.chunk(3)
        _, _, bias = self.attention.in_proj_bias.chunk(3)
        value = nn.functional.linear(self.graph_proj(graph), weight, bias)
        residual = torch.tanh(self.output_proj(self.attention.out_proj(value)))
        fused: Tensor = self.norm(texts + self.alpha.clamp(0.0, 0.2) * residual)
        return fused


def node_ids(taxonomy: Taxonomy) -> tuple[list[int], list[int]]:
    """Return the numbers of the tags that are diagnoses, and of those that are descriptors.

    Raises:
        ValueError: the taxonomy has no dimension Diagnosis.
    """
    if _DIAGNOSIS not in taxonomy.dimensions:
        raise ValueError(
            f"{taxonomy.label} has no dimension {_DIAGNOSIS}, which the published graph needs; "
            "take --tag-graph tokens"
        )
    of = [dimension == _DIAGNOSIS for dimension, _ in taxonomy.tags]
    return [i for i, is_one in enumerate(of) if is_one], [
        i for i, is_one in enumerate(of) if not is_one
    ]


def fit_tables(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], taxonomy: Taxonomy
) -> dict[str, Tensor]:
    """Return a checkpoint's weights with tables as long as this taxonomy's.

    Rows of tags that the checkpoint has not are those of their broader tags, or that of unknown
    ones; see :meth:`fastht.taxonomy.graph.TagGraph.load_published`.
    """
    result = dict(given)
    for name, ids in zip(_TABLES, node_ids(taxonomy), strict=True):
        table = given.get(name)
        if table is None or len(table) >= len(own[name]) or table.ndim != 2:
            continue
        known, unknown = table[:-1], table[-1]
        rows = list(known)
        place = {number: row for row, number in enumerate(ids)}
        for number in ids[len(known) :]:
            dimension, value = taxonomy.tags[number]
            values = taxonomy.dimensions[dimension]
            above = [place[values.values[v].id] for v in values.broader(value)]
            rows.append(next((known[row] for row in above if row < len(known)), unknown))
        result[name] = torch.stack([*rows, unknown])
    return result
