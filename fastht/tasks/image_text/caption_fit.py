"""Captions that are longer than a text tower reads: counted, and cut where it does least harm."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fastht.data.notes import Note, examples, plural

CaptionPart = Literal["start", "end", "sentences"]

_SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])\s*")  # noqa: RUF001
_WORD_REACH = 30  # characters after which an end that begins within a word is accepted
_SHOWN = 60  # characters of a caption in a message


class CaptionFit:
    """A tokenizer that takes the chosen part of texts that its tower cannot read whole.

    - "start": what the tower reads by itself, the first tokens.
    - "end": the last words that fit.
    - "sentences": whole sentences, those that the fewest captions have first, in their order, as
      many as fit. What reports have in common, as a history, goes before what tells them apart.

    Texts that fit are left as they are.

    Args:
        tokenizer: texts -> ``[n, L]`` token numbers, as open_clip's; one that cannot say how many
            it takes (``context_length``) is left as it is.
        part: which part.
        captions: those among which sentences are counted.
    """

    def __init__(
        self,
        tokenizer: Callable[..., Tensor],
        part: CaptionPart = "start",
        captions: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.part = part
        self.context: int | None = getattr(tokenizer, "context_length", None)
        self._having: Counter[str] = Counter()
        if part == "sentences":
            for caption in dict.fromkeys(captions):
                self._having.update(set(_SENTENCE.split(caption)))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the token numbers ``[n, L]`` of the texts."""
        return self.tokenizer(self.fit(list(texts)))

    def fit(self, texts: list[str]) -> list[str]:
        """Return the texts, the chosen part of those that are too long."""
        too_long = self.too_long(texts) if self.part != "start" else []
        fitted = list(texts)
        choose = self._end if self.part == "end" else self._sentences
        for index, text in zip(too_long, choose([texts[i] for i in too_long]), strict=True):
            fitted[index] = text
        return fitted

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Return which texts have more tokens than the tower reads."""
        if self.context is None or not texts:
            return []
        tokens = self.tokenizer(list(texts))
        padding = self.tokenizer([""])[0, -1]
        # The last but one, too: some towers have the padding's number for the end.
        full = (tokens[:, -2:] != padding).any(dim=1).nonzero().flatten().tolist()
        if not full:
            return []
        # With room for one more token, what was cut off is no longer where the end was.
        more = self.tokenizer([texts[i] for i in full], context_length=self.context + 1)
        same = (more[:, : self.context] == tokens[full]).all(dim=1).tolist()
        return [i for i, fits in zip(full, same, strict=True) if not fits]

    def _end(self, texts: list[str]) -> list[str]:
        """The longest ends that fit, from the start of a word where one is near."""
        low, high = [0] * len(texts), [len(text) - 1 for text in texts]  # high fits
        while any(a + 1 < b for a, b in zip(low, high, strict=True)):
            middle = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
            tried = [text[at:] for text, at in zip(texts, middle, strict=True)]
            cut = set(self.too_long(tried))
            for i, at in enumerate(middle):
                if i in cut:
                    low[i] = at
                else:
                    high[i] = at
        return [_from_word(text, at) for text, at in zip(texts, high, strict=True)]

    def _sentences(self, texts: list[str]) -> list[str]:
        """The sentences that tell a text from others."""
        split = [_SENTENCE.split(text) for text in texts]
        # Of equally rare ones the last: findings follow the history.
        order = [
            sorted(range(len(parts)), key=lambda i, p=parts: (self._having[p[i]], -i))  # type: ignore[misc]
            for parts in split
        ]
        kept: list[list[int]] = [[places[0]] for places in order]
        for turn in range(1, max(map(len, order), default=0)):
            tried = {
                i: sorted([*kept[i], places[turn]])
                for i, places in enumerate(order)
                if turn < len(places)
            }
            texts_tried = [" ".join(split[i][k] for k in places) for i, places in tried.items()]
            cut = set(self.too_long(texts_tried))
            for position, (i, places) in enumerate(tried.items()):
                if position not in cut:
                    kept[i] = places
        return [
            " ".join(parts[k] for k in places) for parts, places in zip(split, kept, strict=True)
        ]


@dataclass(frozen=True)
class CutCaptions:
    """What a text tower does not see of captions.

    Attributes:
        context: tokens that it reads; ``None``: not known, and nothing below either.
        captions: how many different captions there are.
        cut: those that are longer.
        equal: those that become the same as another one.
    """

    context: int | None
    captions: int
    cut: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()

    @property
    def most_are_equal(self) -> bool:
        """Whether most captions cannot be told apart, so that nothing can be learnt from them."""
        return 2 * len(self.equal) > self.captions

    def describe(self, part: CaptionPart) -> str:
        """Say how many captions are cut, and what helps."""
        text = (
            f"{plural(len(self.cut), 'caption')} of {self.captions:,} longer than the "
            f"{self.context} tokens that the text tower reads"
        )
        if part == "start":
            text += ", and cut off at the end"
        else:
            text += f", and read by their {part}"
        if self.equal:
            some = examples((f"{caption[:_SHOWN]!r}" for caption in self.equal), 1)
            text += f"; {plural(len(self.equal), 'caption')} become equal to others: {some}"
        others = [other for other in ("end", "sentences") if other != part]
        return f"{text}; --caption-part {' or '.join(others)} reads another part"

    def notes(self, part: CaptionPart) -> tuple[Note, ...]:
        """What is to be noted of it: nothing if every caption is read whole."""
        if not self.cut:
            return ()
        cut = Note("captions_cut", len(self.cut), self.describe(part))
        return (cut, Note("captions_equal_when_cut", len(self.equal), "")) if self.equal else (cut,)


def find_cut(fit: CaptionFit, captions: Sequence[str]) -> CutCaptions:
    """Return which captions a text tower does not read whole, and which it cannot tell apart."""
    different = list(dict.fromkeys(captions))
    cut = [different[i] for i in fit.too_long(different)]
    if not cut:
        return CutCaptions(fit.context, len(different))
    rows: dict[Any, list[str]] = defaultdict(list)
    for caption, row in zip(different, fit(different).tolist(), strict=True):
        rows[tuple(row)].append(caption)
    equal = [caption for alike in rows.values() if len(alike) > 1 for caption in alike]
    return CutCaptions(fit.context, len(different), tuple(cut), tuple(equal))


def _from_word(text: str, at: int) -> str:
    """The end of a text from the first word that starts at a position, if one is near."""
    if at == 0 or text[at - 1].isspace():
        return text[at:].strip()
    space = re.search(r"\s", text[at : at + _WORD_REACH])
    return text[at + space.end() :].strip() if space else text[at:].strip()
