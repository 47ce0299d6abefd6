"""Text towers of transformers with their tokenizers, from token numbers to one vector a text."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastht.seeded import seeded

HUB, FOLDER = "hf:", "local-dir:"
# A BERT of some 150,000 parameters; its vocabulary comes with fastht, its weights are random.
TINY_BERT = "tiny-bert"
_TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_CONTEXT = 128  # tokens at most, as EchoCare-CLIP reads of BERT's 512
_CLIP = ("clip", "clip_text_model")  # of both towers, and of the text tower alone
_COMMIT = re.compile(r"snapshots[/\\]([0-9a-f]{40})[/\\]")

Pooling = Literal["pooler", "cls", "mean", "eos", "own"]
_POOLING = {
    "pooler": "the model's own pooler",
    "cls": "the class token, as the file holds no pooler",
    "mean": "the mean over tokens, as there is neither pooler nor class token",
    "eos": "the token of the text's end",
    "own": "itself",
}


class TextTokenizer:
    """Texts to token numbers, padded and cut to one length, as open_clip's tokenizers are called.

    Args:
        tokenizer: of transformers; it is used as it was shipped.
        context_length: tokens that the tower reads, L.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Return token numbers ``[n, L]``.

        Args:
            texts: n of them, or one.
            context_length: in place of the tower's own.
        """
        found = self.tokenizer(
            [texts] if isinstance(texts, str) else list(texts),
            max_length=context_length or self.context_length,
            padding="max_length",
            truncation=True,
            return_attention_mask=False,
            return_tensors="pt",
        )
        tokens: Tensor = found["input_ids"]
        return tokens

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens texts have, marks of start and end among them, when not cut."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), return_attention_mask=False, verbose=False)
        return [len(tokens) for tokens in found["input_ids"]]


class HFTextTower(nn.Module):
    """A text encoder of transformers, from token numbers ``[B, L]`` to vectors ``[B, d]``.

    Args:
        encoder: called with ``input_ids`` and ``attention_mask``.
        pooling: what is taken of its output.
        pad: the padding's number. Where it is that of the text's end too, as in CLIP, the first one
            ends the text and belongs to it.
        eos: the number of the text's end, where there is one.
    """

    def __init__(self, encoder: nn.Module, pooling: Pooling, pad: int, eos: int | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.pad = pad
        self.ends = eos == pad

    def forward(self, tokens: Tensor) -> Tensor:
        """Return one vector a text."""
        padding = tokens == self.pad
        mask = (padding.cumsum(dim=1) <= 1) if self.ends else ~padding
        output = self.encoder(input_ids=tokens, attention_mask=mask.long())
        if self.pooling in ("pooler", "eos"):
            pooled: Tensor = output.pooler_output
            return pooled
        states: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)


@dataclass(frozen=True)
class TextTower:
    """A text tower with what goes with it.

    Attributes:
        module: token numbers ``[B, L]`` to vectors ``[B, width]``, float32.
        width: d.
        tokenizer: texts to token numbers.
        pooling: how one vector is made of a text.
        revision: commit of the repository that it is from; ``None``: of no repository.
        notes: what there is to say of it.
    """

    module: nn.Module
    width: int
    tokenizer: Callable[..., Tensor]
    pooling: Pooling
    revision: str | None = None
    notes: tuple[str, ...] = ()

    def describe(self, name: str) -> str:
        """Say in a sentence or more what it is.

        Args:
            name: what the user calls it.
        """
        at = "" if self.revision is None else f" at {self.revision[:12]}"
        kind = type(getattr(self.module, "encoder", self.module)).__name__
        context = getattr(self.tokenizer, "context_length", "its")
        said = (
            f"Text tower: {name}{at}, a {kind}, {self.width} wide, pooled by "
            f"{_POOLING[self.pooling]}, reads {context} tokens."
        )
        return " ".join([said, *self.notes])


def build_text_tower(name: str, revision: str | None = None) -> TextTower:
    """Return a text tower in float32 on the CPU.

    Nothing of a repository or folder is run as code, and of pickled weights tensors alone are read.

    Args:
        name: ``hf:ORG/NAME`` or ``hf:ORG/NAME@REVISION``, ``local-dir:FOLDER`` as
            ``save_pretrained`` writes a model and its tokenizer, or :data:`TINY_BERT`.
        revision: commit of the repository; default: that of the name, or the newest.

    Raises:
        ValueError: it cannot be had, is no text encoder, or lacks weights.
    """
    transformers = _transformers(name)
    if name == TINY_BERT:
        return _tiny_bert(transformers)
    source, options = _source(name, revision)
    with _loading(f"the text tower {name}", "--text"):
        commit = _pin(transformers, name, source, options)
        return _load(transformers, source, options, commit)


def build_text_tokenizer(name: str) -> TextTokenizer:
    """Return the tokenizer of a text tower, whose weights are not read.

    Args:
        name: as of :func:`build_text_tower`.

    Raises:
        ValueError: it cannot be had.
    """
    transformers = _transformers(name)
    if name == TINY_BERT:
        return _wrap(_tiny_tokenizer(transformers), None)
    source, options = _source(name, None)
    with _loading(f"the tokenizer of {name}", "--model"):
        _pin(transformers, name, source, options)
        config = transformers.AutoConfig.from_pretrained(source, **options)
        return _wrap(transformers.AutoTokenizer.from_pretrained(source, **options), config)


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{name} needs transformers: pip install 'fastht[tasks]' ({error})"
        ) from error
    return transformers


def _source(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return what transformers calls a text tower, and how it is asked for it."""
    if name.startswith(HUB):
        source, _, asked = name.removeprefix(HUB).partition("@")
        return source, {"revision": revision or asked or None}
    if name.startswith(FOLDER):
        source = name.removeprefix(FOLDER)
        if not (Path(source) / "config.json").is_file():
            raise ValueError(
                f"{source} has no config.json: give the folder of a model and its tokenizer as "
                "transformers' save_pretrained writes them"
            )
        return source, {"local_files_only": True}
    raise ValueError(
        f"--text {name} names no text tower: give hf:ORG/NAME, local-dir:FOLDER, {TINY_BERT} "
        "(small and random), or own for the model's own"
    )


