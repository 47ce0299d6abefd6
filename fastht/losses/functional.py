"""The losses as functions: InfoNCE, sigmoid, several positives, semantic soft labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from fastht.losses import custom_op, eager, exchange, reference
from fastht.losses.registry import resolve
from fastht.losses.sweeps import BOTH, COLUMNS, ROWS, Form, sum_dtype
from fastht.losses.targets import SoftTargets
from fastht.losses.terms import Share, Weights, alone_where_negative

Directions = Literal["image", "text", "both"]
_DIRECTIONS = {"image": ROWS, "text": COLUMNS, "both": BOTH}
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class SoftLabels:
    """How semantic soft labels T enter the loss; see :class:`SoftTargets` for what T is.

    ``kl * KL(softmax(T / temperature) || softmax(c / temperature)) + mse * mean((c - T)^2)``, with
    c the products of features: cosines, where these have length 1, as open_clip's models return
    them. Source: Ultrasound-CLIP (arXiv 2604.01749), whose published code has these weights and
    this temperature, and the image direction alone.

    Attributes:
        temperature: of the KL term, over zero.
        kl: weight of the KL divergence, a mean over images and/or texts.
        mse: weight of the squared error, a mean over pairs.
        directions: of the KL term: each image over texts, each text over images, or their mean.
        scope: with several processes, whether pairs are those of the whole batch, or of each
            process's own (as published).
    """

    temperature: float = 0.07
    kl: float = 0.4
    mse: float = 0.6
    directions: Directions = "both"
    scope: Literal["global", "local"] = "global"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}; it has to be over zero, and finite"
            )
        if not (self.kl >= 0 and self.mse >= 0 and 0 < self.kl + self.mse < math.inf):
            raise ValueError(
                f"weights of soft labels are kl={self.kl} and mse={self.mse}; none may be "
                "negative or infinite, and one has to be over zero"
            )
        _flags(self.directions)
        if self.scope not in ("global", "local"):
            raise ValueError(f"scope is {self.scope!r}; choose global or local")


def _flags(directions: Directions) -> int:
    """Return directions as a form has them."""
    if directions not in _DIRECTIONS:
        raise ValueError(f"directions is {directions!r}; choose image, text or both")
    return _DIRECTIONS[directions]


@dataclass(frozen=True)
class Processes:
    """The processes that share a batch.

    Attributes:
        rank: this one.
        world_size: how many.
        reduction: what the loss is, and whose gradients it makes; see ``custom_op``.
    """

    rank: int = 0
    world_size: int = 1
    reduction: int = custom_op.LOCAL


ALONE = Processes()


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    keys: Tensor | None = None,
    directions: Directions = "both",
    backend: str = "auto",
    processes: Processes = ALONE,
) -> Tensor:
    """Return the symmetric InfoNCE loss of CLIP, without a B x B matrix.

    The mean cross-entropy of ``logit_scale * image_features @ text_features.T`` along rows and down
    columns; the target of a row is shared evenly by its positives. With several of them the loss
    cannot reach 0: its floor is :func:`fastht.losses.mean_log_positives`.

    Args:
        image_features: ``[B, E]``, bfloat16, float16, float32 or float64; under autocast, products
            are in its dtype. Sums are in float32, or float64 for float64.
        text_features: ``[B, E]``, of the same dtype.
        logit_scale: one number, ``exp`` of what a model learns.
        keys: ``[B]`` integers; samples of equal keys are positives of each other. A negative key is
            equal to none but its own sample. Default: each sample is its own positive alone.
        directions: image to text, text to image, or their mean.
        backend: one of :func:`fastht.losses.backends`, or "auto".
        processes: those that share the batch.

    Returns:
        ``[]``, in nats, of the sums' dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, the batch is empty, or there are no such
            directions.
        BackendUnavailableError: the backend cannot run here.

    Source: Radford et al. 2021 (CLIP), figure 3; several positives as Khosla et al. 2020 (L_out).
    """
    form = Form(softmax=_flags(directions), keys=keys is not None)
    return losses(
        image_features, text_features, logit_scale, None, keys=keys, form=form,
        weights=Weights(softmax=1.0), backend=backend, processes=processes,
    )[0]  # fmt: skip


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    keys: Tensor | None = None,
    backend: str = "auto",
    processes: Processes = ALONE,
) -> Tensor:
    """Return the sigmoid loss of SigLIP, without a B x B matrix.

    The sum over pairs of ``-log sigmoid(y (logit_scale * a . b + logit_bias))``, divided by B, with
    ``y = 1`` for positives and -1 for the others.

    Args and errors are those of :func:`clip_loss`; ``logit_bias`` is one number.

    Source: Zhai et al. 2023 (arXiv 2303.15343), algorithm 1.
    """
    form = Form(sigmoid=True, keys=keys is not None)
    return losses(
        image_features, text_features, logit_scale, logit_bias, keys=keys, form=form,
        weights=Weights(sigmoid=1.0), backend=backend, processes=processes,
    )[0]  # fmt: skip


def soft_label_loss(
    image_features: Tensor,
    text_features: Tensor,
    targets: SoftTargets,
    soft_labels: SoftLabels | None = None,
    *,
    keys: Tensor | None = None,
    backend: str = "auto",
    processes: Processes = ALONE,
) -> Tensor:
    """Return the loss of semantic soft labels, without a B x B matrix.

    Args and errors are those of :func:`clip_loss`, for features of length 1, and:
        targets: how alike the samples are.
        soft_labels: how that enters the loss; default: ``SoftLabels()``.
        keys: samples of equal keys have a target of 1.
    """
    soft = soft_labels or SoftLabels()
    return losses(
        image_features, text_features, 1.0, None, keys=keys,
        form=soft_form(Form(keys=keys is not None), soft, targets), targets=targets,
        weights=Weights(kl=soft.kl, mse=soft.mse), temperature=soft.temperature, backend=backend,
        processes=ALONE if soft.scope == "local" else processes,
    )[1]  # fmt: skip


def soft_form(form: Form, soft: SoftLabels, targets: SoftTargets) -> Form:
    """Return a form with the terms of soft labels added."""
    shares = len(targets.rows) > 1 or len(targets.table) > 2
    kl = _flags(soft.directions) if soft.kl else 0
    return Form(form.softmax, form.sigmoid, kl, soft.mse > 0, form.keys, shares)


def losses(
    images: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None,
    *,
    keys: Tensor | None,
    form: Form,
    weights: Weights,
    targets: SoftTargets | None = None,
    temperature: float = 1.0,
    backend: str = "auto",
    processes: Processes = ALONE,
) -> Tensor:
    """Return ``[2]``: the contrastive and the soft-label loss of a form, in one sweep."""
    for name, x in (("image_features", images), ("text_features", texts), ("keys", keys)):
        if not isinstance(x, Tensor) and not (x is None and name == "keys"):
            raise ValueError(f"{name} is a {type(x).__name__}; it has to be a tensor")
    images, texts = _products_dtype(images), _products_dtype(texts)
    problem = _problem(images, texts, keys, targets)
    sizes = None
    if processes.world_size > 1:
        exchange.check_processes(processes.rank, processes.world_size)
        sizes = torch.ops.fastht.batch_sizes(images, _description(images, form, problem))
    if problem is not None:
        raise ValueError(problem)
    dtype = sum_dtype(images.dtype)
    scale = _number("logit_scale", scale, images, dtype)
    bias = None if bias is None else _number("logit_bias", bias, images, dtype)
    backend = resolve(backend, images.device, images.dtype)
    rows, columns, table = ((), (), ()) if targets is None else (
        targets.rows, targets.columns, targets.table
    )  # fmt: skip
    if sizes is not None:
        texts = torch.ops.fastht.gather_rows(texts, sizes)
        columns = tuple(torch.ops.fastht.gather_rows(x, sizes) for x in columns)
    if keys is not None:
        keys = _own_keys(keys.to(images.device, torch.int64), sizes)
    with torch.autocast(images.device.type, enabled=False):
        if backend == "reference" and sizes is None:
            o = custom_op.operands(
                images, texts, scale, bias, keys, Share(len(images), 0, len(images)),
                (rows, columns, table), temperature,
            )  # fmt: skip
            o = o._replace(rows=images, columns=texts, scale=scale, bias=bias)
            return reference.losses(form, o, weights)
        return eager.contrastive(
            images, texts, scale, bias, keys, sizes, rows, columns, table,
            custom_op.form_numbers(form),
            [weights.softmax, weights.sigmoid, weights.kl, weights.mse],
            temperature, processes.reduction, backend, _needs(images, texts, scale, bias),
        )  # fmt: skip


def _needs(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None) -> list[bool]:
    """Return who will want a gradient: images, texts, scale, bias."""
    wanted = [x is not None and x.requires_grad for x in (images, texts, scale, bias)]
    return [x and torch.is_grad_enabled() for x in wanted]


def _products_dtype(x: Tensor) -> Tensor:
    """Cast features as autocast casts what a matrix product gets."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.is_floating_point() and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def _description(images: Tensor, form: Form, problem: str | None) -> list[int]:
    """Return what has to be the same in all processes, first whether there is a problem."""
    if problem is not None:
        return [1] + [0] * (2 + len(custom_op.form_numbers(form)))
    dtype = _FLOATS.index(images.dtype)
    return [0, images.shape[1], dtype, *custom_op.form_numbers(form)]


