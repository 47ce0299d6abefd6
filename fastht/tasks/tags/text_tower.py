"""The names of tags in a text tower, for similarity ``text`` as a training takes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastht.taxonomy.similarity import Encode


def text_encoder(model: str, pretrained: str) -> Encode:
    """Return what embeds texts by the text tower of a model, normalised, on the CPU.

    Args:
        model: open_clip's name, hf-hub:ORG/REPO, local-dir:FOLDER, biomedclip, or fastht-tiny.
        pretrained: open_clip's tag, the file of the weights, or none for random ones.

    Raises:
        ValueError: the model is unknown or its weights cannot be had.
    """
    # Only a taxonomy that asks for it waits for these.
    import open_clip
    import torch

    from fastht.tasks.models.build import build_clip, model_source

    clip, _ = build_clip(model, pretrained)
    clip.eval()
    tokenizer = open_clip.get_tokenizer(model_source(model))

    def encode(texts: Sequence[str]) -> NDArray[np.floating]:
        with torch.no_grad():
            found = clip.encode_text(tokenizer(list(texts)), normalize=True)  # type: ignore[operator]
        vectors: NDArray[np.floating] = found.float().numpy()
        return vectors

    return encode
