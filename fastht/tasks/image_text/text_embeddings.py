"""Embeddings of texts; those of a frozen text tower are computed once and kept on disk."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastht.files import write_atomically
from fastht.tasks.models.dual import DualEncoder

BATCH_SIZE = 64


class TextEmbedder:
    """Embed texts with the text tower of a model.

    If it is frozen, each text is embedded only once. A text's key is made of the text tower's
    weights and the token numbers, which hold the tokenizer and the text; so another model,
    tokenizer or cleaning never meets a stale embedding. Of a dual encoder it is the tower's pooled
    vectors that are kept, as the head behind them trains.

    Args:
        model: an open_clip model or a dual encoder; it is run in evaluation mode and float32 as it
            is.
        tokenizer: texts -> ``[n, L]`` token numbers.
        cache_dir: folder of the cache; ``None`` keeps nothing, for a text tower that changes.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], cache_dir: Path | None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._dual = model if isinstance(model, DualEncoder) else None
        self._known: dict[bytes, Tensor] | None = None
        self.path = None
        if cache_dir is not None:
            self.path = cache_dir / f"text-{_text_tower_digest(model)[:16]}.safetensors"

    @property
    def pools(self) -> bool:
        """Whether :meth:`pooled` is what is kept, and a head makes embeddings of it."""
        return self._dual is not None

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return normalised embeddings ``[n, E]``, float32, on the CPU.

        Raises:
            ValueError: the tower gives a text an embedding that is not finite.
        """
        found = self.pooled(texts)
        if self._dual is None:
            return found
        device = self._dual.logit_scale.device
        parts = [
            self._dual.text.embed(part.to(device), normalize=True).float().cpu()
            for part in found.split(BATCH_SIZE)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def pooled(self, texts: Sequence[str]) -> Tensor:
        """Return what is kept of texts, ``[n, d]``, float32, on the CPU.

        That is the vectors before a dual encoder's head, and the embeddings of other models.

        Raises:
            ValueError: the tower gives a text a vector that is not finite.
        """
        if not texts:
            raise ValueError("there are no texts to embed")
        unique = list(dict.fromkeys(texts))
        tokens = self.tokenizer(unique)
        keys = [hashlib.sha256(row.contiguous().numpy().tobytes()).digest() for row in tokens]
        known = self._read()
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            for i, embedding in zip(new, self._encode(tokens[new]), strict=True):
                if not bool(torch.isfinite(embedding).all()):
                    raise ValueError(f"the text tower's embedding of {unique[i]!r} is not finite")
                known[keys[i]] = embedding
            self._write(known)
        if self._dual is not None and self.path is not None:
            self._known = known  # asked for after each epoch, as the head changes
        rows = {text: known[key] for text, key in zip(unique, keys, strict=True)}
        return torch.stack([rows[text] for text in texts])

    def _encode(self, tokens: Tensor) -> Tensor:
        training = self.model.training
        self.model.eval()
        device = next(self.model.parameters()).device
        parts = [self._pool(part.to(device)).float().cpu() for part in tokens.split(BATCH_SIZE)]
        self.model.train(training)
        return torch.cat(parts)

    def _pool(self, tokens: Tensor) -> Tensor:
        if self._dual is not None:
            return self._dual.text.pool(tokens)
        embedded: Tensor = self.model.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return embedded

    def _read(self) -> dict[bytes, Tensor]:
        if self._known is not None:
            return self._known
        if self.path is None or not self.path.exists():
            return {}
        try:
            content = safetensors.torch.load(self.path.read_bytes())
            rows = zip(content["keys"], content["embeddings"].unbind(0), strict=True)
            return {bytes(key.tolist()): row for key, row in rows}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            warnings.warn(f"{self.path} is damaged and made anew: {error}", stacklevel=3)
            return {}

    def _write(self, known: dict[bytes, Tensor]) -> None:
        if self.path is None:
            return
        keys = torch.tensor([list(key) for key in known], dtype=torch.uint8)
        data = safetensors.torch.save(
            {"keys": keys, "embeddings": torch.stack(list(known.values()))}
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, data)
        except OSError as error:  # the embeddings are right all the same, only not kept
            warnings.warn(f"text embeddings are not kept: {error}", stacklevel=3)


def _text_tower_digest(model: nn.Module) -> str:
    """Hash every weight outside the vision tower; of a dual encoder the text tower's alone."""
    digest = hashlib.sha256()
    whole: nn.Module = model
    if isinstance(model, DualEncoder):
        whole = model.text.tower
        digest.update(f"pooled by {getattr(whole, 'pooling', 'own')}".encode())
    for name, tensor in whole.state_dict().items():
        if name.startswith("visual."):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
