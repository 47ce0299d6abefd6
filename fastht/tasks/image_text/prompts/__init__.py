"""Class prompts: what the images of a class look like, in several sentences, from YAML files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fastht.data import DataError
from fastht.data.tables import read_text

SHIPPED = ("breast", "liver", "lung", "lymph_node", "thyroid", "sample")
_FORM = "it needs `classes:` with the labels, each with a list of prompts"

Prompts = Mapping[str, tuple[str, ...]]


def load_prompts(source: str, labels: Sequence[str]) -> Prompts:
    """Return the prompts of each label, in the order of the labels.

    Labels are compared without regard to case and surrounding whitespace. Classes of the file that
    no label names are left out.

    Args:
        source: one of ``SHIPPED``, or the path of a YAML file: a mapping of ``classes`` to labels
            with their lists of prompts and, for people, an ``organ``.
        labels: those of the data.

    Raises:
        DataError: the file cannot be read, is not YAML or built otherwise, a prompt is empty or
            there twice, or a label has none.
        ValueError: there is no such file.
    """
    path = _file(source)
    written = _read(path)
    found = {_key(name): prompts for name, prompts in written.items()}
    if len(found) < len(written):
        raise DataError(f"{path}: two labels differ in nothing but case; remove one of them")
    if missing := [label for label in labels if _key(label) not in found]:
        raise DataError(
            f"{path}: no prompts for {_listed(missing)}; the labels of the data are "
            f"{_listed(labels)}, those of the file {_listed(written)}; give a YAML file with "
            "prompts for each"
        )
    return {label: found[_key(label)] for label in labels}


def prompt_labels(source: str) -> tuple[str, ...]:
    """Return the labels that prompts are written for, in their own spelling and order.

    Raises:
        DataError, ValueError: as :func:`load_prompts`.
    """
    return tuple(_read(_file(source)))


def class_embeddings(embedder: Callable[[Sequence[str]], Tensor], prompts: Prompts) -> Tensor:
    """Return an embedding of each class, ``[classes, E]``, float32, on the CPU.

    It is the mean of its prompts' normalised embeddings and not normalised again, so that an
    image's product with it is the mean of its cosines to the prompts.
    """
    return torch.stack([embedder(sentences).mean(dim=0) for sentences in prompts.values()])


def _file(source: str) -> Path:
    if source in SHIPPED:
        return Path(str(resources.files(__name__) / f"{source}.yaml"))
    if not Path(source).is_file():
        raise ValueError(
            f"there are no prompts {source!r}: give {', '.join(SHIPPED)} or the path of a YAML file"
        )
    return Path(source)


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the prompts of a file by its own labels."""
    try:
        content: Any = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise DataError(f"{path}: not YAML ({what}); correct it") from None
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict):
        raise DataError(f"{path}: no prompts; {_FORM}")
    if unknown := content.keys() - {"classes", "organ"}:
        raise DataError(f"{path}: unknown key {_listed(unknown)}; {_FORM}, and perhaps `organ:`")
    if not isinstance(content.get("organ", ""), str):
        raise DataError(f"{path}: organ is no text; put it in quotes or leave it out")
    classes = {}
    for label, prompts in content["classes"].items():
        # YAML reads yes, no, on and off as truth values, which are numbers to Python.
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise DataError(f"{path}: label {label!r} is no text; put it in quotes")
        if not isinstance(prompts, list) or not prompts:
            raise DataError(f"{path}: label {label!r} has no list of prompts; {_FORM}")
        for prompt in prompts:
            if not isinstance(prompt, str) or not prompt.strip():
                raise DataError(
                    f"{path}: label {label!r} has the prompt {prompt!r}, which is empty or no "
                    "text; write a sentence or remove it"
                )
        classes[str(label)] = tuple(" ".join(prompt.split()) for prompt in prompts)
    if not classes:
        raise DataError(f"{path}: no prompts; {_FORM}")
    counts = Counter(prompt.casefold() for prompts in classes.values() for prompt in prompts)
    if repeated := [prompt for prompt, count in counts.items() if count > 1]:
        raise DataError(f"{path}: the prompt {repeated[0]!r} is there twice; remove one of them")
    return classes


def _key(label: str) -> str:
    return label.strip().casefold()


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