def _pin(transformers: Any, name: str, source: str, options: dict[str, Any]) -> str | None:
    """Ask for all of one commit, also where "main" moves in between; return the commit."""
    if not name.startswith(HUB):
        return None
    file = transformers.utils.cached_file(source, "config.json", **options)
    found = _COMMIT.search(str(file))
    commit = found[1] if found else None
    options["revision"] = commit or options["revision"]
    return commit


@contextmanager
def _loading(what: str, option: str) -> Iterator[None]:
    """Turn what goes wrong with a repository or folder into one error that names it."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, TypeError, KeyError) as error:
        # Of a model that is no text encoder anything may be missing.
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load {what}: {reason}; give a folder that holds it, by {option} "
            f"{FOLDER}FOLDER, or {option} {TINY_BERT}, small and random"
        ) from error


def _load(
    transformers: Any, source: str, options: dict[str, Any], revision: str | None
) -> TextTower:
    config = transformers.AutoConfig.from_pretrained(source, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    kind = transformers.AutoModel
    if config.model_type in _CLIP:
        kind = transformers.CLIPTextModel
    elif type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:  # of T5 without decoder
        kind = transformers.AutoModelForTextEncoding
    encoder, info = kind.from_pretrained(source, output_loading_info=True, **options)
    missing = {str(name) for name in info["missing_keys"]}
    no_pooler = {name for name in missing if name.split(".")[0] == "pooler"}
    # Positions and such are made, not loaded.
    missing -= no_pooler | {name for name in missing if name.endswith("position_ids")}
    if missing:
        raise ValueError(f"its weights lack {', '.join(sorted(missing)[:3])}; take the whole file")
    if no_pooler:
        encoder.pooler = None
    return _finish(encoder.float(), tokenizer, revision)


def _wrap(tokenizer: Any, config: Any) -> TextTokenizer:
    """Pad to the right, and find out how long texts may be.

    Args:
        tokenizer: of transformers; it is changed.
        config: of the text tower; ``None``: its tokenizer knows.
    """
    config = getattr(config, "text_config", config)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError("its tokenizer has neither padding nor end; set its pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    positions = getattr(config, "max_position_embeddings", None) or _CONTEXT
    if "roberta" in getattr(config, "model_type", ""):
        # It counts positions from behind the padding's number.
        positions -= config.pad_token_id + 1
    return TextTokenizer(tokenizer, min(_CONTEXT, positions, tokenizer.model_max_length))


def _finish(
    encoder: Any, tokenizer: Any, revision: str | None = None, notes: tuple[str, ...] = ()
) -> TextTower:
    """Find out how texts are pooled, and what there is to say."""
    config = getattr(encoder.config, "text_config", encoder.config)
    wrapped = _wrap(tokenizer, config)
    tokens = wrapped(["ultrasound"])
    encoder.eval()
    with torch.no_grad():
        output = encoder(input_ids=tokens)
    pooling: Pooling = "mean"
    if config.model_type in _CLIP:
        pooling = "eos"
    elif getattr(output, "pooler_output", None) is not None:
        pooling = "pooler"
    elif tokenizer.cls_token_id is not None and int(tokens[0, 0]) == tokenizer.cls_token_id:
        pooling = "cls"
    module = HFTextTower(encoder, pooling, tokenizer.pad_token_id, tokenizer.eos_token_id)
    with torch.no_grad():
        width = module(tokens).shape[1]
    lowered = wrapped(["Mass"]).equal(wrapped(["mass"])) and bool(
        any(word[:1].isupper() for word in tokenizer.get_vocab() if word.isalpha())
    )
    if lowered:
        notes += (
            "Its tokenizer lowercases although its vocabulary has capitals: kept as shipped.",
        )
    return TextTower(module, width, wrapped, pooling, revision, notes)


def _tiny_tokenizer(transformers: Any) -> Any:
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece

    text = (importlib.resources.files("fastht.data") / "tiny_bert" / "vocab.txt").read_text("utf-8")
    vocabulary = {word: number for number, word in enumerate(text.split("\n")[:-1])}
    pieces = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    special |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_max_length=_CONTEXT, **special
    )


def _tiny_bert(transformers: Any) -> TextTower:
    """Draw a small BERT, the same one each time."""
    tokenizer = _tiny_tokenizer(transformers)
    width = _TINY["hidden_size"]
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        intermediate_size=2 * width,
        max_position_embeddings=_CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        # By BERT's 0.02 the vectors of all texts would be nearly the same.
        initializer_range=width**-0.5,
        **_TINY,
    )
    with seeded(0):
        encoder = transformers.BertModel(config)
    note = f"{TINY_BERT} has RANDOM weights: good for trying things out, it knows no language."
    return _finish(encoder, tokenizer, notes=(note,))
