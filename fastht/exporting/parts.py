"""What of a model is exported: its images' side, its texts' side, or both; with examples to run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastht.backbones import Backbone
from fastht.exporting.errors import ExportError
from fastht.families import SUPPORTED

Part = Literal["image", "text", "both"]
PARTS: tuple[Part, ...] = get_args(Part)

Inputs = dict[str, Tensor]
Outputs = dict[str, Tensor]
Calls = Mapping[str, tuple[Callable[[Tensor], Any], str]]


@dataclass(frozen=True)
class Sizes:
    """What a part's inputs measure, but for how many there are.

    Attributes:
        image: ``(channels, height, width)`` in pixels; ``None`` without images.
        patch: ``(height, width)`` of a patch, by which images may grow.
        text: ``(length, vocabulary)`` of token numbers; ``None`` without texts.
    """

    image: tuple[int, int, int] | None
    patch: tuple[int, int] | None
    text: tuple[int, int] | None

    def examples(self, batch: int, dtype: torch.dtype, grow: tuple[int, int] = (0, 0)) -> Inputs:
        """Return inputs of noise, the same for the same arguments.

        Args:
            batch: how many images; of texts there is one more, since they need not be as many.
            dtype: of the images.
            grow: patches by which the images are taller and wider.
        """
        generator = torch.Generator().manual_seed(batch)
        made: Inputs = {}
        if self.image is not None:
            channels, *sides = self.image
            if self.patch is not None:
                sides = [a + b * c for a, b, c in zip(sides, self.patch, grow, strict=True)]
            noise = torch.randn(batch, channels, *sides, generator=generator)
            made["image"] = noise.to(dtype)
        if self.text is not None:
            length, vocabulary = self.text
            shape = (batch + (self.image is not None), length)
            made["text"] = torch.randint(1, vocabulary, shape, generator=generator)
        return made


class Exported(nn.Module):
    """A part of a model as a module of tensors: named inputs, a mapping of named outputs.

    Args:
        model: that holds the part.
        calls: by input, what makes outputs of it, and what a single one is called.
    """

    def __init__(self, model: nn.Module, calls: Calls) -> None:
        super().__init__()
        self.model = model
        self.calls = dict(calls)

    def _outputs(self, **inputs: Tensor) -> Outputs:
        made: Outputs = {}
        for name, value in inputs.items():
            call, single = self.calls[name]
            made |= _named(call(value), single)
        return made


class _OfImages(Exported):
    def forward(self, image: Tensor) -> Outputs:
        return self._outputs(image=image)


class _OfTexts(Exported):
    def forward(self, text: Tensor) -> Outputs:
        return self._outputs(text=text)


class _OfBoth(Exported):
    def forward(self, image: Tensor, text: Tensor) -> Outputs:
        return self._outputs(image=image, text=text)


def choose_part(model: nn.Module, part: Part | None) -> Part:
    """Return which part of a model is exported: as asked, or else all that it has.

    Raises:
        ExportError: the model has no such part.
    """
    two = hasattr(model, "encode_image") and hasattr(model, "encode_text")
    if part is None:
        return "both" if two else "image"
    if part not in PARTS:
        raise ExportError(f"part is {part!r}; choose one of {', '.join(map(repr, PARTS))}")
    if part != "image" and not two:
        raise ExportError(
            f"{type(model).__name__} has no text tower that fastht exports (encode_text of "
            "open_clip's models and OpenAI's clip); give part='image'"
        )
    return part


def make_part(model: Any, part: Part, resized: bool) -> Exported:
    """Return the chosen part of a model as a module of tensors.

    Args:
        model: a copy.
        part: as :func:`choose_part` returns it.
        resized: whether images have another size than the tower was built for.
    """
    calls: dict[str, tuple[Callable[[Tensor], Any], str]] = {}
    if part in ("image", "both"):
        if hasattr(model, "encode_image"):
            calls["image"] = model.encode_image, "image_features"
        elif hasattr(model, "get_image_features"):
            call = _of_transformers(model.get_image_features, model.get_image_features, resized)
            calls["image"] = call, "image_features"
        elif "pixel_values" in inspect.signature(model.forward).parameters:
            calls["image"] = _of_transformers(model, model.forward, resized), "output"
        else:
            calls["image"] = model, "output"
    if part in ("text", "both"):
        calls["text"] = model.encode_text, "text_features"
    kind = {"image": _OfImages, "text": _OfTexts, "both": _OfBoth}[part]
    return kind(model, calls).eval()


def sizes_of(
    model: Any, part: Part, backbone: Backbone | None, image_size: tuple[int, int] | None
) -> Sizes:
    """Return what the inputs of a part measure.

    Raises:
        ExportError: it is not known, and not said.
    """
    image = patch = text = None
    if part in ("image", "both"):
        projection = None if backbone is None else backbone.patch_projection
        if isinstance(projection, nn.Conv2d):
            patch = projection.stride[0], projection.stride[1]
        size = image_size or _image_size(model, backbone, patch)
        channels = projection.in_channels if isinstance(projection, nn.Conv2d) else 3
        image = (channels, *size)
    if part in ("text", "both"):
        text = _text_size(model)
    return Sizes(image, patch, text)


def dtype_of(model: nn.Module, backbone: Backbone | None) -> torch.dtype:
    """Return the dtype of a model's images: that of the weights which they meet first."""
    first = model if backbone is None else backbone.patch_projection
    return next((p.dtype for p in first.parameters() if p.is_floating_point()), torch.float32)


