"""How many tokens a text has for a text tower, and how many the tower reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip

from fastht.tasks.models.text_towers import FOLDER, HUB, TINY_BERT, build_text_tokenizer

_ROOM = 512  # tokens; a text of more counts as so many


def token_counter(model: str) -> tuple[Callable[[Sequence[str]], list[int]], int]:
    """Return what counts the tokens of texts, marks of start and end included, and the context.

    Args:
        model: a name of open_clip, or a text tower of a dual encoder, as ``fastht train --text``
            takes it. Its tokenizer is built; no weights are read. A folder with
            ``open_clip_config.json`` is open_clip's, another one is of transformers.

    Raises:
        ValueError: there is no such model, or its tokenizer cannot be had.
    """
    of_open_clip = Path(model.removeprefix(FOLDER), "open_clip_config.json").is_file()
    of_folder = model.startswith(FOLDER) and not of_open_clip
    if model == TINY_BERT or model.startswith(HUB) or of_folder:
        text = build_text_tokenizer(model)
        return text.lengths, text.context_length
    if ":" not in model and model not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {model!r}, whose tokens were to be counted")
    tokenizer = open_clip.get_tokenizer(model)
    context = int(getattr(tokenizer, "context_length", None) or 77)

    def count(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        tokens = tokenizer(list(texts), context_length=_ROOM)
        padding = tokenizer([""], context_length=_ROOM)[0, -1]
        behind = (tokens != padding).flip(1).int().argmax(dim=1)
        return [int(n) for n in (tokens.shape[1] - behind).tolist()]

    return count, context
