"""A dual encoder: an image tower and a text tower of any two libraries, with a head on each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

_TEMPERATURE = 0.07  # at the start; the scale of the logits is its inverse


class Tower(nn.Module):
    """One side of a dual encoder.

    Args:
        tower: images or token numbers to pooled vectors ``[B, d]``, or to a tuple that begins with
            them.
        width: d.
        head_dim: width of the embedding; ``None``: the pooled vector is the embedding.

    Attributes:
        head: Linear(d, d), ReLU, Linear(d, head_dim), with biases (arXiv 2605.02126).
        width: d.
        output_dim: width of the embedding.
    """

    def __init__(self, tower: nn.Module, width: int, head_dim: int | None) -> None:
        super().__init__()
        self.tower = tower
        self.width = width
        self.output_dim = width if head_dim is None else head_dim
        self.head: nn.Module = nn.Identity()
        if head_dim is not None:
            self.head = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, head_dim)
            )

    @property
    def frozen(self) -> bool:
        """Whether nothing in the tower trains, so that what it pools never changes."""
        return not any(parameter.requires_grad for parameter in self.tower.parameters())

    def pool(self, inputs: Tensor) -> Tensor:
        """Return the pooled vectors ``[B, d]``, which are the head's input."""
        output = self.tower(inputs)
        pooled: Tensor = output[0] if isinstance(output, tuple) else output
        return pooled

    def embed(self, pooled: Tensor, normalize: bool) -> Tensor:
        """Return the embeddings of pooled vectors."""
        features: Tensor = self.head(pooled)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings, not normalised, as open_clip's towers do."""
        return self.embed(self.pool(inputs), normalize=False)

    def train(self, mode: bool = True) -> Tower:
        """Set the mode; a frozen tower stays as it is when it is judged, without dropout."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self


class DualEncoder(nn.Module):
    """Two towers with heads, called as open_clip's models are.

    Args:
        visual: images to embeddings.
        text: token numbers to embeddings of the same width.
        tokenizer: texts to token numbers.

    Raises:
        ValueError: the embeddings differ in width.
    """

    def __init__(self, visual: Tower, text: Tower, tokenizer: Callable[..., Tensor]) -> None:
        super().__init__()
        if visual.output_dim != text.output_dim:
            raise ValueError(
                f"without heads the image tower's vectors are {visual.output_dim} wide and the "
                f"text tower's {text.output_dim}, and cannot be compared: add --head mlp-256"
            )
        self.visual = visual
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / _TEMPERATURE)))
        self.logit_bias = None
        self.tokenizer = tokenizer
        self.context_length = int(getattr(tokenizer, "context_length", 0))
        self.output_dict = False

    @property
    def has_heads(self) -> bool:
        """Whether there are heads, which start from random weights."""
        return not isinstance(self.visual.head, nn.Identity)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Return the embeddings ``[B, E]`` of images."""
        return self.visual.embed(self.visual.pool(image), normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Return the embeddings ``[B, E]`` of token numbers ``[B, L]``."""
        return self.text.embed(self.text.pool(text), normalize)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Return normalised embeddings and the scale of the logits, as open_clip's models do."""
        images = None if image is None else self.encode_image(image, normalize=True)
        texts = None if text is None else self.encode_text(text, normalize=True)
        scale = self.logit_scale.exp()
        if self.output_dict:
            return {"image_features": images, "text_features": texts, "logit_scale": scale}
        return images, texts, scale


class OwnTextTower(nn.Module):
    """The text tower of an open_clip model whose parts stand in the model itself, as CLIP's do.

    It takes the parts over, without the projection, and gives the pooled vectors.
    """

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.transformer = model.transformer
        self.ln_final = model.ln_final
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)
        self.pool_type = model.text_pool_type
        self.eos_id = getattr(model, "text_eos_id", None)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[B, d]`` of token numbers ``[B, L]``."""
        kind = self.transformer.get_cast_dtype()
        x = self.token_embedding(tokens).to(kind) + self.positional_embedding.to(kind)
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))
        return text_global_pool(x, tokens, self.pool_type, eos_token_id=self.eos_id)


def own_text_tower(model: Any) -> nn.Module:
    """Return the text tower of an open_clip model without its projection.

    Raises:
        ValueError: the projection is part of the tower.
    """
    if isinstance(model, CLIP):
        return OwnTextTower(model)
    tower: Any = getattr(model, "text", None)
    if hasattr(tower, "text_projection"):
        tower.text_projection = None
    elif hasattr(tower, "proj"):
        tower.proj = nn.Identity()
    else:
        raise ValueError(
            f"the text tower of a {type(model).__name__} cannot be taken without its projection: "
            "give another by --text, or --head none"
        )
    module: nn.Module = tower
    return module


def without_projection(visual: Any) -> nn.Module:
    """Take the projection off a vision tower of open_clip, so that it gives pooled vectors.

    Towers that pool by attention project in the same step; what they give stays as it is.

    Args:
        visual: of an open_clip model; it is changed.
    """
    if isinstance(visual, TimmModel):
        for name in ("proj", "mlp"):
            if name in visual.head._modules:
                del visual.head._modules[name]
        if getattr(visual.trunk, "num_classes", 0):
            visual.trunk.reset_classifier(0)
    elif isinstance(getattr(visual, "proj", None), nn.Parameter | nn.Module):
        visual.proj = None
    module: nn.Module = visual
    return module


@torch.no_grad()
def pooled_width(tower: nn.Module, inputs: Tensor) -> int:
    """Return how long the pooled vectors of a tower are, by trying it on some inputs."""
    training = tower.training
    tower.eval()
    output = tower(inputs)
    tower.train(training)
    pooled = output[0] if isinstance(output, tuple) else output
    if pooled.ndim != 2:
        raise ValueError(
            f"a {type(tower).__name__} gives {tuple(pooled.shape)} and not a vector each: "
            "take a model whose tower pools"
        )
    return int(pooled.shape[1])