def _of_transformers(
    call: Callable[..., Any], function: Callable[..., Any], resized: bool
) -> Callable[[Tensor], Any]:
    """Call a model of transformers by the names of its arguments."""
    wanted = inspect.signature(function).parameters
    options: dict[str, Any] = {"return_dict": True} if "return_dict" in wanted else {}
    if resized and "interpolate_pos_encoding" in wanted:
        options["interpolate_pos_encoding"] = True
    return lambda image: call(pixel_values=image, **options)


def _image_size(
    model: Any, backbone: Backbone | None, patch: tuple[int, int] | None
) -> tuple[int, int]:
    """Return ``(height, width)`` in pixels of the images that a tower was built for."""
    tower: Any = model if backbone is None else backbone.tower
    places = (
        getattr(getattr(model, "visual", None), "image_size", None),
        getattr(getattr(tower, "patch_embed", None), "img_size", None),
        getattr(tower, "input_resolution", None),
    )
    found = next((place for place in places if place is not None), None)
    if isinstance(found, int):
        return found, found
    if isinstance(found, tuple | list) and len(found) == 2:
        return int(found[0]), int(found[1])
    if backbone is not None and patch is not None:
        return backbone.grid_size[0] * patch[0], backbone.grid_size[1] * patch[1]
    what = f"the size of the images that {type(model).__name__} takes is not known"
    if backbone is None:
        what += f", and it holds no vision transformer that is known ({SUPPORTED})"
    raise ExportError(f"{what}; give image_size=(height, width) in pixels")


def _text_size(model: Any) -> tuple[int, int]:
    """Return the length of token numbers and how many different ones there are."""
    places = (model, getattr(model, "text", None))
    length = next((n for m in places if (n := getattr(m, "context_length", None))), None)
    table = next(
        (
            m.num_embeddings
            for name, m in model.named_modules()
            if isinstance(m, nn.Embedding) and "pos" not in name and not name.startswith("visual.")
        ),
        None,
    )
    if length is None or table is None:
        raise ExportError(
            f"the text tower of {type(model).__name__} does not say how many tokens it takes "
            "(context_length) or of what table; give part='image'"
        )
    return int(length), int(table)


def _named(output: Any, single: str) -> Outputs:
    """Name the tensors that a model returns."""
    if isinstance(output, Tensor):
        return {single: output}
    if isinstance(output, Mapping):  # what transformers return is one too
        found = {name: value for name, value in output.items() if isinstance(value, Tensor)}
    elif isinstance(output, tuple | list):
        found = {f"output_{i}": value for i, value in enumerate(output)}
        found = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    else:
        found = {}
    if not found:
        raise ExportError(
            f"the model returns a {type(output).__name__}, not tensors; export the module inside "
            "of it that does"
        )
    return found
