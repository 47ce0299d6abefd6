"""How many tokens a text has for a text tower, and how many the tower reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip

from fastht.tasks.models.build import model_source
from fastht.tasks.models.text_towers import FOLDER, HUB, TINY_BERT, build_text_tokenizer

_ROOM = 512  # tokens; a text of more counts as so many


def token_counter(model: str) -> tuple[Callable[[Sequence[str]], list[int]], int]:
    """Return what counts the tokens of texts, marks of start and end included, and the context.

    Args:
        model: as :func:`~.build.build_clip` takes it, or a text tower of a dual encoder, as
            ``fastht train --text`` does. Its tokenizer is built; no weights are read. A folder with
            ``open_clip_config.json`` is open_clip's, another one is of transformers.

    Raises:
        ValueError: there is no such model, or its tokenizer cannot be had.
    """
    of_open_clip = Path(model.removeprefix(FOLDER), "open_clip_config.json").is_file()
    of_folder = model.startswith(FOLDER) and not of_open_clip
    if model == TINY_BERT or model.startswith(HUB) or of_folder:
        text = build_text_tokenizer(model)
        return text.lengths, text.context_length
    source = model_source(model)
    if ":" not in source and source not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {model!r}, whose tokens were to be counted")
    tokenizer = open_clip.get_tokenizer(source)
    context = int(getattr(tokenizer, "context_length", None) or 77)

    def count(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        tokens = tokenizer(list(texts), context_length=_ROOM)
        nothing = tokenizer([""], context_length=_ROOM)[0]
        padding = nothing[-1]
        last = (tokens != padding).int().flip(1)
        lengths = (tokens.shape[1] - last.argmax(dim=1)) * last.any(dim=1)
        # SigLIP's mark of the end is its padding too: of an empty text nothing else is left.
        end = int(bool((nothing == padding).all()))
        return [min(int(n) + end, _ROOM) for n in lengths.tolist()]

    return count, context
