"""Class prompts: what the images of a class look like, in several sentences, from YAML files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fastht.data import DataError
from fastht.data.tables import read_text

SHIPPED = ("breast", "liver", "lung", "lymph_node", "thyroid", "sample", "published")
_FORM = (
    "it needs `classes:` with the labels, each with a list of prompts, or `templates:`, a list of "
    "prompts with {label} in them"
)
_SLOT = re.compile(r"\{(\w*)\}")

Prompts = Mapping[str, tuple[str, ...]]


class PromptSet(Prompts):
    """Prompts by label, and the organ that they are about.

    Attributes:
        organ: as the prompts call it; ``None`` where their file does not say.
    """

    def __init__(self, prompts: Prompts, organ: str | None = None) -> None:
        self._prompts = dict(prompts)
        self.organ = organ

    def __getitem__(self, label: str) -> tuple[str, ...]:
        return self._prompts[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._prompts)

    def __len__(self) -> int:
        return len(self._prompts)


def load_prompts(source: str, labels: Sequence[str], organ: str | None = None) -> PromptSet:
    """Return the prompts of each label, in the order of the labels.

    Labels are compared without regard to case and surrounding whitespace. Classes of the file that
    no label names are left out.

    Args:
        source: one of ``SHIPPED``, or the path of a YAML file: a mapping of ``classes`` to labels
            with their lists of prompts, or a list of ``templates`` for any labels, and an
            ``organ``.
        labels: those of the data.
        organ: fills templates, in place of the file's; of classes, where the file has none.

    Raises:
        DataError: the file cannot be read, is not YAML or built otherwise, a prompt is empty or
            there twice, a label has none, or templates lack an organ.
        ValueError: there is no such file.
    """
    path = _file(source)
    content = _read(path)
    if "templates" in content:
        organ = organ or content.get("organ")
        return PromptSet(_fill(path, content["templates"], labels, organ), organ)
    written = _classes(path, content)
    found = {_key(name): prompts for name, prompts in written.items()}
    if len(found) < len(written):
        raise DataError(f"{path}: two labels differ in nothing but case; remove one of them")
    if missing := [label for label in labels if _key(label) not in found]:
        raise DataError(
            f"{path}: no prompts for {_listed(missing)}; the labels of the data are "
            f"{_listed(labels)}, those of the file {_listed(written)}; give a YAML file with "
            "prompts for each"
        )
    return PromptSet({label: found[_key(label)] for label in labels}, content.get("organ", organ))


def prompt_labels(source: str) -> tuple[str, ...]:
    """Return the labels that prompts are written for, in their own spelling and order.

    Raises:
        DataError: templates are for any labels, and this asks for those of the file.
        DataError, ValueError: as :func:`load_prompts`.
    """
    path = _file(source)
    content = _read(path)
    if "templates" in content:
        raise DataError(f"{path}: its templates are for any classes; name them by --classes")
    return tuple(_classes(path, content))


def class_embeddings(embedder: Callable[[Sequence[str]], Tensor], prompts: Prompts) -> Tensor:
    """Return an embedding of each class, ``[classes, E]``, float32, on the CPU.

    It is the mean of its prompts' normalised embeddings and not normalised again, so that an
    image's product with it is the mean of its cosines to the prompts.
    """
    return torch.stack([embedder(sentences).mean(dim=0) for sentences in prompts.values()])


def zero_shot_logits(images: Tensor, classes: Tensor, scale: float) -> Tensor:
    """Return the logit of each class for each image, ``[n, classes]``, float64.

    Args:
        images: ``[n, E]``, normalised.
        classes: ``[classes, E]``, as :func:`class_embeddings` gives them.
        scale: the model's factor of similarities.
    """
    return scale * images.double() @ classes.double().T


def _file(source: str) -> Path:
    if source in SHIPPED:
        return Path(str(resources.files(__name__) / f"{source}.yaml"))
    if not Path(source).is_file():
        raise ValueError(
            f"there are no prompts {source!r}: give {', '.join(SHIPPED)} or the path of a YAML file"
        )
    return Path(source)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a file, of which classes or templates are still to be looked at."""
    try:
        content: Any = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise DataError(f"{path}: not YAML ({what}); correct it") from None
    if not isinstance(content, dict) or not (
        isinstance(content.get("classes"), dict) or isinstance(content.get("templates"), list)
    ):
        raise DataError(f"{path}: no prompts; {_FORM}")
    if unknown := [key for key in content if key not in ("classes", "templates", "organ")]:
        raise DataError(f"{path}: unknown key {_listed(unknown)}; {_FORM}, and perhaps `organ:`")
    if {"classes", "templates"} <= content.keys():
        raise DataError(f"{path}: classes and templates; keep one of them")
    if not isinstance(content.get("organ", ""), str):
        raise DataError(f"{path}: organ is no text; put it in quotes or leave it out")
    return content


def _fill(
    path: Path, templates: Sequence[Any], labels: Sequence[str], organ: str | None
) -> dict[str, tuple[str, ...]]:
    """Return the sentences that templates make of each label."""
    if not templates:
        raise DataError(f"{path}: no prompts; {_FORM}")
    for template in templates:
        slots = _SLOT.findall(template) if isinstance(template, str) else []
        if "label" not in slots or not set(slots) <= {"label", "organ"}:
            raise DataError(
                f"{path}: the template {template!r} needs {{label}}, and may have {{organ}}; "
                "correct it"
            )
        if "organ" in slots and organ is None:
            raise DataError(
                f"{path}: the prompts name the organ, which the data does not say; give it by "
                "--organ"
            )
    if len(set(templates)) < len(templates):
        raise DataError(f"{path}: a template is there twice; remove one of them")
    return {
        label: tuple(
            " ".join(t.replace("{organ}", organ or "").replace("{label}", label).split())
            for t in templates
        )
        for label in labels
    }


def _classes(path: Path, content: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the prompts of a file by its own labels."""
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