def _problem(
    images: Tensor, texts: Tensor, keys: Tensor | None, targets: SoftTargets | None
) -> str | None:
    """Return what is wrong with a batch, or ``None``."""
    problem = _problem_of_features(images, texts)
    if problem is not None:
        image, text = (f"{tuple(x.shape)} {x.dtype} on {x.device}" for x in (images, texts))
        return f"image_features and text_features are {image} and {text}{problem}"
    n = len(images)
    integers = keys is None or not (keys.is_floating_point() or keys.dtype == torch.bool)
    if keys is not None and (keys.shape != (n,) or not integers):
        return f"keys are {tuple(keys.shape)} of {keys.dtype}; they have to be [{n}] integers"
    if targets is not None and len(targets) != n:
        return f"soft targets are of {len(targets)} samples, and the batch has {n}"
    if targets is not None and targets.rows[0].device != images.device:
        return f"soft targets are on {targets.rows[0].device}, features on {images.device}"
    return None


def _problem_of_features(images: Tensor, texts: Tensor) -> str | None:
    """Return what is wrong with features, said behind what they are."""
    if images.ndim != 2 or images.shape != texts.shape:
        return "; both have to be [B, E]"
    if images.layout != torch.strided or texts.layout != torch.strided:
        return f", of layout {images.layout} and {texts.layout}; both have to be dense"
    if images.dtype not in _FLOATS or images.dtype != texts.dtype:
        return "; both have to be of one floating dtype"
    if images.device != texts.device:
        return "; both have to be on one device"
    if images.numel() == 0:
        return ": an empty batch has no loss; drop it"
    return None


def _number(name: str, value: Tensor | float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a number as a tensor ``[]`` beside the features."""
    if not isinstance(value, Tensor):
        if not isinstance(value, Real):
            raise ValueError(f"{name} is {value!r}; it has to be one real number")
        return torch.full((), value, dtype=dtype, device=like.device)
    if value.numel() != 1:
        raise ValueError(f"{name} is {tuple(value.shape)}; it has to be one number")
    if value.is_complex():
        raise ValueError(f"{name} is of {value.dtype}; it has to be one real number")
    return value.reshape(()).to(like.device, dtype)


def _own_keys(keys: Tensor, sizes: Tensor | None) -> Tensor:
    """Return the keys of all columns, negative ones replaced by keys that occur once."""
    if sizes is not None:
        keys = torch.ops.fastht.gather_rows(keys, sizes)
    return alone_where_negative(keys)
